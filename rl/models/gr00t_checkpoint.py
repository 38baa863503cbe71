"""A released GR00T checkpoint on disk: is it whole, does it know the robot, what are its actions called.

Layout of N1.7: config.json, *.safetensors, statistics.json (tag -> state|action -> key -> min, max, q01, q99),
embodiment_id.json (tag -> row of the per-robot weights). Of N1.5: experiment_cfg/metadata.json (tag -> statistics).
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl.config import nearest

NEW_EMBODIMENT = {"n1.5": 31, "n1.7": 10}  # row for a robot that the checkpoint has not seen


@dataclass
class Embodiment:
    """One robot of a checkpoint."""

    index: int  # row of the per-robot weights
    action_names: list[str]  # key_i, or key where it has one number
    low: Tensor  # float32 (actions,), what the model's -1 stands for
    high: Tensor


def read_embodiment(folder: Path, version: str, tag: str) -> Embodiment:
    """Raises ValueError for a folder that is no checkpoint, one without statistics and an unknown tag."""
    if not (folder / "config.json").is_file() or not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"gr00t.checkpoint {folder} holds no config.json and *.safetensors; give the local directory of a "
            "downloaded checkpoint"
        )
    path = folder / ("statistics.json" if version == "n1.7" else "experiment_cfg/metadata.json")
    if not path.is_file():
        raise ValueError(
            f"gr00t.checkpoint {folder} has no {path.relative_to(folder)}: without statistics its actions have no "
            "scale; take the checkpoint's whole directory, or fine-tune on your robot first"
        )
    robots = _json(path)
    if tag not in robots:
        raise nearest(tag, sorted(robots), f"gr00t.embodiment (in {path.name})")
    robot = robots[tag]["statistics"] if version == "n1.5" else robots[tag]
    if "action" not in robot:
        raise ValueError(
            f"{path}: no statistics of the actions of {tag}, so they have no scale; choose another gr00t.embodiment "
            "or take the checkpoint's whole directory"
        )
    actions = robot["action"]
    names, low, high = [], [], []
    for key, numbers in actions.items():
        lower, upper = (_bound(numbers, *n, path) for n in (("q01", "min"), ("q99", "max")))
        names += [key] if len(lower) == 1 else [f"{key}_{i}" for i in range(len(lower))]
        low += lower
        high += upper
    return Embodiment(_index(folder, version, tag), names, torch.tensor(low), torch.tensor(high))


def _bound(numbers: dict[str, Any], name: str, otherwise: str, path: Path) -> list[float]:
    for key in (name, otherwise):
        if key in numbers:
            value = numbers[key]
            return [float(v) for v in (value if isinstance(value, list) else [value])]
    raise ValueError(f"{path}: statistics of an action have neither {name} nor {otherwise}; they are damaged")


def _index(folder: Path, version: str, tag: str) -> int:
    path = folder / "embodiment_id.json"
    if path.is_file():
        rows = _json(path)
        if tag not in rows:
            raise nearest(tag, sorted(rows), f"gr00t.embodiment (in {path.name})")
        return int(rows[tag])
    return NEW_EMBODIMENT[version]


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"{path} is not readable as JSON ({e}); copy the checkpoint again") from e
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object; copy the checkpoint again")
    return found


def fingerprint(folder: Path) -> str:
    """sha256 over names, sizes and contents of the weights; read once, when a run begins."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        digest.update(f"{path.name} {path.stat().st_size} ".encode())
        with path.open("rb") as f:
            while block := f.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()
