"""The weights of a released GR00T checkpoint on disk: are they all there, and which ones are they."""

import hashlib
import json
import struct
from collections.abc import Iterable
from pathlib import Path

PARTS = ("backbone.", "action_head.")  # what the names of a whole model's tensors begin with
NAMED = 3  # missing weights that a complaint names


def check_weights(folder: Path) -> None:
    """Raises ValueError for a folder that is no checkpoint, and for one that lacks a file or a part of the model."""
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"gr00t.checkpoint {folder} holds no config.json and *.safetensors; give the local directory of a "
            "downloaded checkpoint"
        )
    names: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        names |= _tensors(path)
    index = folder / "model.safetensors.index.json"
    wanted = _indexed(index) if index.is_file() else set()
    absent = sorted(wanted - names) + [f"{part}*" for part in PARTS if not any(n.startswith(part) for n in names)]
    if absent:
        raise ValueError(
            f"gr00t.checkpoint {folder}: its *.safetensors lack {len(absent)} weights, {absent[0]} for one; take the "
            "checkpoint's whole directory"
        )


def refuse_missing(folder: Path, names: Iterable[str]) -> None:
    """Raises ValueError naming the first of the weights that a model needed and did not find."""
    missing = sorted(names)
    if missing:
        shown = ", ".join(missing[:NAMED]) + (", ..." if len(missing) > NAMED else "")
        raise ValueError(
            f"gr00t.checkpoint {folder}: its *.safetensors lack {len(missing)} weights of the model that its "
            f"config.json describes: {shown}; take the checkpoint's whole directory"
        )


def _tensors(path: Path) -> set[str]:
    """Names in the header of a safetensors file: its length as 8 bytes, then JSON."""
    try:
        with path.open("rb") as f:
            (length,) = struct.unpack("<Q", f.read(8))
            if length > path.stat().st_size:
                raise ValueError("its header is longer than the file")
            return set(json.loads(f.read(length))) - {"__metadata__"}
    except (ValueError, struct.error) as e:
        raise ValueError(f"gr00t.checkpoint: {path} is damaged ({e}); copy the checkpoint again") from e


def _indexed(path: Path) -> set[str]:
    try:
        return set(json.loads(path.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as e:
        raise ValueError(f"gr00t.checkpoint: {path} is damaged ({e}); copy the checkpoint again") from e


def check_config(folder: Path) -> None:
    """Raises ValueError for a config.json that says nothing: the library would take its own sizes instead."""
    path = folder / "config.json"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"gr00t.checkpoint: {path} is damaged ({e}); copy the checkpoint again") from e
    if not isinstance(found, dict) or not found:
        raise ValueError(f"gr00t.checkpoint: {path} describes no model; copy the checkpoint again")


def fingerprint(folder: Path) -> str:
    """sha256 over names, sizes and contents of the weights; read once, when a run begins."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size} ".encode())
        with path.open("rb") as f:
            while block := f.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()
