"""Does GR00T take the memory that is planned? `python -m benchmarks.gr00t_memory [--device cuda] [block.key=value]`.

One rollout and one update of PPO with a full-size GR00T of random weights (bfloat16, frozen but for adapters in the
diffusion transformer) on a robot with one camera, 32 numbers and 7 actions. What counts
is the most memory in use from after the weights were made: on a GPU of torch's allocator, on a CPU of the process,
less what interpreter and libraries had before. Writes docs/results/gr00t_memory_{cuda,cpu}.json.
"""

import argparse
import dataclasses
import importlib
import shlex
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.runs import NO_EPISODES, RESULTS, write
from rl.config import load
from rl.envs.vector import cannot_save
from rl.models.gr00t import GR00TActorCritic
from rl.training import gr00t_memory
from rl.training.on_policy_phase import OnPolicyPhase
from rl.training.parallel_utils import ParallelContext
from rl.training.provenance import git_commit, machine
from rl.types import TensorTree, VectorStep

GB = 1e9
SETTINGS = (
    "gr00t.backend=stub", "gr00t.size=n1.7", "gr00t.dtype=bfloat16", "gr00t.stages=[dit]", "gr00t.lora_rank=16",
    "ppo.n_steps=2", "ppo.n_epochs=1", "ppo.minibatches=shuffled",
)  # fmt: skip


class Robot:
    """Random pictures and numbers; nothing depends on the actions."""

    max_episode_steps: int | None = None
    resumes_exactly = False

    def __init__(self, num_envs: int, device: torch.device) -> None:
        self.num_envs, self.device = num_envs, device
        self.observation_space, self.action_space = gr00t_memory.planned_robot()

    def reset(self, seed: int | None = None) -> TensorTree:
        numbers, camera = (self.observation_space[k].shape or () for k in ("state", "camera"))
        return {
            "state": torch.randn(self.num_envs, *numbers, device=self.device),
            "camera": torch.randint(256, (self.num_envs, *camera), dtype=torch.uint8, device=self.device),
        }

    def step(self, actions: torch.Tensor) -> VectorStep:
        seen, never = self.reset(), torch.zeros(self.num_envs, dtype=torch.bool, device=self.device)
        return VectorStep(seen, seen, torch.randn(self.num_envs, device=self.device), never, never, ~never, {})

    def state_dict(self) -> dict[str, Any]:
        raise cannot_save("random pictures")

    def load_state_dict(self, state: dict[str, Any]) -> TensorTree:
        raise cannot_save("random pictures")

    def close(self) -> None: ...


class Peak:
    """Most bytes in use since `begin`."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.libraries = status("VmRSS")

    def begin(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        else:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forgets the peak

    def read(self) -> int:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return host_peak() - self.libraries


def host_peak() -> int:
    """Most bytes of this process since `Peak.begin`, else since it began."""
    return status("VmHWM")


def status(name: str) -> int:
    """A size in bytes from what the kernel says of this process."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(name + ":")))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--num_envs", type=int, default=32, help="of the rollout; a minibatch has as many rows")
    parser.add_argument("overrides", nargs="*", help="block.key=value")
    args = parser.parse_args()
    cfg = load(
        None,
        [*SETTINGS, f"ppo.num_envs={args.num_envs}", f"ppo.minibatch_size={args.num_envs}",
         f"training.device={args.device}", *args.overrides],
        "rl",
    )  # fmt: skip
    ctx = ParallelContext.create(cfg.training)
    importlib.import_module("peft")  # so that it counts as a library
    peak, start = Peak(ctx.device), time.perf_counter()
    phase = OnPolicyPhase(cfg, Robot(args.num_envs, ctx.device), ctx, 1, unit="iteration")
    making = host_peak() - peak.libraries
    policy = phase.policy
    assert isinstance(policy, GR00TActorCritic)
    plan = gr00t_memory.report(policy, cfg, ctx.device)
    peak.begin()
    built = time.perf_counter() - start
    phase.collect(0)
    line = phase.update(1)
    seconds, measured = time.perf_counter() - start - built, peak.read()
    ctx.close()
    print("\n".join(plan.lines()))
    print(
        f"measured on {ctx.device}: {measured / GB:.2f} GB, {measured / plan.total:.2f} of the plan; "
        f"{making / GB:.2f} GB of the host while its weights were made; "
        f"{seconds:.0f} s for {cfg.ppo.n_steps} steps and as many minibatches of {args.num_envs}"
    )
    parameters = sum(p.numel() for p in phase.policy.parameters())
    write(
        RESULTS / f"gr00t_memory_{ctx.device.type}.json",
        {
            "algorithm": "PPO", "task": "random pictures", "seed": cfg.training.seed, **NO_EPISODES,
            "env_steps": cfg.ppo.n_steps * args.num_envs, "wall_seconds": seconds, "parameters": parameters,
            "planned_bytes": plan.total, "measured_bytes": measured, "making_bytes": making,
            "library_bytes": peak.libraries, "plan": dataclasses.asdict(plan),
            "approx_kl": line["approx_kl"], "machine": machine(), "code_commit": git_commit(),
            "command": f"python -m benchmarks.gr00t_memory {shlex.join(sys.argv[1:])}".strip(),
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
