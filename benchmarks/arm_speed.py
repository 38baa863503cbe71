"""Speed of ArmReach alone: `python -m benchmarks.arm_speed [--json FILE] [--seed N] [--device cpu]`.

Environment steps per second in one process with precomputed random actions; no policy, no learning. The file of --json
is written after each number of environments.
"""

import argparse
import os
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.runs import NO_EPISODES, write
from rl.envs.arm_reach import ArmReach
from rl.training.provenance import git_commit, machine


def step_rate(num_envs: int, steps: int, repeats: int, seed: int, device: str) -> dict[str, float]:
    """Median and best (steps/s) of `repeats` measurements of `steps` vector steps each, after 150 for warming up; and
    `env_steps` and `wall_seconds` of all of them."""
    env = ArmReach(num_envs, device, seed=seed)
    env.reset()
    generator = torch.Generator().manual_seed(seed)
    actions = [(torch.rand(num_envs, 7, generator=generator) * 2 - 1).to(device) for _ in range(16)]
    for t in range(150):
        env.step(actions[t % 16])
    seconds = []
    for _ in range(repeats):
        _wait(env.device)
        start = time.perf_counter()
        for t in range(steps):
            env.step(actions[t % 16])
        _wait(env.device)
        seconds.append(time.perf_counter() - start)
    rates = sorted(num_envs * steps / s for s in seconds)
    return {
        "median": rates[len(rates) // 2], "best": rates[-1], "env_steps": num_envs * steps * repeats,
        "wall_seconds": sum(seconds),
    }  # fmt: skip


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1, help="of torch on the CPU; more do not help below 16,384")
    parser.add_argument("--steps", type=int, default=1000, help="measured vector steps")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--num_envs", type=int, nargs="+", default=[64, 1024, 4096, 16384])
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    result: dict[str, Any] = {
        "machine": machine(), "load": os.getloadavg()[0], "threads": torch.get_num_threads(), "device": args.device,
        "seed": args.seed, "code_commit": git_commit(), "speed": [],
    }  # fmt: skip
    print(f"{result['machine']}, {result['threads']} threads, load {result['load']:.1f}")
    print(f"{'environments':>12} {'steps/s, median':>16} {'best':>12}")
    for num_envs in args.num_envs:
        row = step_rate(num_envs, args.steps, args.repeats, args.seed, args.device)
        what = {"algorithm": None, "task": "ArmReach-v1", "seed": args.seed, "num_envs": num_envs}
        result["speed"].append({**what, "steps_per_second": row["median"], **row, **NO_EPISODES})
        print(f"{num_envs:>12} {row['median']:>16,.0f} {row['best']:>12,.0f}")
        if args.json is not None:
            write(args.json, result)


if __name__ == "__main__":
    main()
