"""Whether a run can write where it is told to, asked before it writes anything."""

import os
import shutil
import tempfile
from pathlib import Path

LEAST_FREE = 64 << 20  # bytes for logs, metrics and configuration; a checkpoint asks for its own size


def require_writable(path: Path) -> None:
    """Tries to write 4 KiB beside or in `path` and takes it away again. ValueError: read-only, no permission, full."""
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    remedy = "free space there or choose another --output_dir"
    try:
        free = shutil.disk_usage(place).free
        with tempfile.TemporaryFile(dir=place) as f:
            f.write(bytes(4096))
            f.flush()
            os.fsync(f.fileno())
    except OSError as e:
        raise ValueError(f"output directory {path}: cannot write to {place} ({e.strerror or e}); {remedy}") from e
    if free < LEAST_FREE:
        raise ValueError(f"output directory {path}: {free} bytes free on its disk, {LEAST_FREE} needed; {remedy}")
