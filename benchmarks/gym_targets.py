"""Returns on gymnasium's classic tasks: `python -m benchmarks.gym_targets [--tasks CartPole-v1/PPO ...] [--seeds N]`.

Each run is a process of its own and leaves one JSON file under docs/results/gym_targets; what is there is not run
again, so the command can be stopped and given again. At the end docs/results/gym_targets.{md,json} are written.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from benchmarks.arm_targets import KEPT
from benchmarks.runs import RESULTS, publish, read, start, write
from rl.training import seed_intervals
from rl.training.provenance import machine

# Least mean return of the deterministic policy after the steps that the task's preset has (configs/task).
TARGETS = {"CartPole-v1/PPO": 500.0, "Pendulum-v1/SAC": -160.0, "Pendulum-v1/PPO": -200.0}


def run(name: str, seed: int, args: argparse.Namespace, place: Path) -> None:
    """One training run with its evaluation; `place` gets its numbers."""
    task, algorithm = name.split("/")
    directory = Path(args.runs).resolve() / place.stem
    measured = directory / "numbers.json"
    start(
        "rl.training.train_rl", "--task", task, "--algorithm", algorithm, "--seed", str(seed), "--output_dir",
        str(directory), "--auto_resume", "--json", str(measured), *args.overrides,
    )  # fmt: skip
    numbers = read(measured)
    write(place, {k: numbers[k] for k in KEPT})


def table(runs: dict[str, list[dict[str, Any]]]) -> str:
    lines = [
        "# Classic tasks: return of the deterministic policy",
        "",
        f"{next(iter(runs.values()))[0]['episodes']} evaluation episodes a seed. {seed_intervals.EXPLAINED}. "
        f"Machine: {machine()}.",
        "",
        "| task | algorithm | steps | target | mean return | each seed | steps/s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, own in runs.items():
        returns = [r["mean_return"] for r in own]
        rate = sum(r["steps_per_second"] for r in own) / len(own)
        lines.append(
            f"| {name.replace('/', ' | ')} | {own[0]['env_steps']} | {TARGETS[name]:.0f} | "
            f"{seed_intervals.of_return(own)} | {' '.join(f'{r:.1f}' for r in returns)} | {rate:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TARGETS), choices=list(TARGETS), metavar="TASK/ALGORITHM")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--runs", default="outputs/gym_targets")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--json", type=Path, default=None, help="instead of gym_targets.json in --results")
    parser.add_argument("overrides", nargs="*", help="block.key=value for every run")
    args = parser.parse_args()
    for name in args.tasks:
        for seed in range(args.seeds):
            place = place_of(args.results, name, seed)
            if not place.is_file():
                run(name, seed, args, place)
    found = {n: [place_of(args.results, n, s) for s in range(args.seeds)] for n in TARGETS}
    runs = {n: [read(p) for p in places if p.is_file()] for n, places in found.items()}
    runs = {n: own for n, own in runs.items() if own}
    summary = {"command": "python -m benchmarks.gym_targets " + " ".join(sys.argv[1:]), "machine": machine()}
    data = summary | {"targets": TARGETS, "runs": runs}
    json_file = args.json or args.results / "gym_targets.json"
    publish(args.results / "gym_targets.md", json_file, table(runs), data)


def place_of(results: Path, name: str, seed: int) -> Path:
    return results / "gym_targets" / f"{name.replace('/', '_').lower()}_seed{seed}.json"


if __name__ == "__main__":
    main()
