"""What our presets learn on Isaac Lab tasks: the deterministic policy before, on the way and after.

    .venv-isaaclab/bin/python -m benchmarks.isaac_learning

Every run is a process of its own (one simulator each), goes on where it was stopped and leaves one JSON file under
docs/results/isaac_learning; what is there is not run again. docs/results/isaac_learning.{md,json} are written last.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from benchmarks.gr00t_stub import KEPT, untrained
from benchmarks.runs import REPO, RESULTS, publish, read, start, write
from rl.training.provenance import machine

# As long as the presets say, which are for a CPU.
RUNS = {
    "ant_ppo": ("Isaac-Ant-Direct", "PPO"),
    "ant_fastsac": ("Isaac-Ant-Direct", "FASTSAC"),
    "cartpole_fastsac": ("Isaac-Cartpole-Direct", "FASTSAC"),
    "reach_ppo": ("Isaac-Reach-Franka", "PPO"),
    "reach_fastsac": ("Isaac-Reach-Franka", "FASTSAC"),
}  # fmt: skip


def settings(name: str, args: argparse.Namespace) -> list[str]:
    task, algorithm = RUNS[name]
    return [
        f"rl.task={task}", f"rl.algorithm={algorithm}", f"rl.final_episodes={args.episodes}",
        f"rl.eval_episodes={args.episodes}", f"training.seed={args.seed}", "training.device=cpu",
        "training.num_threads=1", *args.overrides,
    ]  # fmt: skip


def run(name: str, args: argparse.Namespace, place: Path) -> None:
    """Both processes of one result."""
    directory = Path(args.runs) / f"{name}_seed{args.seed}"
    before, after = directory / "untrained.json", directory / "numbers.json"
    start(
        "rl.training.train_rl", "--output_dir", str(directory), "--auto_resume", "--json", str(after),
        *settings(name, args),
    )  # fmt: skip
    start(
        "benchmarks.isaac_learning", "--untrained", name, "--json", str(before), "--seed", str(args.seed),
        "--episodes", str(args.episodes), *args.overrides,
    )  # fmt: skip
    found, first = read(REPO / after), read(REPO / before)
    write(place, {"name": name, **{k: found[k] for k in KEPT}, "untrained": first})


def table(runs: list[dict[str, Any]]) -> str:
    lines = [
        "# Isaac Lab: our presets, return of the deterministic policy", "",
        f"256 environments, one core, our own robots. Machine: {runs[0]['machine']}. Steps/s and minutes are of a busy "
        "machine.", "",
        "| task | algorithm | steps | untrained | on the way | trained | minutes |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for r in runs:
        way = " ".join(f"{e['mean_return']:.2f}" for e in r["curve"])
        lines.append(
            f"| {r['task']} | {r['algorithm']} | {r['env_steps']:,} | {r['untrained']['mean_return']:.2f} | {way} | "
            f"{r['mean_return']:.2f} | {r['wall_seconds'] / 60:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=RUNS, default=list(RUNS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--episodes", type=int, default=256, help="of a measurement; at least one an environment")
    parser.add_argument("--runs", default="outputs/isaac_learning", help="directory of the runs, from the repository")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--untrained", choices=RUNS, help="only measure this policy before training, to --json")
    parser.add_argument("--json", type=Path)
    parser.add_argument("overrides", nargs="*", help="block.key=value for every run")
    args = parser.parse_args()
    if args.untrained is not None:
        write(args.json, untrained("rl", settings(args.untrained, args)))
        return
    folder = args.results / "isaac_learning"
    for name in args.only:
        place = folder / f"{name}_seed{args.seed}.json"
        if not place.is_file():
            run(name, args, place)
    runs = [read(p) for p in sorted(folder.glob("*.json"))]
    command = f"python -m benchmarks.isaac_learning {shlex.join(sys.argv[1:])}".strip()
    data = {"command": command, "machine": machine(), "runs": runs}
    publish(args.results / "isaac_learning.md", args.results / "isaac_learning.json", table(runs), data)


if __name__ == "__main__":
    main()
