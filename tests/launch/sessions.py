"""A command in a session of its own, and which of its processes are still there when it has ended."""

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Done:
    process: subprocess.CompletedProcess[str]
    left: list[str]  # "PID NAME" of what it left behind, ended since


def run_in_session(command: list[str], timeout: float, cwd: Path | None = None) -> Done:
    """Raises subprocess.TimeoutExpired, and ends the whole session then, too."""
    started = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=cwd, start_new_session=True
    )
    left: dict[int, str] = {}
    try:
        out, err = started.communicate(timeout=timeout)
    finally:
        left = alive(started.pid)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    process = subprocess.CompletedProcess(command, started.returncode, out, err)
    return Done(process, [f"{pid} {name}" for pid, name in left.items()])


def alive(session: int) -> dict[int, str]:
    """Names of the processes of a session by their id; those that have ended and wait for their parent do not count."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            start, rest = entry.read_text().rsplit(")", 1)  # a name may hold blanks and parentheses
        except OSError:  # it has ended meanwhile
            continue
        state, _, _, of = rest.split()[:4]
        if int(of) == session and state not in "ZX":
            found[int(entry.parent.name)] = start.split("(", 1)[1]
    return found
