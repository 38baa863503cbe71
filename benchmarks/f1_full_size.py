"""Cost of the full-size model on one device: `python -m benchmarks.f1_full_size [--json FILE] [--markdown FILE]`.

Random weights of the published sizes. Measured are an update of phase 1 (adapters, windows of 8 steps, 4 at a time,
bfloat16; forward, backward, clipping, AdamW) with its peak memory, and the latency of one action chunk with each way of
running the Euler loop. Floors: operations over the device's measured matrix throughput, or bytes of the weights that a
step must read over its measured bandwidth, whichever is larger; attention and everything elementwise left out.
"""

import argparse
import json
import platform
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from f1_vla.builders import initialise
from f1_vla.config import DenoiseMode, F1Config
from f1_vla.denoise import Denoiser
from f1_vla.loading import empty_policy
from f1_vla.lora import Role
from f1_vla.policy import F1Policy
from kernels.clock import Rates, rates
from rl import config as rl_config
from rl.config import Config, LoraMode, MixedPrecision
from rl.training import plan
from rl.training.model_setup import freeze_for_world_model, inject_adapter
from rl.training.optim import setup_optimizer


def random_policy(arch: F1Config, device: str) -> F1Policy:
    """Laid out on the device and filled there: no copy on the host."""
    policy = empty_policy(arch, device, torch.bfloat16, torch.bfloat16)
    with torch.no_grad():
        for t in (*policy.parameters(), *policy.buffers()):
            if t.is_floating_point():
                t.normal_(std=0.02)
        initialise(policy)
    return policy


def seconds(run: Callable[[], Any], device: str, repeats: int) -> float:
    """Median of `repeats` calls after two that are not counted."""
    times = []
    for i in range(repeats + 2):
        start = _now(device)
        run()
        if i >= 2:
            times.append(_now(device) - start)
    return sorted(times)[len(times) // 2]


def _now(device: str) -> float:
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter()


def measure_update(
    policy: F1Policy, cfg: Config, arch: F1Config, device: str, repeats: int, speed: Rates
) -> dict[str, float]:
    """One update of phase 1."""
    batch, h = plan.random_batch(cfg, arch, torch.device(device)), policy.initial_memory_state(cfg.training.batch_size)
    t = cfg.training
    optimizer = setup_optimizer(policy, t.learning_rate, t.weight_decay, t.memory_lr_scale)
    trained = [p for p in policy.parameters() if p.requires_grad]
    policy.train()

    def update() -> None:
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            loss = policy(batch, mode="world_model_window", initial_memory_state=h)["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    found = {"update_s": seconds(update, device, repeats)}
    if device != "cpu":
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    found["planned_gb"] = plan.make_plan(cfg, arch, 1, "sdpa").device_bytes / 1e9
    found["floor_s"] = plan.update_flops(cfg, arch) / speed.operations
    return found


def bytes_of(*modules: torch.nn.Module) -> int:
    return sum(p.numel() * p.element_size() for m in modules for p in m.parameters())


def numbers_of(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def sampling_floor(policy: F1Policy, arch: F1Config, rows: int, speed: Rates) -> float:
    """Seconds: the prefix once, then one pass of the gen expert a scale and of the act expert a step."""
    trunk, streams = policy.trunk, plan.sequence(arch)
    prefix = {"und": streams["und"], "gen": arch.tokenizer.num_tokens}
    operations = rows * sum(2 * n * numbers_of(getattr(trunk, s).layers) for s, n in prefix.items())
    read = speed.bytes
    floor = max(operations / speed.operations, bytes_of(trunk.und.layers, trunk.gen.layers) / read)
    floor += (arch.world_model.foresight_scales - 1) * bytes_of(trunk.gen.layers) / read
    return floor + arch.num_denoise_steps * bytes_of(trunk.act.layers) / read


@torch.no_grad()
def measure_sampling(
    policy: F1Policy, cfg: Config, arch: F1Config, device: str, rows: int, repeats: int, modes: list[DenoiseMode],
    speed: Rates,
) -> dict[str, Any]:  # fmt: skip
    """Latency of one chunk of `rows` environments, features given; encoding of their pictures apart."""
    cfg.training.batch_size, cfg.training.bptt_length = rows, 1
    batch, h = plan.random_batch(cfg, arch, torch.device(device)), policy.initial_memory_state(rows)
    found: dict[str, Any] = {"rows": rows, "floor_s": sampling_floor(policy, arch, rows, speed)}
    for mode in modes:
        denoiser = Denoiser(policy, mode)

        def act(denoiser: Denoiser = denoiser) -> None:
            with torch.autocast(torch.device(device).type, torch.bfloat16):
                policy(batch, mode="actions", initial_memory_state=h, denoiser=denoiser)

        found[f"{mode.value}_s"] = seconds(act, device, repeats)
    side, camera = arch.tokenizer.image_size, arch.vision.image_size
    frame = torch.randint(256, (rows, side, side, 3), dtype=torch.uint8, device=device)
    cameras = torch.randint(256, (rows, plan.CAMERAS, camera, camera, 3), dtype=torch.uint8, device=device)
    found["encoding_s"] = seconds(lambda: policy.encode_frames(frame, cameras), device, repeats)
    return found


def markdown(result: dict[str, Any]) -> str:
    update = result["update"]
    lines = [
        f"# Full-size model on {result['machine']}", "",
        f"{result['model']}, random weights, torch {result['torch']}. Made by", "", f"    {result['command']}", "",
        f"Floors: {result['matmul_tflops']:.3g} TFLOP/s of a bfloat16 matrix product and {result['copy_tbs']:.3g} TB/s "
        "of a copy, measured in the same run.", "",
        "| update of phase 1 | |", "|---|---|", *(f"| {k} | {v:.3f} |" for k, v in update.items()), "",
        "| one action chunk | " + " | ".join(f"{r['rows']} rows" for r in result["sampling"]) + " |",
        "|---" * (1 + len(result["sampling"])) + "|",
    ]  # fmt: skip
    rows = [(k, [f"{r[k]:.4f}" for r in result["sampling"]]) for k in result["sampling"][0] if k != "rows"]
    lines += [f"| {name} | {' | '.join(numbers)} |" for name, numbers in rows]
    return "\n".join(lines) + "\n"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.prog = "python -m benchmarks.f1_full_size"
    parser.add_argument("--model_config", default="f1_base")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=4, help="windows an update")
    parser.add_argument("--window", type=int, default=8, help="steps of a window")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8], help="environments an action chunk")
    parser.add_argument("--modes", nargs="+", choices=[m.value for m in DenoiseMode], help="default: all that run here")
    parser.add_argument("--keep_activations", action="store_true", help="no gradient checkpointing")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path)
    args = parser.parse_args(argv)
    if args.model_config == "f1_base" and args.device == "cpu":
        raise SystemExit("f1_base needs a GPU; name one with --device cuda, or a small --model_config")
    torch.manual_seed(args.seed)
    cfg, arch = rl_config.load(), rl_config.load_model(args.model_config)
    cfg.training.batch_size, cfg.training.bptt_length = args.batch, args.window
    cfg.training.mixed_precision, cfg.model.lora.mode = MixedPrecision.bf16, LoraMode.on
    cfg.model.checkpoint_path = "random"  # held as a released base would be: bfloat16
    arch.trunk.gradient_checkpointing = not args.keep_activations
    policy = random_policy(arch, args.device)
    freeze_for_world_model(policy, cfg.teacher.freeze, lora=True)
    inject_adapter(policy, cfg, Role.world_model)
    machine = torch.cuda.get_device_name() if args.device != "cpu" else platform.machine()
    command = "python -m benchmarks.f1_full_size " + shlex.join(sys.argv[1:] if argv is None else argv)
    result: dict[str, Any] = {"machine": machine, "torch": torch.__version__, "model": args.model_config}
    speed = rates(args.device, torch.bfloat16)
    result |= {"command": command, "seed": args.seed}
    result |= {"matmul_tflops": speed.operations / 1e12, "copy_tbs": speed.bytes / 1e12}
    result["update"] = measure_update(policy, cfg, arch, args.device, args.repeats, speed)
    policy.eval()
    usable = [m for m in DenoiseMode if m is not DenoiseMode.cuda_graph or args.device != "cpu"]
    modes = usable if args.modes is None else [DenoiseMode(m) for m in args.modes]
    result["sampling"] = [
        measure_sampling(policy, cfg, arch, args.device, n, args.repeats, modes, speed) for n in args.rows
    ]
    print(markdown(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if args.markdown:
        args.markdown.write_text(markdown(result), encoding="utf-8")


if __name__ == "__main__":
    main()
