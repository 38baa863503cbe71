"""Files that are either the old or the new version, never half of one, after a crash at any line."""

import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def fsync_dir(path: Path) -> None:
    """Makes the entries of a directory durable: a rename is atomic but not on disk until its parent is synced."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def fsync_file(path: Path) -> None:
    """Makes the contents of a file written by somebody else durable."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_PARTIAL = re.compile(r"\.tmp-[0-9a-f]{8}-.+")


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a hidden path beside `path` (same suffix) to write to; renamed on success, removed on any error."""
    temporary = path.with_name(f".tmp-{uuid.uuid4().hex[:8]}-{path.name}")
    try:
        yield temporary
        fsync_file(temporary)
        os.replace(temporary, path)
        fsync_dir(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Replaces the UTF-8 text of a file."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def remove_partial(directory: Path) -> None:
    """Removes files that a killed process had begun to write by `atomic_path`, here and below; for whoever alone writes
    there."""
    for path in directory.rglob(".tmp-*"):
        if _PARTIAL.fullmatch(path.name) and path.is_file():
            path.unlink()
