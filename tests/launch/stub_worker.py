"""A stand-in for a training module: `-m tests.launch.stub_worker MODE FOLDER`, for the tests of scripts/launch.sh.

Leaves a file `ready-RANK` when it listens to signals, and its exit code where the launcher asks for it.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from rl.training.preemption import StopFlag

STOPPED: list[int] = []


def on_signal(signum: int, _frame: FrameType | None) -> None:
    STOPPED.append(signum)


def finish(code: int) -> None:
    if os.environ.get("LOCAL_RANK", "0") == "0" and "RL_EXIT_CODE_FILE" in os.environ:
        Path(os.environ["RL_EXIT_CODE_FILE"]).write_text(f"{code}\n")
    sys.exit(code)


def wait_with_stop_flag(folder: Path, rank: str) -> None:
    stop = StopFlag()
    stop.install()
    (folder / f"ready-{rank}").touch()
    deadline = time.monotonic() + 60
    while not stop.stop_requested() and time.monotonic() < deadline:
        time.sleep(0.02)
    (folder / f"stopped-{rank}").write_text(stop.signal_name or "never")
    finish(75)


def main() -> None:
    mode, folder = sys.argv[1], Path(sys.argv[2])
    rank = os.environ.get("RANK", "0")
    if mode.startswith("exit"):
        finish(int(mode.removeprefix("exit")))
    if mode == "environment":
        known = {k: v for k, v in os.environ.items() if k.startswith(("ACCELERATE_", "FSDP_", "WORLD_SIZE"))}
        (folder / f"environment-{rank}.json").write_text(json.dumps(known))
        finish(0)
    if mode == "rank1fails":
        finish(9 if rank == "1" else 0)
    if mode == "stopflag":  # as training modules do it
        wait_with_stop_flag(folder, rank)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(signum, on_signal)
    (folder / f"ready-{rank}").touch()
    deadline = time.monotonic() + 60
    while not STOPPED and time.monotonic() < deadline:
        time.sleep(0.02)
    (folder / f"stopped-{rank}").write_text(signal.Signals(STOPPED[0]).name if STOPPED else "never")
    finish(75)


if __name__ == "__main__":
    main()
