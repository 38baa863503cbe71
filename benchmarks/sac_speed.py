"""Gradient steps/s of SAC and FastSAC against Stable-Baselines3: `python -m benchmarks.sac_speed [--json FILE]`.

Same machine, threads, task (ArmReach, 32 environments), network sizes, batch and number of gradient steps for each
vector step; collecting included. Rows are measured in turn, several rounds, and the median counts, so that other work
on the machine meets all of them; "CPU" is the time of this process, which other work disturbs least. "update" leaves
collecting out; "times" is how many times faster than the peer.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import SAC as PEER
from stable_baselines3.common.vec_env import VecEnv

from rl import config as rl_config
from rl.config import CriticHead
from rl.envs.arm_reach import ArmReach
from rl.training.off_policy_phase import OffPolicyPhase
from rl.training.parallel_utils import ParallelContext

ENVS, UPDATES = 32, 4
COLUMNS = {"wall": "wall", "cpu": "CPU", "update_wall": "update wall", "update_cpu": "update CPU"}
ALGO = rl_config.CONFIG_DIR / "algo"


class PeerEnv(VecEnv):
    """ArmReach as the peer wants it: arrays, final observations in infos."""

    def __init__(self, num_envs: int) -> None:
        self.env = ArmReach(num_envs)
        super().__init__(num_envs, self.env.observation_space, self.env.action_space)

    def reset(self) -> Any:
        return self.env.reset().numpy()

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        step = self.env.step(torch.from_numpy(np.asarray(self.actions, np.float32)))
        infos: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for i in step.truncated.nonzero()[:, 0].tolist():
            infos[i] = {"TimeLimit.truncated": True, "terminal_observation": step.next_observation[i].numpy()}  # type: ignore[index]
        return step.observation.numpy(), step.reward.numpy(), step.truncated.numpy(), infos  # type: ignore[union-attr]

    def close(self) -> None: ...

    def get_attr(self, name: str, indices: Any = None) -> list[Any]:
        return [None] * self.num_envs

    def set_attr(self, name: str, value: Any, indices: Any = None) -> None: ...

    def env_method(self, name: str, *args: Any, indices: Any = None, **kwargs: Any) -> list[Any]:
        return [None] * self.num_envs

    def env_is_wrapped(self, wrapper: type[gym.Wrapper], indices: Any = None) -> list[bool]:
        return [False] * self.num_envs


Row = tuple[Callable[[int], None], Callable[[int], None]]  # so many vector steps; so many gradient steps alone


def ours(ctx: ParallelContext, preset: str, hidden: int, overrides: list[str]) -> Row:
    """`preset` with the common sizes."""
    cfg = rl_config.load(ALGO / f"{preset}.yaml", overrides)
    cfg.sac.num_envs, cfg.sac.updates_per_step, cfg.sac.buffer_size, cfg.sac.learning_starts = (
        ENVS,
        UPDATES,
        100_000,
        ENVS,
    )
    cfg.sac.network.actor_hidden = cfg.sac.network.critic_hidden = [hidden, hidden]
    phase = OffPolicyPhase(cfg, ArmReach(ENVS), ctx, 1_000_000)

    def run(steps: int) -> None:
        for _ in range(steps):
            phase.collect(0)
            phase.update(0)

    def update(count: int) -> None:
        for _ in range(count // UPDATES):
            phase.update(0)

    return run, update


def peer(hidden: int) -> Row:
    model = PEER(
        "MlpPolicy", PeerEnv(ENVS), policy_kwargs={"net_arch": [hidden, hidden]}, buffer_size=100_000, device="cpu",
        learning_starts=ENVS, train_freq=1, gradient_steps=UPDATES,
    )  # fmt: skip
    model.learn(2 * ENVS)
    return (
        lambda steps: model.learn(steps * ENVS, reset_num_timesteps=False) and None,
        lambda count: model.train(count, model.batch_size),
    )


def rows(ctx: ParallelContext, hidden: int, compiled: bool) -> dict[str, Row]:
    """By name; the peer first, with which the others are compared."""
    c51 = [f"sac.network.critic_head={CriticHead.c51.value}", "sac.network.v_min=-10", "sac.network.v_max=1"]
    scalar = [f"sac.network.critic_head={CriticHead.scalar.value}"]
    kinds = {
        "SAC": ("sac", []), "SAC C51": ("sac", c51), "SAC bf16": ("sac", ["sac.amp=true"]),
        "FastSAC": ("fastsac_reach", scalar), "FastSAC C51": ("fastsac_reach", []),
    }  # fmt: skip
    made = {"Stable-Baselines3 SAC": peer(hidden)}
    for name, (preset, overrides) in kinds.items():
        made[name] = ours(ctx, preset, hidden, overrides)
        if compiled:
            made[f"{name} compiled"] = ours(ctx, preset, hidden, [*overrides, "sac.compile=true"])
    return made


def timed(work: Callable[[int], None], count: int) -> tuple[float, float]:
    """Seconds on the clock and of CPU time."""
    start, used = time.perf_counter(), time.process_time()
    work(count)
    return time.perf_counter() - start, time.process_time() - used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--hidden", type=int, nargs="+", default=[128, 256], help="widths of two hidden layers")
    parser.add_argument("--steps", type=int, default=25, help="vector steps of a measurement")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no_compile", action="store_true", help="leave the compiled rows out")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    cfg = rl_config.load(overrides=["training.device=cpu", f"training.num_threads={args.threads}"])
    ctx = ParallelContext.create(cfg.training)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    print(f"{machine}, {args.threads} threads, torch {torch.__version__}")
    print(f"{'ms an update':<32}" + "".join(f"{name:>16} {'times':>6}" for name in COLUMNS.values()))
    results: list[dict[str, Any]] = []
    for hidden in args.hidden:
        made = rows(ctx, hidden, not args.no_compile)
        for run, _ in made.values():
            run(8)  # compiles, fills the replay
        seconds: dict[str, list[tuple[float, ...]]] = {name: [] for name in made}
        for _ in range(args.rounds):
            for name, (run, update) in made.items():
                seconds[name].append((*timed(run, args.steps), *timed(update, args.steps * UPDATES)))
        count, first = args.steps * UPDATES, None
        for name, pairs in seconds.items():
            costs = [1e3 * statistics.median(p[i] for p in pairs) / count for i in range(len(COLUMNS))]
            first = first or costs
            ratios = [f / c for f, c in zip(first, costs, strict=True)]
            cells = "".join(f"{c:>16.2f} {r:>6.2f}" for c, r in zip(costs, ratios, strict=True))
            print(f"{hidden:>7} {name:<24}{cells}")
            numbers = {f"{key}_ms": c for key, c in zip(COLUMNS, costs, strict=True)}
            numbers |= {f"{key}_speedup": r for key, r in zip(COLUMNS, ratios, strict=True)}
            results.append({"hidden": hidden, "name": name, "updates_per_second": 1e3 / costs[0], **numbers})
    ctx.close()
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        text = {"machine": machine, "threads": args.threads, "seed": args.seed, "num_envs": ENVS, "rows": results}
        args.json.write_text(json.dumps(text, indent=2) + "\n")


if __name__ == "__main__":
    main()
