"""Where a run came from: versions, code commit, command line. No environment variables, no secrets."""

import os
import platform
import re
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = ("torch", "accelerate", "transformers", "peft", "gymnasium", "sapien", "numpy")
_SECRET = re.compile(r"(?i)^(-*[\w.-]*(?:token|secret|password|api[_-]?key)[\w.-]*)=.*")
_REPO = Path(__file__).resolve().parents[2]


def package_versions() -> dict[str, str | None]:
    """Installed versions; None for a package that is absent (a simulator is optional)."""
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def git_commit() -> str | None:
    """Commit of the source tree, with "-dirty" when it has changes; None outside a git checkout."""
    command = ["git", "-C", str(_REPO), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", timeout=10, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def redact(arguments: list[str]) -> list[str]:
    """Command line with the values of token-, secret-, password- and key-like options hidden."""
    shown = []
    hide_next = False
    for argument in arguments:
        if hide_next and not argument.startswith("-"):
            shown.append("***")
        else:
            shown.append(_SECRET.sub(r"\1=***", argument))
        hide_next = argument.startswith("-") and "=" not in argument and _SECRET.match(argument + "=") is not None
    return shown


def machine() -> str:
    """Processor, cores and accelerator in one line, for tables of results."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = re.findall(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8"), re.MULTILINE)
        model = names[0] if names else model
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {accelerator}, torch {torch.__version__}"


def collect() -> dict[str, Any]:
    """JSON data of this start."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": platform.node(),
        "python": platform.python_version(),
        "commit": git_commit(),
        "command": redact(sys.orig_argv[1:]),
        "versions": package_versions(),
    }
