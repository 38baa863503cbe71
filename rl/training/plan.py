"""`train.sh plan PHASE`: parameters, memory by part and time of an update, before anything big is allocated.

Everything but the probe is computed from shapes (the model is laid out on the meta device). What activations take is an
estimate from the sizes of what autograd keeps; allocator overhead (typically 10 to 20 %) comes on top.
"""

import json
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch

from f1_vla.batch import F1Batch
from f1_vla.builders import build_policy, cast_experts
from f1_vla.config import ExpertConfig, F1Config
from f1_vla.loading import meta_policy
from f1_vla.lora import Role
from f1_vla.policy import F1Policy
from f1_vla.trainable import trainable_table
from f1_vla.world_model import use_fused
from kernels import dispatch
from kernels.clock import clock
from rl.config import Config, MixedPrecision
from rl.data.free_memory import free_bytes
from rl.training import cli, gr00t_plan
from rl.training.checkpoint_size import explorer_bytes, state_bytes
from rl.training.model_setup import compute_dtype, freeze_for_world_model, held_in_half, inject_adapter, uses_lora
from rl.training.rng import seed_all

GB = 1e9
PROBE_FLOPS = 2e12  # a probe beyond this is no longer short on a CPU
CAMERAS = 2


@dataclass
class Plan:
    """Sizes of one run; bytes of one process."""

    parameters: int
    trainable: int
    bytes_by_part: dict[str, int]  # on the device
    host_bytes: int  # episode buffer
    checkpoint_bytes: dict[str, int]  # on disk, without the episode buffer
    tokens: int  # in one step of the joint transformer
    flops: float  # of one update of one process, forward and backward
    seconds_per_update: float | None = None  # measured; None: not probed
    not_probed: str = ""
    seconds_at_least: float | None = None  # operations at the rate of a matrix product measured here

    @property
    def device_bytes(self) -> int:
        return sum(self.bytes_by_part.values())


def laid_out(cfg: Config, arch: F1Config) -> F1Policy:
    """The policy of phase 1 on the meta device: dtypes, adapters and frozen parts as in the run."""
    policy = meta_policy(arch)
    if held_in_half(cfg):
        cast_experts(policy, torch.bfloat16)
    freeze_for_world_model(policy, cfg.teacher.freeze, uses_lora(cfg))
    if uses_lora(cfg):
        with torch.device("meta"):
            inject_adapter(policy, cfg, Role.world_model)
    return policy


def sequence(arch: F1Config) -> dict[str, int]:
    """Tokens of the und and gen streams in a teacher-forced step."""
    L, R = arch.tokenizer.num_tokens, arch.world_model.num_resolutions
    predicted = sum(p * p for p in arch.tokenizer.scales[:R])
    return {"und": CAMERAS * arch.vision.num_patches + arch.tokenizer_max_length, "gen": L + predicted - 1}


def kept_per_layer(arch: F1Config, expert: ExpertConfig, tokens: int, element: int) -> int:
    """Bytes that autograd keeps of one stream in one layer, attention weights apart.

    Norm inputs and outputs (both norms, float32 inside), q, k, v before and after rotation, the attended values, and
    gate, up, their activations and product.
    """
    t = arch.trunk
    heads, kv = t.num_heads * t.head_dim, t.num_kv_heads * t.head_dim
    norms = 2 * expert.hidden_size * (2 * 4 + element)
    return tokens * (norms + element * (3 * heads + 4 * kv + 4 * expert.intermediate_size))


def activation_bytes(cfg: Config, arch: F1Config, backend: str) -> int:
    """What one update keeps for its backward: all steps of a window, since the memory ties them together."""
    element = 4 if cfg.training.mixed_precision is MixedPrecision.no else 2
    streams, t = sequence(arch), arch.trunk
    length = sum(streams.values())
    layer = sum(kept_per_layer(arch, getattr(t, s), n, element) for s, n in streams.items())
    if backend in ("reference", "matmul"):
        layer += t.num_heads * length * length * element  # attention weights
    predicted = streams["gen"] - arch.tokenizer.num_tokens + 1
    if use_fused(arch.world_model):
        logits = predicted * t.gen.hidden_size * 4 * 2  # normed outputs only
    else:
        logits = predicted * arch.tokenizer.vocab_size * 4 * 2  # and their log-softmax
    if arch.world_model.latent_head:  # its feature maps, and its prior for the logits
        w, side = arch.world_model, arch.tokenizer.scales[-1]
        logits += (8 * w.latent_head_blocks + 4) * w.latent_head_width * side**2 * 4 + logits
    B, T = cfg.training.batch_size, cfg.training.bptt_length
    if not t.gradient_checkpointing:
        return B * T * (t.num_layers * layer + logits)
    inputs = sum(getattr(t, s).hidden_size * n * element for s, n in streams.items())
    return B * T * (t.num_layers * inputs + logits) + B * layer  # one layer of one step at a time is computed again


def buffer_bytes(cfg: Config, arch: F1Config) -> int:
    """Episodes kept on the host: tokens, latents, cached vision features (or pictures), memory states."""
    t, k = cfg.training, arch.tokenizer
    frame = 2 * k.num_tokens + 2 * k.z_channels * k.scales[-1] ** 2
    if cfg.teacher.freeze.freeze_vision_encoder:
        frame += CAMERAS * arch.vision.num_patches * arch.vision.hidden_size * 2
    else:
        frame += CAMERAS * 3 * arch.vision.image_size**2
    frame += (
        4 * (arch.max_action_dim + arch.max_state_dim) + 2 * arch.memory.memory_hidden * arch.memory.memory_num_layers
    )
    return cfg.teacher.buffer_episodes * (t.steps_per_episode + 1) * frame


def update_flops(cfg: Config, arch: F1Config) -> float:
    """Matrix products of one update: forward once (twice with gradient checkpointing), backward twice that."""
    t, streams = arch.trunk, sequence(arch)
    heads = t.num_heads * t.head_dim
    projections = sum(
        n * e.hidden_size * (2 * heads + 2 * t.num_kv_heads * t.head_dim + 3 * e.intermediate_size)
        for n, e in ((n, getattr(t, s)) for s, n in streams.items())
    )
    attention = 2 * sum(streams.values()) ** 2 * heads
    head = (streams["gen"] - arch.tokenizer.num_tokens + 1) * t.gen.hidden_size * arch.tokenizer.vocab_size
    forward = 2.0 * (t.num_layers * (projections + attention) + head)
    passes = 4 if t.gradient_checkpointing else 3
    return passes * forward * cfg.training.batch_size * cfg.training.bptt_length


def make_plan(cfg: Config, arch: F1Config, num_processes: int, backend: str) -> Plan:
    policy = laid_out(cfg, arch)
    parameters, trainable = list(policy.parameters()), [p for p in policy.parameters() if p.requires_grad]
    count = sum(p.numel() for p in trainable)
    gradients = sum(p.numel() * p.element_size() for p in trainable)
    held = [*parameters, *policy.buffers()]
    parts = {
        "weights": sum(t.numel() * t.element_size() for t in held),
        "gradients": gradients,
        "optimizer (AdamW)": 2 * gradients,
        "gradient buckets (DDP)": gradients if num_processes > 1 else 0,
        "activations (estimate)": activation_bytes(cfg, arch, backend),
    }
    total = sum(p.numel() for p in parameters)
    tokens = sum(sequence(arch).values())
    released = cfg.model.checkpoint_path is not None
    saved = {"phase 1": state_bytes(policy, released), "phase 2": explorer_bytes(cfg, policy, released)}
    return Plan(total, count, parts, buffer_bytes(cfg, arch), saved, tokens, update_flops(cfg, arch))


# --- probe ------------------------------------------------------------------------------------------------------------


def reason_not_to_probe(plan: Plan, device: torch.device) -> str:
    """Why the model cannot be tried here; empty when it can."""
    free = free_bytes(device)
    if plan.device_bytes > 0.5 * free:
        needed = f"{plan.device_bytes / GB:.1f} GB"
        return f"it needs about {needed} and {free / GB:.1f} GB are free on {device} (a probe takes at most half)"
    if device.type == "cpu" and plan.flops > PROBE_FLOPS:
        return f"an update takes {plan.flops:.1e} operations, too many for a short probe on a CPU"
    return ""


def random_batch(cfg: Config, arch: F1Config, device: torch.device) -> F1Batch:
    """A window of random features of the run's sizes."""
    B, T, O = cfg.training.batch_size, cfg.training.bptt_length, arch.n_obs_img_steps  # noqa: E741
    k, P = arch.tokenizer, arch.tokenizer.scales[-1]
    yes = torch.ones(B, T, O, dtype=torch.bool)
    return F1Batch(
        lang_tokens=torch.zeros(B, arch.tokenizer_max_length, dtype=torch.long),
        lang_masks=torch.ones(B, arch.tokenizer_max_length, dtype=torch.bool),
        camera_mask=torch.ones(B, T, CAMERAS, dtype=torch.bool),
        history_ids=torch.randint(k.vocab_size, (B, T, O, k.num_tokens)),
        history_mask=yes,
        actions=torch.randn(B, T, O, arch.max_action_dim),
        action_known=yes,
        state=torch.randn(B, T, arch.max_state_dim),
        vision=torch.randn(B, T, CAMERAS, arch.vision.num_patches, arch.vision.hidden_size),
        history_latents=torch.randn(B, T, O, k.z_channels, P, P),
        target_ids=torch.randint(k.vocab_size, (B, T, k.num_tokens)),
    ).to(device)


def probe(cfg: Config, arch: F1Config, device: torch.device, updates: int = 2) -> float:
    """Seconds of one update (forward and backward) with random weights and data; one warm-up before."""
    seed_all(cfg.training.seed)
    policy = build_policy(arch, device, torch.bfloat16 if held_in_half(cfg) else torch.float32)
    freeze_for_world_model(policy, cfg.teacher.freeze, uses_lora(cfg))
    if uses_lora(cfg):
        inject_adapter(policy, cfg, Role.world_model)
    batch, h = random_batch(cfg, arch, device), policy.initial_memory_state(cfg.training.batch_size)
    half = {MixedPrecision.bf16: torch.bfloat16, MixedPrecision.fp16: torch.float16}.get(cfg.training.mixed_precision)
    start = 0.0
    for i in range(updates + 1):
        if i == 1:
            start = _now(device)
        policy.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype=half, enabled=half is not None):
            loss = policy(batch, mode="world_model_window", initial_memory_state=h)["loss"]
        loss.backward()
    return (_now(device) - start) / updates


def product_rate(arch: F1Config, dtype: torch.dtype, device: torch.device, rows: int = 256) -> float:
    """Operations a second of the widest product of the model on `rows` tokens, measured with one matrix."""
    width, inner = arch.trunk.und.hidden_size, arch.trunk.und.intermediate_size
    x, w = torch.randn(rows, width, device=device).to(dtype), torch.randn(width, inner, device=device).to(dtype)
    return 2.0 * rows * width * inner / min([clock(lambda: x @ w, device) for _ in range(4)][1:])


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# --- the command ------------------------------------------------------------------------------------------------------


def table(plan: Plan, num_processes: int) -> str:
    rows = [(name, f"{size / GB:.3f}") for name, size in plan.bytes_by_part.items()]
    rows += [("one process", f"{plan.device_bytes / GB:.3f}")]
    rows += [(f"all {num_processes} processes", f"{num_processes * plan.device_bytes / GB:.3f}")]
    rows += [("host: episode buffer, a process", f"{plan.host_bytes / GB:.3f}")]
    rows += [(f"disk: checkpoint of {k}, no buffer", f"{v / GB:.3f}") for k, v in plan.checkpoint_bytes.items()]
    width = max(len(name) for name, _ in rows)
    lines = [f"{'memory':<{width}}  {'GB':>9}", *(f"{name:<{width}}  {size:>9}" for name, size in rows)]
    lines.append(f"parameters {plan.parameters:,}, trainable {plan.trainable:,}; {plan.tokens} tokens a step")
    lines.append(f"operations of an update and process: {plan.flops:.2e}")
    if plan.seconds_per_update is None:
        lines.append(f"time of an update: not probed, {plan.not_probed}")
        lines.append(f"  at least {plan.seconds_at_least:,.1f} s: its operations at the rate of its widest product")
    else:
        lines.append(f"time of an update (forward and backward, one process): {plan.seconds_per_update:.3f} s, probed")
    return "\n".join(lines)


def main(args: cli.Args) -> None:
    cfg, arch = args.config, args.arch
    if args.eval_phase == "gr00t":
        gr00t_plan.plan(args)
        return
    if args.eval_phase not in (None, "teacher"):
        raise ValueError(f"plan knows the phase teacher; '{args.eval_phase}' is not available in this version")
    device = gr00t_plan.device_of(cfg)
    kind = dispatch.kind_of(device, compute_dtype(cfg), arch.trunk.head_dim, training=True)
    backend = dispatch.choose(arch.trunk.attention_backend, kind).backend
    processes = args.num_processes or 1
    plan = make_plan(cfg, arch, processes, backend)
    print(f"model {cfg.model.config_file}, phase teacher, {processes} processes, {device}, attention {backend}")
    print(f"batch {cfg.training.batch_size} windows of {cfg.training.bptt_length} steps, adapters "
          f"{'on' if uses_lora(cfg) else 'off'}, precision {cfg.training.mixed_precision.value}")  # fmt: skip
    print(trainable_table(laid_out(cfg, arch)))
    plan.not_probed = reason_not_to_probe(plan, device)
    if not plan.not_probed:
        plan.seconds_per_update = probe(cfg, arch, device)
    else:
        plan.seconds_at_least = plan.flops / product_rate(arch, compute_dtype(cfg), device)
    print(table(plan, processes))
    if args.json is not None:
        result: dict[str, Any] = asdict(plan) | {"num_processes": processes, "model": cfg.model.config_file}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    cli.run_main("plan", main)
