"""Which Vulkan driver SAPIEN gets on this machine: the record that the set-up left, applied before SAPIEN is imported.

`scripts/install_vulkan.py` (run by setup.sh) finds out once whether pictures can be drawn with the machine as it is.
Where they cannot, it unpacks Mesa's software driver into the project's cache. LD_LIBRARY_PATH counts only when a
process starts, so the unpacked libraries are loaded by full path here: that way train.sh, `python -m ...`, pytest and
environment workers all get the same driver without any shell set-up.
"""

import ctypes
import hashlib
import json
import os
import warnings
from dataclasses import asdict, dataclass, field
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent.parent / ".cache" / "vulkan"
RECORD_VARIABLE = "F1_VULKAN_RECORD"  # the set-up tries candidates through it
ICD_DIRS = ("/usr/share/vulkan/icd.d", "/usr/local/share/vulkan/icd.d", "/etc/vulkan/icd.d")


@dataclass
class Driver:
    """What the set-up found to draw with. `icd` is None where the machine's own drivers are used."""

    renderer: str = "unknown"  # device name SAPIEN drew on, "cpu" for the software renderer
    icd: str | None = None  # Vulkan driver description (JSON) to use instead of the machine's
    preload: list[str] = field(default_factory=list)  # shared libraries by full path


def signature() -> str:
    """Identifies the machine's graphics: driver descriptions, GPUs and device nodes. A change means: look again."""
    seen = [str(CACHE)]
    for folder in (*ICD_DIRS, "/proc/driver/nvidia/gpus", "/dev/dri"):
        path = Path(folder)
        seen += sorted(f"{folder}/{p.name}" for p in path.iterdir()) if path.is_dir() else []
    return hashlib.sha256("\n".join(seen).encode()).hexdigest()[:12]


def record_path() -> Path:
    """Where the set-up's finding for this machine lies (several kinds of machine may share one checkout)."""
    override = os.environ.get(RECORD_VARIABLE)
    return Path(override) if override else CACHE / f"driver-{signature()}.json"


def write_record(path: Path, driver: Driver) -> None:
    """Whole or not at all."""
    partial = path.with_suffix(f".{os.getpid()}.tmp")
    partial.write_text(json.dumps(asdict(driver), indent=2) + "\n")
    partial.replace(path)


def use_installed_driver() -> Driver | None:
    """Applies the finding of the set-up to this process; None when the set-up never looked. Call before SAPIEN is
    imported. A driver chosen by the user (VK_DRIVER_FILES, VK_ICD_FILENAMES) is left alone."""
    path = record_path()
    if not path.is_file():
        return None
    driver = Driver(**json.loads(path.read_text(encoding="utf-8")))
    if driver.icd and not chosen_by_user():
        os.environ["VK_DRIVER_FILES"] = os.environ["VK_ICD_FILENAMES"] = driver.icd
    _preload(driver.preload)
    # SAPIEN brings a Vulkan loader and takes it where the system has none: nothing to warn about.
    warnings.filterwarnings("ignore", message="Failed to find system libvulkan")
    return driver


def chosen_by_user() -> bool:
    """Whether the environment already names a Vulkan driver (also true in children of a process that applied ours)."""
    return bool(os.environ.get("VK_DRIVER_FILES") or os.environ.get("VK_ICD_FILENAMES"))


def _preload(libraries: list[str]) -> None:
    """Loads shared libraries that need each other, in whatever order works. Raises OSError for one that cannot load."""
    waiting = libraries
    while waiting:
        failed = {}
        for library in waiting:
            try:
                ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
            except OSError as e:  # needs a library that comes later
                failed[library] = e
        if len(failed) == len(waiting):
            raise OSError(f"cannot load {waiting[0]}: {failed[waiting[0]]}; remove {CACHE} and run `bash setup.sh`")
        waiting = list(failed)
