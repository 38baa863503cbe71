"""`train.sh watch RUN`: what a run is doing, from its status file and its last line of metrics."""

import argparse
import json
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

from rl.training.checkpoint_files import checkpoint_dirs
from rl.training.errors import EXIT_CONFIG, EXIT_NUMERICAL, EXIT_OK, EXIT_PREEMPTED

OPEN = ("starting", "running", "restarting")
SHOWN = ("loss", "accuracy", "mean_return", "success_rate", "env_steps_per_s", "train_steps_per_s")


def read_status(run: Path) -> dict[str, Any]:
    """The run's status.json. ValueError when there is none or it cannot be read."""
    path = run / "status.json"
    if not path.is_file():
        raise ValueError(f"{path} does not exist; name the directory of a run, e.g. outputs/teacher_rl")
    try:
        status = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"{path} is not readable: {e}") from e
    assert isinstance(status, dict)
    return status


def vanished(status: dict[str, Any]) -> bool:
    """The process of an unfinished run on this host is gone: it was killed and could not say so."""
    if status["state"] not in OPEN or status["host"] != socket.gethostname():
        return False
    try:
        os.kill(status["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # somebody else's process: it lives
        return False
    return False


def meaning(code: int) -> str:
    """What an exit code of a run says."""
    known = {
        EXIT_OK: "done", EXIT_NUMERICAL: "loss or gradient not finite", EXIT_CONFIG: "wrong input or data",
        EXIT_PREEMPTED: "stopped by a signal, --auto_resume continues",
    }  # fmt: skip
    return known.get(code, "a crash, --auto_resume continues from the newest checkpoint")


def _last_metrics(run: Path) -> dict[str, Any]:
    """The newest complete line of the metrics; empty before the first one."""
    path = run / "episode_metrics.jsonl"
    if not path.is_file():
        return {}
    with path.open("rb") as f:
        f.seek(max(0, path.stat().st_size - 65536))
        lines = f.read().splitlines(keepends=True)
    complete = [line for line in lines if line.endswith(b"\n")]
    return json.loads(complete[-1]) if complete else {}


def describe(run: Path, now: float) -> str:
    """A few lines for people. Raises ValueError when `run` is no run directory."""
    status = read_status(run)
    state = status["state"]
    if vanished(status):
        state = f"gone (process {status['pid']} ended without a word while {state}); --auto_resume continues"
    total = "" if status["total"] is None else f" of {status['total']}"
    lines = [
        f"{run}: {status['phase']}, {state}",
        f"  step {status['step']}{total}, last advanced {_ago(now - status['last_advanced'])} ago, "
        f"started {_ago(now - status['started'])} ago on {status['host']} (process {status['pid']})",
    ]
    if status.get("restarts"):  # absent from runs of earlier versions
        lines.append(f"  restarted {status['restarts']} times after a crash")
    if status["exit_code"] is not None:
        lines.append(f"  exit code {status['exit_code']}: {meaning(status['exit_code'])}")
    checkpoints = checkpoint_dirs(run)
    lines.append(f"  newest checkpoint: {checkpoints[0].name if checkpoints else 'none yet'}")
    metrics = _last_metrics(run)
    shown = [f"{k.split('/')[-1]} {v:.4g}" for k, v in metrics.items() if k.split("/")[-1] in SHOWN]
    if shown:
        lines.append("  " + "  ".join(shown))
    return "\n".join(lines)


def _ago(seconds: float) -> str:
    s = max(0, int(seconds))
    return f"{s} s" if s < 120 else f"{s // 60} min" if s < 7200 else f"{s // 3600} h"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="train.sh watch", description=__doc__, allow_abbrev=False)
    parser.add_argument("run", type=Path, metavar="RUN", help="directory of a run")
    parser.add_argument("--follow", action="store_true", help="print again whenever the run advances, until it ends")
    parser.add_argument("--interval", type=float, default=2.0, metavar="S", help="seconds between looks (default 2)")
    args = parser.parse_args(argv)
    try:
        seen = read_status(args.run)
        print(describe(args.run, time.time()), flush=True)
        while args.follow and seen["state"] in OPEN and not vanished(seen):
            time.sleep(args.interval)
            status = read_status(args.run)
            if status != seen:
                print(describe(args.run, time.time()), flush=True)
            seen = status
    except ValueError as e:
        print(f"error: {e}", file=sys.stderr)
        return EXIT_CONFIG
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
