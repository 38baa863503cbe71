"""Looks at this machine and says what to fix: `bash train.sh doctor` or `python -m rl.training.doctor [--json FILE]`.

Exit code 0 when everything a training run needs is there (warnings allowed), 1 when something fails.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

REPO_ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("torch", "accelerate", "transformers", "peft", "gymnasium", "sapien", "mani_skill")
MIN_RAM_GB, MIN_DISK_GB = 4.0, 2.0  # one tiny run; peak memory of the teacher stays below 4 GB
PROBE = (sys.executable, "-m", "rl.sims.render_probe")
GB = 1e9


@dataclass
class Check:
    """One line of the report. `status` is OK, WARN or FAIL; `remedy` is empty for OK."""

    name: str
    status: str
    found: str
    remedy: str = ""


def check_python() -> Check:
    version = platform.python_version()
    if sys.version_info[:2] in ((3, 11), (3, 12)):
        return Check("python", "OK", f"{version} ({sys.executable})")
    return Check("python", "FAIL", version, "use Python 3.11 or 3.12: PYTHON=python3.11 bash setup.sh")


def locked_version(package: str) -> str | None:
    """Version in this Python's lock file; None for torch, which is installed apart."""
    lock = REPO_ROOT / "requirements" / f"lock-py{sys.version_info[0]}{sys.version_info[1]}.txt"
    for line in lock.read_text(encoding="utf-8").splitlines() if lock.is_file() else []:
        name, sep, rest = line.partition("==")
        if sep and name.replace("-", "_") == package:
            return rest.split()[0]
    return None


def check_package(package: str) -> Check:
    try:
        version = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return Check(package, "FAIL", "not installed", "run `bash setup.sh`")
    locked = locked_version(package)
    if locked is not None and locked != version:
        return Check(package, "WARN", version, f"tested with {locked}; run `bash setup.sh` to get it")
    return Check(package, "OK", version)


def check_cores() -> Check:
    return Check("CPU cores", "OK", str(len(os.sched_getaffinity(0))))


def check_memory() -> Check:
    import psutil
    import torch

    from rl.data.free_memory import free_bytes

    free, total = free_bytes(torch.device("cpu")) / GB, psutil.virtual_memory().total / GB
    found = f"{free:.1f} GB free of {total:.1f} GB"
    if free < MIN_RAM_GB:
        return Check("memory", "WARN", found, f"a tiny run takes up to {MIN_RAM_GB:.0f} GB; close other programs")
    return Check("memory", "OK", found)


def check_disk(folder: Path) -> Check:
    free = shutil.disk_usage(folder).free / GB
    if free < MIN_DISK_GB:
        return Check("disk", "WARN", f"{free:.1f} GB free in {folder}", "free some space or set --output_dir elsewhere")
    return Check("disk", "OK", f"{free:.1f} GB free in {folder}")


def check_writable(folder: Path) -> Check:
    """Outputs go to ./outputs of the working directory unless --output_dir says otherwise."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder):
            pass
    except OSError as e:
        return Check("outputs", "FAIL", f"{folder}: {e.strerror}", "make it writable or set --output_dir elsewhere")
    return Check("outputs", "OK", f"{folder} is writable")


def check_cuda() -> Check:
    try:
        import torch
    except (ImportError, OSError) as e:
        return Check("CUDA", "FAIL", f"torch cannot be imported: {e}", "run `bash setup.sh`")
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi"):
            return Check("CUDA", "WARN", "nvidia-smi is there, but torch finds no device",
                         "the driver may be too old for this torch, or torch is a CPU build: F1_TORCH_INDEX_URL=URL "
                         "bash setup.sh chooses another")  # fmt: skip
        return Check("CUDA", "OK", "no GPU; training runs on the CPU")
    names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return Check("CUDA", "OK", f"{len(names)}: " + ", ".join(names))


def check_ffmpeg() -> Check:
    try:
        import imageio_ffmpeg

        path = imageio_ffmpeg.get_ffmpeg_exe()
    except (ImportError, RuntimeError) as e:
        return Check("ffmpeg", "FAIL", str(e), "run `bash setup.sh`; the package imageio-ffmpeg brings a binary")
    return Check("ffmpeg", "OK", path)


def check_render(picture: Path, timeout_s: float, probe: tuple[str, ...] = PROBE) -> Check:
    """Draws a test frame in a process of its own: a Vulkan driver that hangs or crashes is reported, not suffered."""
    remedy = "run `bash setup.sh`, which fetches a software driver or says which package is missing"
    try:
        picture.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run([*probe, str(picture)], capture_output=True, encoding="utf-8", timeout=timeout_s)
    except OSError as e:
        return Check("rendering", "FAIL", f"no place for the test frame: {e}", "make the working directory writable")
    except subprocess.TimeoutExpired:
        return Check("rendering", "FAIL", f"no test frame within {timeout_s:g} s: the Vulkan driver hangs",
                     "restart the machine or its GPU driver; compare `vulkaninfo --summary`")  # fmt: skip
    last = (done.stderr.strip().splitlines() or ["no message"])[-1]
    if done.returncode < 0:
        return Check("rendering", "FAIL", f"the test frame ended with signal {-done.returncode}: {last}",
                     "the Vulkan driver crashes: update it, or check free memory and /dev/shm")  # fmt: skip
    if done.returncode > 0:
        return Check("rendering", "FAIL", last, remedy)
    answer = json.loads(done.stdout.strip().splitlines()[-1])
    device = "software (CPU)" if answer["device"] == "cpu" else answer["device"]
    return Check("rendering", "OK", f"{device}; test frame {picture} (spread {answer['spread']} of 255)")


def all_checks(outputs: Path, timeout_s: float) -> list[Check]:
    looks: list[Callable[[], Check]] = [
        check_python,
        *[lambda p=p: check_package(p) for p in PACKAGES],
        check_cores,
        check_memory,
        lambda: check_disk(outputs.parent),
        lambda: check_writable(outputs),
        check_cuda,
        lambda: check_render(outputs / "doctor.png", timeout_s),
        check_ffmpeg,
    ]
    return [look() for look in looks]


def table(checks: list[Check]) -> str:
    width = max(len(c.name) for c in checks)
    lines = []
    for c in checks:
        lines.append(f"{c.status:<5} {c.name:<{width}}  {c.found}")
        if c.remedy:
            lines.append(f"{'':<5} {'':<{width}}  -> {c.remedy}")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="train.sh doctor", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the findings to this file too")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="limit of the test frame (default 60)")
    parser.exit_on_error = False
    try:
        args, unknown = parser.parse_known_args(argv)
    except argparse.ArgumentError as e:
        print(f"error: {e}; see --help", file=sys.stderr)
        return 4
    if unknown:
        print(f"error: unknown argument {unknown[0]}; see --help", file=sys.stderr)
        return 4
    checks = all_checks(Path("outputs").resolve(), args.timeout)
    print(table(checks))
    if args.json:
        args.json.write_text(json.dumps([asdict(c) for c in checks], indent=2) + "\n", encoding="utf-8")
    failed = [c.name for c in checks if c.status == "FAIL"]
    print(f"doctor: {'fix ' + ', '.join(failed) if failed else 'this machine is ready'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
