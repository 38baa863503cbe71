"""What a checkpoint directory may contain and how it is verified: names, hashes, manifest. No collectives here.

The hash proves integrity (a flipped bit loads silently through torch and safetensors), not where a file came from;
against hostile files stands `weights_only=True` in `checkpoint.py`.
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
BASE = "base.json"
# A checkpoint that gives way to another of its number has this name until that one is in place.
REPLACED = ".replaced-"
_NAME = re.compile(r"(?:\.replaced-)?checkpoint-([0-9]+)")
_CHUNK = 1 << 20


class InvalidCheckpointError(ValueError):
    """This directory does not hold a complete checkpoint; the text says what is wrong with which file."""


class NewerFormatError(ValueError):
    """Written by a newer version of this program: refused, not skipped, because falling back would lose progress."""


@dataclass(frozen=True)
class FileEntry:
    """One file of the manifest; `name` is relative with forward slashes."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ReleasedBase:
    """Published files (absolute names) and the entries of the model's `state_dict` that are theirs unchanged: named in
    a checkpoint instead of copied."""

    files: tuple[FileEntry, ...]
    entries: tuple[str, ...]

    def to_json(self) -> str:
        return json.dumps({"files": [vars(f) for f in self.files], "entries": self.entries}, indent=1)

    @classmethod
    def from_json(cls, text: str) -> "ReleasedBase":
        data = json.loads(text)
        return cls(tuple(FileEntry(**f) for f in data["files"]), tuple(data["entries"]))


def step_of(directory: Path) -> int | None:
    """The n of `checkpoint-n` (or of one that is being replaced), None for any other name."""
    match = _NAME.fullmatch(directory.name)
    return int(match.group(1)) if match else None


def checkpoint_dirs(run_dir: Path) -> list[Path]:
    """Directories named checkpoint-n, newest (highest n) first; links and files are not followed.

    One that was being replaced when its run was killed counts while there is no other of its number.
    """
    if not run_dir.is_dir():
        return []
    found = {d.name: d for d in run_dir.iterdir() if step_of(d) is not None and d.is_dir() and not d.is_symlink()}
    counted = [
        d for name, d in found.items() if name.removeprefix(REPLACED) == name or name[len(REPLACED) :] not in found
    ]
    return sorted(counted, key=lambda d: step_of(d) or 0, reverse=True)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while chunk := f.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def describe(root: Path, path: Path) -> FileEntry:
    """Manifest entry of a file as it is on disk."""
    return FileEntry(path.relative_to(root).as_posix(), path.stat().st_size, sha256_of(path))


def safe_member(root: Path, name: str) -> Path:
    """Path of a manifest entry; InvalidCheckpointError when it would leave the directory or passes a link."""
    pure = PurePosixPath(name)
    if not name or "\0" in name or "\\" in name or pure.is_absolute() or ".." in pure.parts or len(name) > 255:
        raise InvalidCheckpointError(f"{root}: manifest names the unsafe path {name!r}")
    path = root
    for part in pure.parts:
        path = path / part
        if path.is_symlink():
            raise InvalidCheckpointError(f"{root}: {name} is a symbolic link")
    return path


def _canonical(manifest: dict[str, Any]) -> bytes:
    return json.dumps({k: v for k, v in manifest.items() if k != "sha256"}, sort_keys=True).encode()


def manifest_text(step: int, world_size: int, files: list[FileEntry], extra: dict[str, Any]) -> str:
    """JSON of a manifest, with a hash over itself; `extra` holds versions, code commit and config fingerprint."""
    manifest: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "world_size": world_size,
        **extra,
        "files": [vars(f) for f in sorted(files, key=lambda f: f.name)],
    }
    manifest["sha256"] = hashlib.sha256(_canonical(manifest)).hexdigest()
    return _text(manifest)


def _text(manifest: dict[str, Any]) -> str:
    return json.dumps(manifest, indent=1)


def read_manifest(directory: Path) -> dict[str, Any]:
    """The manifest, checked against its own hash and its directory's name."""
    path = directory / MANIFEST
    if path.is_symlink():
        raise InvalidCheckpointError(f"{path} is a symbolic link")
    if not path.is_file():
        raise InvalidCheckpointError(f"{path} is missing: not a complete checkpoint")
    try:
        text = path.read_bytes().decode("utf-8")
        manifest = json.loads(text)
    except ValueError as e:  # bad JSON or bad UTF-8
        raise InvalidCheckpointError(f"{path} is not readable: {e}") from e
    unchanged = isinstance(manifest, dict) and text == _text(manifest)  # also no other spaces, no key twice
    if not unchanged or manifest.get("sha256") != hashlib.sha256(_canonical(manifest)).hexdigest():
        raise InvalidCheckpointError(f"{path} does not match its own checksum")
    if manifest["format_version"] > FORMAT_VERSION:
        raise NewerFormatError(
            f"{directory} has format version {manifest['format_version']}, this program reads up to {FORMAT_VERSION}: "
            "update the program, or resume an older checkpoint with --resume"
        )
    if manifest["step"] != step_of(directory):
        raise InvalidCheckpointError(f"{directory} holds step {manifest['step']}: it was renamed")
    return manifest


def verify(directory: Path) -> dict[str, Any]:
    """Manifest of a checkpoint whose every file has the recorded size and sha256; else InvalidCheckpointError."""
    manifest = read_manifest(directory)
    for item in manifest["files"]:
        path = safe_member(directory, item["name"])
        if not path.is_file():
            raise InvalidCheckpointError(f"{path} is missing")
        size = path.stat().st_size
        if size != item["bytes"]:
            raise InvalidCheckpointError(f"{path} has {size} bytes instead of {item['bytes']}")
        if sha256_of(path) != item["sha256"]:
            raise InvalidCheckpointError(f"{path} does not match its checksum: damaged or changed")
    return manifest
