"""How fast does phase 2 collect, and on what? `python -m benchmarks.student_speed --teacher DIR [--envs 1 2 8]`.

Iterations of eight episodes at every number of environments; the policy acts for all environments of a process at once.
The first iteration warms up and is not counted. Writes docs/results/student_speed.{md,json}.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runs import parsed, publish, start
from rl.training.provenance import machine

EPISODES = 8  # of an iteration, over all environments
RATE = "student/env_steps_per_s"


def measure(args: argparse.Namespace, envs: int, place: Path) -> dict[str, Any]:
    """Medians over iterations: environment steps a second while collecting, and seconds of each part."""
    start(
        "rl.training.train_student_rl", "--teacher_path", args.teacher, "--output_dir", str(place), "--num_envs",
        str(envs), "--num_episodes", str(EPISODES * (args.iterations + 1)), "--mixed_precision", args.precision,
        f"student.episodes_per_iteration={EPISODES // envs}", f"training.num_threads={args.threads}",
        "training.save_every=1000000", "training.video_save_every=0", "training.sample_save_every=0",
    )  # fmt: skip
    text = (place / "episode_metrics.jsonl").read_text(encoding="utf-8")
    lines = [json.loads(line) for line in text.splitlines()][1:]
    names = [n for n in lines[0] if n.startswith("student/time_")]
    parts = {n.removeprefix("student/time_")[:-2]: float(np.median([x[n] for x in lines])) for n in names}
    return {"envs": envs, "env_steps_per_s": float(np.median([x[RATE] for x in lines])), "seconds": parts}


def table(rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    parts = list(rows[0]["seconds"])
    out = [
        "# Speed of phase 2",
        "",
        f"One process, {args.threads} threads, {args.precision}; seconds of an iteration of {EPISODES} episodes, by "
        f"part (median of {args.iterations}). `update` is PPO, on cached prefixes. Machine: {machine()}.",
        "",
        f"| environments | env steps/s of collection | {' | '.join(parts)} |",
        "|---" * (len(parts) + 2) + "|",
    ]
    for row in rows:
        seconds = " | ".join(f"{row['seconds'][p]:.2f}" for p in parts)
        out.append(f"| {row['envs']} | {row['env_steps_per_s']:.1f} | {seconds} |")
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--envs", type=int, nargs="+", default=[1, 2, 8], help=f"divisors of {EPISODES}")
    parser.add_argument("--iterations", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", default="bf16")
    args, place = parsed(parser, "student_speed")
    with tempfile.TemporaryDirectory() as runs:
        rows = [measure(args, envs, Path(runs) / str(envs)) for envs in args.envs]
    data = {"command": vars(args), "machine": machine(), "runs": rows}
    publish(place.with_suffix(".md"), place, table(rows, args), data)


if __name__ == "__main__":
    main()
