"""Speed and memory of the default simulator: `python -m benchmarks.sim_speed [--json FILE] [--seed N]`.

Environment steps per second in one process with both cameras drawn at every step, through the whole environment
(physics, two pictures, histories, state, autoreset), and the slope of the resident memory over many resets.
"""

import argparse
import json
import os
import platform
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from rl.config import EnvironmentConfig
from rl.sims import make_simulator
from rl.vec_env import make_vector_env


def step_rate(size: int, num_envs: int, steps: int, seed: int, device: str) -> dict[str, float]:
    """Environment steps/s over `steps` steps per environment after one warm-up episode."""
    config = replace(EnvironmentConfig(), vlm_size=size, wm_size=size)
    envs = make_vector_env(config, "teacher", num_envs, seed=seed, max_steps=50, device=device)
    envs.reset()
    rng = np.random.default_rng(seed)
    actions = rng.uniform(-1, 1, (steps, num_envs, 32)).astype(np.float32)
    for t in range(50):
        envs.step(actions[t % steps])
    wall, cpu = time.perf_counter(), time.process_time()
    for t in range(steps):
        envs.step(actions[t])
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    envs.close()
    return {"steps_per_s": num_envs * steps / wall, "cpu_ms_per_step": 1e3 * cpu / (num_envs * steps)}


def memory_slope(resets: int, scene_reset_interval: int, seed: int) -> dict[str, float]:
    """Growth of resident memory over the last two thirds of `resets`, each followed by a step and two pictures."""
    sim = make_simulator(replace(EnvironmentConfig(), scene_reset_interval=scene_reset_interval), seed=seed)
    process, memory = psutil.Process(), []
    for episode in range(resets):
        sim.reset(episode)
        sim.step(np.zeros(sim.action_dim))
        sim.render("head")
        sim.render("wrist")
        memory.append(process.memory_info().rss)
    sim.close()
    tail = memory[resets // 3 :]
    return {
        "kb_per_reset": float(np.polyfit(np.arange(len(tail)), tail, 1)[0]) / 1e3,
        "first_mb": memory[0] / 1e6,
        "last_mb": memory[-1] / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400, help="measured steps per environment")
    parser.add_argument("--resets", type=int, default=300)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 224], help="px of both cameras")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda:i to draw on that GPU")
    args = parser.parse_args()

    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
    result: dict[str, Any] = {"machine": machine, "seed": args.seed, "speed": [], "memory": []}
    print(machine)
    print(f"{'px':>5} {'envs':>5} {'steps/s':>9} {'CPU ms/step':>12}")
    for size, num_envs in [(s, 1) for s in args.sizes] + [(args.sizes[0], 4)]:
        row = step_rate(size, num_envs, args.steps, args.seed, args.device)
        result["speed"].append({"size": size, "num_envs": num_envs, **row})
        print(f"{size:>5} {num_envs:>5} {row['steps_per_s']:>9.0f} {row['cpu_ms_per_step']:>12.2f}")
    print(f"{'episodes per scene':>19} {'resets':>7} {'kB/reset':>9} {'first MB':>9} {'last MB':>8}")
    for interval in (1, 50):
        row = memory_slope(args.resets, interval, args.seed)
        result["memory"].append({"scene_reset_interval": interval, "resets": args.resets, **row})
        megabytes = f"{row['first_mb']:>9.0f} {row['last_mb']:>8.0f}"
        print(f"{interval:>19} {args.resets:>7} {row['kb_per_reset']:>9.1f} {megabytes}")
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
