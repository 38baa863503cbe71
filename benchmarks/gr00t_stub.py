"""PPO with GR00T's stub as actor-critic learns to reach: `python -m benchmarks.gr00t_stub [--seeds N]`.

The preset `gr00t_stub` has all that a released model would go through: a frozen backbone, stages that begin to train
one after another, adapters, chunks by flow matching with one random denoising step. The weights are random ones, so
this says that the path learns, not how well GR00T does.

Each seed is a process of its own and leaves one JSON file under docs/results/gr00t_stub; what is there is not run
again, so the command can be stopped and given again. At the end docs/results/gr00t_stub.{md,json} are written.
"""

import argparse
import shlex
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.runs import REPO, RESULTS, publish, read, start, write
from rl.config import intervals, load, policy_run
from rl.training.parallel_utils import ParallelContext
from rl.training.policy_phase import PolicyPhase
from rl.training.provenance import machine

KEPT = ("algorithm", "task", "seed", "env_steps", "episodes", "success_rate", "success_interval", "mean_return",
        "return_std", "steps_per_second", "training_seconds", "wall_seconds", "curve", "machine", "code_commit",
        "command")  # fmt: skip
MEASURED = ("success_rate", "success_interval", "mean_return", "return_std")


def settings(args: argparse.Namespace, seed: int) -> list[str]:
    """Of the training and of the measurement before it."""
    return [
        "arm.algorithm=PPO", "arm.preset=gr00t_stub", f"arm.steps={args.steps}", f"training.seed={seed}",
        f"arm.final_episodes={args.episodes}", f"arm.eval_every={args.steps // 6}", "training.device=cpu",
        "training.num_threads=1", *args.overrides,
    ]  # fmt: skip


def untrained(run: str, overrides: list[str]) -> dict[str, Any]:
    """The deterministic policy of `run` (arm or rl) before any update, on the episodes that the trained one is measured
    on."""
    cfg = load(None, overrides, run)
    block = policy_run(cfg, run)
    ctx = ParallelContext.create(cfg.training)
    with tempfile.TemporaryDirectory() as place:
        phase = PolicyPhase(cfg, run, ctx, intervals(cfg, run).total, Path(place))
        numbers = phase.evaluation(block.final_episodes, block.eval_seed + 1).numbers()
        phase.close()
    ctx.close()
    return {k: numbers[k] for k in MEASURED}


def run(args: argparse.Namespace, seed: int, place: Path) -> None:
    """One training run; `place` gets its numbers."""
    directory = Path(args.runs) / f"seed{seed}"
    measured = directory / "numbers.json"
    start(
        "rl.training.train_arm", "--output_dir", str(directory), "--auto_resume", "--json", str(measured),
        f"arm.save_every={args.steps // 6}", *settings(args, seed),
    )  # fmt: skip
    found = read(REPO / measured)
    write(place, {**{k: found[k] for k in KEPT}, "untrained": untrained("arm", settings(args, seed))})


def table(runs: list[dict[str, Any]]) -> str:
    """One row a seed: before, on the way, after."""
    first = runs[0]
    lines = [
        f"# ArmReach-v1, PPO with GR00T's stub: deterministic policy before and after {first['env_steps']} steps",
        "",
        f"{first['episodes']} fresh episodes, the same before and after. Machine: {first['machine']}.",
        "",
        "| seed | return untrained | return on the way | return trained | success untrained | success trained |",
        "|---|---|---|---|---|---|",
    ]
    for r in runs:
        low, high = r["success_interval"]
        way = " ".join(f"{e['mean_return']:.1f}" for e in r["curve"])
        lines.append(
            f"| {r['seed']} | {r['untrained']['mean_return']:.1f} | {way} | {r['mean_return']:.1f} | "
            f"{r['untrained']['success_rate']:.3f} | {r['success_rate']:.3f} [{low:.3f}, {high:.3f}] |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--steps", type=int, default=49_152)
    parser.add_argument("--episodes", type=int, default=500)
    parser.add_argument("--runs", default="outputs/gr00t_stub", help="directory of the runs, from the repository")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("overrides", nargs="*", help="block.key=value for every run")
    args = parser.parse_args()
    for seed in range(args.seed, args.seed + args.seeds):
        place = args.results / "gr00t_stub" / f"seed{seed}.json"
        if not place.is_file():
            run(args, seed, place)
    files = sorted((args.results / "gr00t_stub").glob("*.json"))
    runs = [read(p) for p in files]
    summary = {"command": f"python -m benchmarks.gr00t_stub {shlex.join(sys.argv[1:])}".strip(), "machine": machine(),
               "runs": runs}  # fmt: skip
    publish(args.results / "gr00t_stub.md", args.results / "gr00t_stub.json", table(runs), summary)


if __name__ == "__main__":
    main()
