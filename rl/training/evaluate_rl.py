"""`train.sh evaluate`: measures a checkpoint on held-out scenes, beside random actions in the same scenes."""

import json
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

from rl.config import HELD_OUT_SEED
from rl.suppress_logs import suppress_logs
from rl.training import cli, provenance
from rl.training.atomic_io import write_atomic
from rl.training.evaluation.acting import chosen_policy, find_actor, find_other_model, per_episode_file
from rl.training.evaluation.loading import load_run, weights_of
from rl.training.evaluation.measure import BASELINE, Measurement, Result
from rl.training.evaluation.output import comparison_table, episode_rows, measures_table, result_data
from rl.training.gpu import setup_sapien_gpu
from rl.training.logging_setup import setup_logging
from rl.training.parallel_utils import ParallelContext

log = logging.getLogger("rl.training.evaluate_rl")


def evaluate(args: cli.Args, ctx: ParallelContext) -> dict[str, Any]:
    """Measures, prints and writes; the result as JSON data. Everything is loaded before a simulator starts."""
    run = load_run(args.checkpoint, "--checkpoint", args, ctx.device, args.eval_phase)
    actor = find_actor(args, run, ctx.device)
    teacher = find_other_model(args, run, ctx.device)
    acting, e = chosen_policy(run.cfg, actor), run.cfg.evaluation
    measurement = Measurement(run, actor, acting, ctx)
    result = measurement.all(teacher)
    data = {
        "phase": run.phase, "checkpoint": run.saved.path.name, "weights": weights_of(run.saved),
        "actor": weights_of(actor.saved),
        "teacher": None if teacher is None else weights_of(teacher.saved), "seed": e.seed,
        "steps_per_episode": run.cfg.training.steps_per_episode,
        "command": "python -m rl.training.evaluate_rl " + shlex.join(provenance.redact(sys.argv[1:])),
        "machine": provenance.machine(), "versions": provenance.package_versions(), **result_data(result),
    }  # fmt: skip
    if e.video:
        assert args.json is not None
        data["videos"] = [
            str(p.relative_to(args.json.parent)) for p in measurement.videos(result, args.json.with_suffix(".videos"))
        ]
    measurement.close()
    show(result, data)
    if args.json is not None:
        write(args.json, result, data)
    return data


def show(result: Result, data: dict[str, Any]) -> None:
    acting = data["policy"]
    print(f"{data['checkpoint']} ({data['phase']}), {data['episodes']} held-out episodes, {acting} actions")
    print("mean [95 % interval over episodes]")
    print(measures_table(next(iter(result.policies.values()))))
    if result.against_baseline:
        print(f"\nthe same scenes with {BASELINE} actions, paired")
        print(comparison_table(result.against_baseline, acting, BASELINE))
    for whose, rows in result.against_teacher.items():
        print(f"\nthis world model against that of --teacher_checkpoint, states of {whose} actions")
        print(comparison_table(rows, "this", "teacher"))
    for note in result.notes:
        print(f"note: {note}")
    print(f"machine: {data['machine']}")


def write(path: Path, result: Result, data: dict[str, Any]) -> None:
    """The file of --json, and the numbers of single episodes beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in episode_rows(result))
    write_atomic(per_episode_file(path), lines)
    write_atomic(path, json.dumps(data, indent=1) + "\n")


def check(args: cli.Args) -> None:
    """Raises ValueError for what can be refused at once."""
    seed = args.config.evaluation.seed
    if seed < HELD_OUT_SEED:
        raise ValueError(f"evaluation.seed is {seed}; held-out seeds begin at {HELD_OUT_SEED}")
    if args.config.evaluation.video and args.json is None:
        raise ValueError("--video needs --json FILE: videos are written beside it")
    if args.json is not None and args.json.suffix != ".json":
        raise ValueError(f"--json {args.json}: the name must end in .json, numbers of episodes go to .jsonl beside it")


def main(args: cli.Args) -> None:
    check(args)
    setup_sapien_gpu()
    suppress_logs()
    ctx = ParallelContext.create(args.config.training)
    setup_logging(args.config.logging)
    evaluate(args, ctx)
    ctx.close()


if __name__ == "__main__":
    cli.run_main("evaluate", main)
