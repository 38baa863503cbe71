"""The cheapest real training run, in processes of its own that kill themselves at a step of a save.

All phases and algorithms, killed at random moments: `harness.py` and `cases.py`.
"""

import json
import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.training import cli, train_arm
from rl.training.checkpoint import open_checkpoint
from tests.training import policy_runs

TIMED = ("_s", "_seconds", "memory_gb")  # endings of numbers that say how long or how much, not what was learned


@dataclass(frozen=True)
class Trainer:
    """`flags(place, *extra)` of a run with a checkpoint after every iteration, two kept."""

    phase: str
    main: Callable[[cli.Args], Any]
    flags: Callable[..., list[str]]


def _arm(algorithm: str, steps: int, each: int) -> Trainer:
    settings = (f"arm.save_every={each}", "arm.log_every=1", "arm.eval_every=1000000", "training.keep_checkpoints=2")
    quiet = ("logging.console_level=ERROR", "training.num_threads=1")
    return Trainer(
        "arm", train_arm.main,
        lambda place, *extra: policy_runs.flags(
            "arm", algorithm, place, "--steps", str(steps), *settings, *quiet, *extra
        ),
    )  # fmt: skip


TRAINERS = {"PPO": _arm("PPO", 640, 128)}


def _run(name: str, place: Path, fault: str | None, extra: tuple[str, ...], file_limit: int | None) -> None:
    """In a process of its own."""
    if file_limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if fault is not None:
        os.environ["FAULT_POINT"] = fault
    trainer = TRAINERS[name]
    cli.run_main(trainer.phase, trainer.main, [*trainer.flags(place, *extra), "--auto_resume"])


def run(
    name: str, place: Path, fault: str | None = None, *extra: str, timeout_s: float = 200, file_limit: int | None = None
) -> int:
    """Starts or continues a run in a process of its own: its exit code, -9 when it killed itself at `fault`.

    file_limit: bytes beyond which no file may grow.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rl.training.train_arm", "rl.training.train_rl", "rl.training.play", "pytest"])
    process = context.Process(target=_run, args=(name, place, fault, extra, file_limit))
    process.start()
    process.join(timeout_s)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"{name} did not end within {timeout_s} s")
    return process.exitcode


KILLED = -signal.SIGKILL


def outcome(place: Path) -> dict[str, Any]:
    """What must not depend on interruptions: hashes of the newest checkpoint's tensors, and the metrics."""
    saved = open_checkpoint(place)
    hashes = {f["name"]: f["sha256"] for f in saved.manifest["files"] if f["name"] not in ("metrics.pt",)}
    del hashes["training_state.pt"]  # it counts seconds
    lines = [json.loads(line) for line in (place / "episode_metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in line.items() if not k.endswith(TIMED)} for line in lines]
    return {"step": saved.step, "files": hashes, "metrics": metrics}
