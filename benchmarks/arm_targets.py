"""Success of every algorithm on arm reaching: `python -m benchmarks.arm_targets [--seeds N] [--vision]`.

Each run is a process of its own and leaves one JSON file under docs/results/arm_targets; what is there is not run
again, so the command can be stopped and given again. At the end docs/results/arm_targets.{md,json} are written.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from benchmarks.runs import REPO, RESULTS, publish, read, start, write
from rl.config import ALGORITHMS
from rl.training import seed_intervals
from rl.training.provenance import machine

TARGETS = {"FASTSAC": 0.97, "SAC": 0.95, "PPO": 0.90, "DIT": 0.90, "A2C": 0.65}
VISION_TARGETS = {"PPO": 0.60}
KEPT = ("algorithm", "task", "seed", "env_steps", "episodes", "success_rate", "success_interval", "mean_return",
        "return_std", "steps_per_second", "training_seconds", "wall_seconds", "curve", "machine", "code_commit",
        "command")  # fmt: skip


def run(algorithm: str, seed: int, args: argparse.Namespace, place: Path) -> None:
    """One training run with its evaluation; `place` gets its numbers."""
    name = f"{'vision_' if args.vision else ''}{algorithm.lower()}_seed{seed}"
    directory = Path(args.runs) / name
    measured = directory / "numbers.json"
    start(
        "rl.training.train_arm", "--algorithm", algorithm, "--steps", str(args.steps), "--seed", str(seed),
        "--output_dir", str(directory), "--auto_resume", "--json", str(measured),
        f"arm.final_episodes={args.episodes}", *(["--vision"] if args.vision else []), *args.overrides,
    )  # fmt: skip
    numbers = read(REPO / measured)
    write(place, {k: numbers[k] for k in KEPT})


def table(runs: list[dict[str, Any]], targets: dict[str, float]) -> str:
    """One row an algorithm: its mean over seeds, with the interval of `seed_intervals`."""
    first = runs[0]
    lines = [
        f"# {first['task']}: deterministic policy after {first['env_steps']} environment steps",
        "",
        f"{first['episodes']} evaluation episodes a seed, fresh ones. {seed_intervals.EXPLAINED}. "
        f"Machine: {first['machine']}.",
        "",
        "| algorithm | target | success, mean over seeds [95 %] | interval over | each seed | steps/s | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for algorithm in targets:
        own = [r for r in runs if r["algorithm"] == algorithm]
        if not own:
            continue
        rate, seconds = (sum(r[k] for r in own) / len(own) for k in ("steps_per_second", "wall_seconds"))
        seeds = " ".join(f"{r['success_rate']:.3f}" for r in own)
        lines.append(
            f"| {algorithm} | {targets[algorithm]:.2f} | {seed_intervals.of_success(own)} | "
            f"{seed_intervals.basis(own)} | {seeds} | {rate:.0f} | {seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithms", nargs="+", default=None, choices=ALGORITHMS)
    parser.add_argument("--seeds", type=int, default=None, help="default 5; 3 for DIT and with --vision")
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--episodes", type=int, default=1000)
    parser.add_argument("--vision", action="store_true")
    parser.add_argument("--runs", default="outputs/arm_targets", help="directory of the runs, from the repository")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--json", type=Path, default=None, help="instead of arm_targets.json in --results")
    parser.add_argument("overrides", nargs="*", help="block.key=value for every run")
    args = parser.parse_args()

    targets = VISION_TARGETS if args.vision else TARGETS
    name = "arm_targets_vision" if args.vision else "arm_targets"
    for algorithm in args.algorithms or targets:
        few = args.vision or algorithm == "DIT"
        for seed in range(args.seed, args.seed + (args.seeds or (3 if few else 5))):
            place = args.results / name / f"{algorithm.lower()}_seed{seed}.json"
            if not place.is_file():
                run(algorithm, seed, args, place)
    runs = [read(p) for p in sorted((args.results / name).glob("*.json"))]
    summary = {
        "command": "python -m benchmarks.arm_targets " + " ".join(sys.argv[1:]), "machine": machine(),
        "load": os.getloadavg()[0], "runs": runs,
    }  # fmt: skip
    publish(args.results / f"{name}.md", args.json or args.results / f"{name}.json", table(runs, targets), summary)


if __name__ == "__main__":
    main()
