"""Starts a training command again after a crash: `supervise.py MAX_RESTARTS [--backoff S] -- COMMAND...`.

A command that ends with 0 (done), 75 (stopped by a signal), 3 (not finite) or 4 (wrong input) is left alone; anything
else is a crash. It is started again with --auto_resume, which takes the newest checkpoint that verifies, after a pause
that doubles each time; not more than MAX_RESTARTS times, and not when a restart has crashed without having written a
new checkpoint. TERM, INT and USR1 are passed on and end the restarts. Exit code: that of the last start.

Only the standard library is used, so that whatever broke the training cannot break this.
"""

import ctypes
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any

FINAL = (0, 3, 4, 75)
MAX_BACKOFF_S = 300.0
RUN_DIR_FILE = "RL_RUN_DIR_FILE"  # rank 0 writes the run directory into the file that this names
RESTARTS = "RL_RESTARTS"  # how often the run was started again, for its status
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


class Supervisor:
    def __init__(self, command: list[str], max_restarts: int, backoff_s: float) -> None:
        self.command, self.max_restarts, self.backoff_s = command, max_restarts, backoff_s
        self.child: subprocess.Popen[bytes] | None = None
        self.stop = threading.Event()

    def on_signal(self, signum: int, _frame: FrameType | None) -> None:
        self.stop.set()
        if self.child is not None and self.child.poll() is None:
            self.child.send_signal(signum)

    def run(self) -> int:
        for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(signum, self.on_signal)
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "run_dir"
            command, newest = self.command, None
            for restarts in range(self.max_restarts + 1):
                code = self._start(command, place, restarts)
                run = Path(place.read_text(encoding="utf-8").strip()) if place.is_file() else None
                before, newest = newest, newest_checkpoint(run)
                if code in FINAL or self.stop.is_set():
                    return code
                said = f"train.sh: the run crashed (exit code {code})"
                if restarts == self.max_restarts:
                    return give_up(run, code, f"{said}; restarted {restarts} times already, which is --max_restarts")
                if restarts > 0 and newest == before:
                    return give_up(run, code, f"{said} again without a new checkpoint; not restarted any more")
                pause = min(self.backoff_s * 2**restarts, MAX_BACKOFF_S)
                source = "from the start" if newest is None else f"from {newest[0]}"
                say(f"{said}; restart {restarts + 1} of {self.max_restarts} {source} in {pause:g} s")
                note(run, {"state": "restarting", "exit_code": code, "restarts": restarts + 1, "pid": os.getpid()})
                if self.stop.wait(pause):
                    note(run, {"state": "preempted", "exit_code": 75})
                    return 75
                command = restart_command(self.command, run, newest is not None)
        raise AssertionError("the last start returns")

    def _start(self, command: list[str], place: Path, restarts: int) -> int:
        env = {**os.environ, RUN_DIR_FILE: str(place), RESTARTS: str(restarts)}
        # A process group of its own: Ctrl+C arrives once, through this process.
        self.child = subprocess.Popen(
            command, env=env, stdin=subprocess.DEVNULL, process_group=0, preexec_fn=_end_with_parent
        )
        if self.stop.is_set():  # a signal came between two starts
            self.child.send_signal(signal.SIGTERM)
        code = self.child.wait()
        return code if code >= 0 else 128 - code


def _end_with_parent() -> None:
    """The child gets SIGTERM, saves and ends when this process is killed; PR_SET_PDEATHSIG is 1."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)


def newest_checkpoint(run: Path | None) -> tuple[str, int] | None:
    """Name and time of writing of the complete checkpoint with the highest number."""
    if run is None or not run.is_dir():
        return None
    numbers = {int(m[1]): d for d in run.iterdir() if (m := _CHECKPOINT.fullmatch(d.name))}
    complete = {n: d / "manifest.json" for n, d in numbers.items() if (d / "manifest.json").is_file()}
    if not complete:
        return None
    number = max(complete)
    return f"checkpoint-{number}", complete[number].stat().st_mtime_ns


def restart_command(command: list[str], run: Path | None, has_checkpoint: bool) -> list[str]:
    """The command that continues: without --overwrite, with --auto_resume; a --resume DIR stays until the run has a
    checkpoint of its own."""
    kept: list[str] = []
    resume: list[str] = []
    words = iter(command)
    for word in words:
        if word in ("--overwrite", "--auto_resume"):
            continue
        if word == "--resume":
            resume = [word, next(words, "")]
        elif word.startswith("--resume="):
            resume = [word]
        else:
            kept.append(word)
    if resume and not has_checkpoint:
        return [*kept, *resume]
    placed = any(w.startswith("--output_dir") or w.startswith("--output-dir") or ".output_dir=" in w for w in kept)
    place = ["--output_dir", str(run)] if resume and not placed and run is not None else []
    return [*kept, *place, "--auto_resume"]


def note(run: Path | None, changes: dict[str, Any]) -> None:
    """Changes the run's status.json, if it has one."""
    path = None if run is None else run / "status.json"
    if path is None or not path.is_file():
        return
    try:
        status = json.loads(path.read_text(encoding="utf-8")) | changes
    except ValueError as e:
        say(f"train.sh: {path} is not readable: {e}")
        return
    partial = path.with_name(f".status-{os.getpid()}.tmp")
    partial.write_text(json.dumps(status, indent=1) + "\n", encoding="utf-8")
    os.replace(partial, path)


def give_up(run: Path | None, code: int, why: str) -> int:
    say(why)
    note(run, {"state": "failed", "exit_code": code})
    return code


def say(line: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def main(argv: list[str]) -> int:
    split = argv.index("--")
    options, command = argv[:split], argv[split + 1 :]
    backoff = float(options[2]) if options[1:2] == ["--backoff"] else 5.0
    return Supervisor(command, int(options[0]), backoff).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
