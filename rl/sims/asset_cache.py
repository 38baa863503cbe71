"""Directories that are generated once and then only read, by any number of processes."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

CACHE_DIR = Path(__file__).resolve().parents[2] / ".cache" / "assets"


def build_once(name: str, fill: Callable[[Path], None]) -> Path:
    """CACHE_DIR/name; when it does not exist, `fill` writes into a temporary directory that is then renamed.

    Several ranks may do so at once: the first one wins, and nobody ever sees a half-written copy.
    """
    target = CACHE_DIR / name
    if target.is_dir():
        return target
    CACHE_DIR.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=CACHE_DIR))
    try:
        fill(temporary)
        temporary.chmod(0o755)
        try:
            os.rename(temporary, target)
        except OSError:
            # A process that was faster has put its equal copy there; anything else is a real error.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target
