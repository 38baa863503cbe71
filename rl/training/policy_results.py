"""What a finished run of arm or rl says: final evaluation, result file, exported policy."""

import json
import logging
import shlex
import sys
from pathlib import Path
from typing import Any

from rl import config as rl_config
from rl.training import cli, policies, policy_export, provenance
from rl.training.atomic_io import write_atomic
from rl.training.policy_phase import PolicyPhase
from rl.training.run_dir import RunDir

log = logging.getLogger(__name__)
RESULT = "result.json"


def finish(args: cli.Args, phase: PolicyPhase, run: RunDir) -> None:
    """Rank 0: measures the final policy on fresh episodes, exports when asked to, writes result.json (and --json).

    There `training_seconds` is the time of collecting and learning, and `steps_per_second` environment steps over
    that; `wall_seconds` is all the time the run took (`PolicyPhase.wall_seconds`).
    """
    if not phase.ctx.is_main:
        return
    block = rl_config.policy_run(args.config, args.phase)
    phase.evaluate_here()  # done already, unless an older version trained this run or its total was lowered
    numbers = phase.evaluation(block.final_episodes, block.eval_seed + 1).numbers()
    exported = None
    if block.export:
        exported = policy_export.export(policies.exportable(phase.inner), phase.inner.env, run.path / "export")
    result = {
        "algorithm": block.algorithm, "task": rl_config.task_of(args.config, args.phase),
        "seed": args.config.training.seed, "env_steps": phase.env_steps, **numbers,
        "steps_per_second": phase.env_steps / max(phase.training_seconds, 1e-9),
        "training_seconds": phase.training_seconds, "wall_seconds": phase.wall_seconds, "best": phase.best,
        "curve": phase.curve, "run": str(run.path.name), "machine": provenance.machine(),
        "code_commit": provenance.git_commit(),
        "command": f"python -m rl.training.train_{args.phase} " + shlex.join(provenance.redact(sys.argv[1:])),
    }  # fmt: skip
    if exported is not None:
        result["export"] = exported
    write_atomic(run.path / RESULT, json.dumps(result, indent=1) + "\n")
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.json, json.dumps(result, indent=1) + "\n")
    print(sentence(result))


def sentence(result: dict[str, Any]) -> str:
    """The result in one line."""
    measured = f"return {result['mean_return']:.2f}"
    if result["success_rate"] is not None:
        low, high = result["success_interval"]
        measured = f"success {result['success_rate']:.3f} [{low:.3f}, {high:.3f}], {measured}"
    head = f"{result['algorithm']} on {result['task']}, seed {result['seed']}: {measured}"
    rate = f"{result['training_seconds']:.1f} s of training ({result['steps_per_second']:.0f} steps/s)"
    cost = f"{result['env_steps']} steps in {rate}, {result['wall_seconds']:.1f} s in all"
    return f"{head} over {result['episodes']} episodes after {cost}"


def read(run: Path) -> dict[str, Any] | None:
    """result.json of a run that is done, else None."""
    path = run / RESULT
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
