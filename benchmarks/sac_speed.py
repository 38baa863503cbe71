"""Gradient steps/s of SAC and FastSAC against Stable-Baselines3: `python -m benchmarks.sac_speed [--json FILE]`.

Same machine, threads, task (ArmReach), environments, network sizes, batch and number of gradient steps for each vector
step; collecting included. Rows are measured in turn, several rounds, and the median counts, so that other work on the
machine meets all of them; "CPU" is the time of this process, which other work disturbs least. "update" leaves
collecting out; "times" is how many times faster than the peer.
For a GPU: `--device cuda --num_envs 4096 16384 --batch_size 8192 --hidden 256`. The file of --json is written after
each part of the table.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import SAC as PEER
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.runs import NO_EPISODES, write
from rl import config as rl_config
from rl.config import CriticHead
from rl.envs.arm_reach import ArmReach
from rl.training.off_policy_phase import OffPolicyPhase
from rl.training.parallel_utils import ParallelContext
from rl.training.provenance import git_commit, machine

UPDATES = 4  # gradient steps for each vector step
COLUMNS = {"wall": "wall", "cpu": "CPU", "update_wall": "update wall", "update_cpu": "update CPU"}
ALGO = rl_config.CONFIG_DIR / "algo"


class PeerEnv(VecEnv):
    """ArmReach as the peer wants it: arrays, final observations in infos."""

    def __init__(self, num_envs: int, device: str) -> None:
        self.env = ArmReach(num_envs, device)
        super().__init__(num_envs, self.env.observation_space, self.env.action_space)

    def reset(self) -> Any:
        return self.env.reset().cpu().numpy()

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        step = self.env.step(torch.from_numpy(np.asarray(self.actions, np.float32)).to(self.env.device))
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        last, truncated = step.next_observation.cpu().numpy(), step.truncated.cpu().numpy()  # type: ignore[union-attr]
        for i in truncated.nonzero()[0].tolist():
            infos[i] = {"TimeLimit.truncated": True, "terminal_observation": last[i]}
        return step.observation.cpu().numpy(), step.reward.cpu().numpy(), truncated, infos  # type: ignore[union-attr]

    def close(self) -> None: ...

    def get_attr(self, name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, name: str, value: Any, indices: Any = None) -> None: ...

    def env_method(self, name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


Row = tuple[Callable[[int], None], Callable[[int], None]]  # so many vector steps; so many gradient steps alone


@dataclass(frozen=True)
class Setting:
    """What all rows of a table share."""

    num_envs: int
    hidden: int
    batch_size: int
    device: str

    @property
    def buffer_size(self) -> int:
        return max(100_000, 64 * self.num_envs)


def ours(ctx: ParallelContext, preset: str, setting: Setting, overrides: list[str]) -> Row:
    """`preset` with the common sizes."""
    cfg = rl_config.load(ALGO / f"{preset}.yaml", overrides)
    sac, net = cfg.sac, cfg.sac.network
    sac.num_envs, sac.updates_per_step, sac.buffer_size = setting.num_envs, UPDATES, setting.buffer_size
    sac.learning_starts, sac.batch_size = setting.num_envs, setting.batch_size
    net.actor_hidden = net.critic_hidden = [setting.hidden, setting.hidden]
    phase = OffPolicyPhase(cfg, ArmReach(setting.num_envs, ctx.device), ctx, 1_000_000)

    def run(steps: int) -> None:
        for _ in range(steps):
            phase.collect(0)
            phase.update(0)

    def update(count: int) -> None:
        for _ in range(count // UPDATES):
            phase.update(0)

    return run, update


def peer(setting: Setting) -> Row:
    N = setting.num_envs
    model = PEER(
        "MlpPolicy", PeerEnv(N, setting.device), policy_kwargs={"net_arch": [setting.hidden, setting.hidden]},
        buffer_size=setting.buffer_size, batch_size=setting.batch_size, device=setting.device, learning_starts=N,
        train_freq=1, gradient_steps=UPDATES,
    )  # fmt: skip
    model.learn(2 * N)
    return (
        lambda steps: model.learn(steps * N, reset_num_timesteps=False) and None,
        lambda count: model.train(count, model.batch_size),
    )


def rows(ctx: ParallelContext, setting: Setting, compiled: bool, only: list[str] | None) -> dict[str, Row]:
    """By name; the peer first, with which the others are compared. ValueError for an unknown name in `only`."""
    c51 = [f"sac.network.critic_head={CriticHead.c51.value}", "sac.network.v_min=-10", "sac.network.v_max=1"]
    scalar = [f"sac.network.critic_head={CriticHead.scalar.value}"]
    kinds = {
        "SAC": ("sac", []), "SAC C51": ("sac", c51), "SAC bf16": ("sac", ["sac.amp=true"]),
        "FastSAC": ("fastsac_reach", scalar), "FastSAC C51": ("fastsac_reach", []),
        "FastSAC bf16": ("fastsac_reach", [*scalar, "sac.amp=true"]),
        "FastSAC C51 bf16": ("fastsac_reach", ["sac.amp=true"]),
    }  # fmt: skip
    modes = {"": []} | ({" compiled": ["sac.compile=true"]} if compiled else {})
    if compiled and ctx.device.type == "cuda":
        modes[" CUDA graphs"] = ["sac.compile=true", "sac.compile_mode=cuda_graphs"]
    wanted = {
        f"{name}{mode}": (preset, [*overrides, *extra])
        for name, (preset, overrides) in kinds.items()
        for mode, extra in modes.items()
    }
    if unknown := set(only or ()) - set(wanted):
        raise ValueError(f"no rows {sorted(unknown)}; there are {', '.join(wanted)}")
    made = {"Stable-Baselines3 SAC": peer(setting)}
    return made | {n: ours(ctx, p, setting, o) for n, (p, o) in wanted.items() if only is None or n in only}


def timed(work: Callable[[int], None], count: int) -> tuple[float, float]:
    """Seconds on the clock and of CPU time."""
    start, used = time.perf_counter(), time.process_time()
    work(count)
    return time.perf_counter() - start, time.process_time() - used


def table(made: dict[str, Row], args: argparse.Namespace, setting: Setting) -> list[dict[str, Any]]:
    """Measures, prints a line a row and returns their numbers."""
    for run, _ in made.values():
        run(8)  # compiles, fills the replay
    seconds: dict[str, list[tuple[float, ...]]] = {name: [] for name in made}
    for _ in range(args.rounds):
        for name, (run, update) in made.items():
            seconds[name].append((*timed(run, args.steps), *timed(update, args.steps * UPDATES)))
    count, first = args.steps * UPDATES, None
    results = []
    for name, pairs in seconds.items():
        costs = [1e3 * statistics.median(p[i] for p in pairs) / count for i in range(len(COLUMNS))]
        first = first or costs
        ratios = [f / c for f, c in zip(first, costs, strict=True)]
        cells = "".join(f"{c:>16.2f} {r:>6.2f}" for c, r in zip(costs, ratios, strict=True))
        print(f"{setting.num_envs:>7} {setting.hidden:>5} {name:<24}{cells}")
        numbers = {f"{key}_ms": c for key, c in zip(COLUMNS, costs, strict=True)}
        numbers |= {f"{key}_speedup": r for key, r in zip(COLUMNS, ratios, strict=True)}
        measured = {
            "name": name, "algorithm": "FASTSAC" if "Fast" in name else "SAC", "task": "ArmReach-v1",
            "seed": args.seed, "env_steps": setting.num_envs * args.steps * args.rounds,
            "wall_seconds": sum(p[0] for p in pairs), "updates_per_second": 1e3 / costs[0],
            "steps_per_second": 1e3 * setting.num_envs / UPDATES / costs[0],
        }  # fmt: skip
        results.append({**vars(setting), **measured, **numbers, **NO_EPISODES})
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--num_envs", type=int, nargs="+", default=[32])
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 256], help="widths of two hidden layers")
    parser.add_argument("--steps", type=int, default=25, help="vector steps of a measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no_compile", action="store_true", help="leave the compiled rows out")
    parser.add_argument("--only", nargs="+", help="rows to measure beside the peer, by name")
    args = parser.parse_args()
    # All rows compile the same two functions, each with settings of its own: by default PyTorch keeps 8 and then falls
    # back to eager mode.
    torch._dynamo.config.recompile_limit = 64
    torch.manual_seed(args.seed)
    cfg = rl_config.load(overrides=[f"training.device={args.device}", f"training.num_threads={args.threads}"])
    ctx = ParallelContext.create(cfg.training)
    print(f"{machine()}, {args.threads} threads, load {os.getloadavg()[0]:.1f}")
    print(f"{'ms an update':<38}" + "".join(f"{name:>16} {'times':>6}" for name in COLUMNS.values()))
    result: dict[str, Any] = {
        "machine": machine(), "threads": args.threads, "seed": args.seed, "code_commit": git_commit(), "rows": [],
    }  # fmt: skip
    for num_envs in args.num_envs:
        for hidden in args.hidden:
            setting = Setting(num_envs, hidden, args.batch_size, args.device)
            result["rows"] += table(rows(ctx, setting, not args.no_compile, args.only), args, setting)
            if args.json is not None:
                write(args.json, result)
    ctx.close()


if __name__ == "__main__":
    main()
