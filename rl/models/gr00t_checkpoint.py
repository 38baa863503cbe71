"""What a released GR00T checkpoint says about a robot: which row of weights is its, what are its actions called.

Layout of N1.7: statistics.json (tag -> state|action|relative_action -> key -> min, max, q01, q99),
processor_config.json (order of the keys, which statistics count) and embodiment_id.json (tag -> row of the per-robot
weights). Of N1.5: experiment_cfg/metadata.json (tag -> statistics), whose keys are in order and whose actions are
scaled by min and max.
"""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl.config import nearest
from rl.models.gr00t_weights import check_weights

# Rows of the per-robot weights as published, for checkpoints without embodiment_id.json.
ROWS = {
    "n1.5": {"gr1": 24, "oxe_droid": 17, "agibot_genie1": 26, "new_embodiment": 31},
    "n1.7": {
        "oxe_droid_relative_eef_relative_joint": 24,
        "xdof_relative_eef_relative_joint": 27,
        "xdof_relative_eef_relative_joint_subtask": 27,
        "real_g1_relative_eef_relative_joints": 25,
        "real_r1_pro_sharpa_relative_eef": 26,
        "real_r1_pro_sharpa_relative_eef_human": 26,
        "real_r1_pro_sharpa_relative_eef_maxinsights": 26,
        "real_r1_pro_sharpa_relative_eef_mecka": 26,
        "unitree_g1_full_body_with_waist_height_nav_cmd": 25,
        "simpler_env_google": 0,
        "simpler_env_widowx": 1,
        "libero_sim": 2,
        "new_embodiment": 10,
    },
}
Bounds = tuple[list[float], list[float]]


@dataclass
class Embodiment:
    """One robot of a checkpoint."""

    index: int  # row of the per-robot weights
    action_names: list[str]  # key_i, or key where it has one number; in the order of the model's slots
    low: Tensor  # float32 (actions,), what the model's -1 stands for
    high: Tensor
    relative: set[str] = field(default_factory=set)  # names of actions that count from the robot's state


def read_embodiment(folder: Path, version: str, tag: str) -> Embodiment:
    """Raises ValueError for a folder that is no checkpoint, one without statistics and an unknown tag."""
    check_weights(folder)
    path = folder / ("statistics.json" if version == "n1.7" else "experiment_cfg/metadata.json")
    if not path.is_file():
        raise ValueError(
            f"gr00t.checkpoint {folder} has no {path.relative_to(folder)}: without statistics its actions have no "
            "scale; take the checkpoint's whole directory, or fine-tune on your robot first"
        )
    robots = _json(path)
    if tag not in robots:
        raise nearest(tag, sorted(robots), f"gr00t.embodiment (in {path.name})")
    robot = _dict(_dict(robots[tag]).get("statistics") if version == "n1.5" else robots[tag])
    if not _dict(robot.get("action")):
        raise ValueError(
            f"{path}: no statistics of the actions of {tag}, so they have no scale; choose another gr00t.embodiment "
            "or take the checkpoint's whole directory"
        )
    groups = _groups_n17(folder, tag, robot, path) if version == "n1.7" else _groups_n15(robot, path)
    names: list[str] = []
    relative: set[str] = set()
    for key, ((lower, _), counts_from_state) in groups.items():
        of_key = [key] if len(lower) == 1 else [f"{key}_{i}" for i in range(len(lower))]
        names += of_key
        relative |= set(of_key) if counts_from_state else set()
    low, high = ([v for bounds, _ in groups.values() for v in bounds[i]] for i in (0, 1))
    return Embodiment(_index(folder, version, tag), names, torch.tensor(low), torch.tensor(high), relative)


def _groups_n15(robot: dict[str, Any], path: Path) -> dict[str, tuple[Bounds, bool]]:
    actions = robot["action"]
    return {key: (_bounds(actions, key, "min", "max", path), False) for key in actions}


def _groups_n17(folder: Path, tag: str, robot: dict[str, Any], path: Path) -> dict[str, tuple[Bounds, bool]]:
    """Key -> bounds and whether it is relative to the state, in the order and with the statistics of the processor."""
    source = folder / "processor_config.json"
    if not source.is_file():
        raise ValueError(
            f"gr00t.checkpoint {folder} has no {source.name}, which says in what order and by which statistics its "
            "actions are scaled; take the checkpoint's whole directory"
        )
    settings = _dict(_json(source).get("processor_kwargs"))
    action = _dict(_dict(_dict(settings.get("modality_configs")).get(tag)).get("action"))
    keys, kinds = action.get("modality_keys"), action.get("action_configs") or []
    if not isinstance(keys, list) or not keys or not isinstance(kinds, list):
        raise ValueError(f"{source}: no modality_keys of the actions of {tag}; choose another gr00t.embodiment")
    scaled = ("q01", "q99") if settings.get("use_percentiles") else ("min", "max")
    groups = {}
    for i, key in enumerate(keys):
        kind = _dict(kinds[i]).get("rep") if i < len(kinds) else None
        relative = bool(settings.get("use_relative_action")) and str(kind).lower() == "relative"
        statistics, bounds = ("relative_action", ("min", "max")) if relative else ("action", scaled)
        groups[str(key)] = _bounds(_dict(robot.get(statistics)), str(key), *bounds, path, steps=relative), relative
    return groups


def _bounds(
    statistics: dict[str, Any], key: str, low: str, high: str, path: Path, *, steps: bool = False
) -> Bounds:  # fmt: skip
    """`steps`: a row for each action of a chunk is taken too; the bounds are then over all of them."""
    found = []
    for name in (low, high):
        numbers = _dict(statistics.get(key)).get(name)
        if numbers is None:
            raise ValueError(f"{path}: the statistics of the action {key} have no {name}; they are damaged")
        stepwise = steps and isinstance(numbers, list) and numbers and isinstance(numbers[0], list)
        rows = numbers if stepwise else [numbers]
        try:
            columns = zip(*([float(v) for v in (r if isinstance(r, list) else [r])] for r in rows), strict=True)
            found.append([(min if name == low else max)(column) for column in columns])
        except (TypeError, ValueError) as e:
            raise ValueError(f"{path}: {name} of the action {key} is no list of numbers; it is damaged") from e
    if not found[0] or len(found[0]) != len(found[1]):
        raise ValueError(f"{path}: {low} and {high} of the action {key} are not of one length above 0; it is damaged")
    lower, upper = found
    wrong = [i for i, (a, b) in enumerate(zip(lower, upper, strict=True)) if not -math.inf < a <= b < math.inf]
    if wrong:
        i = wrong[0]
        raise ValueError(
            f"{path}: {low} and {high} of the action {key} are {lower[i]} and {upper[i]} at place {i}, no bounds; it "
            "is damaged, copy the checkpoint again"
        )
    return lower, upper


def _index(folder: Path, version: str, tag: str) -> int:
    path = folder / "embodiment_id.json"
    rows = _json(path) if path.is_file() else ROWS[version]
    if tag not in rows:
        known = path.name if path.is_file() else f"those published for {version}, as {folder} has no {path.name}"
        raise nearest(tag, sorted(rows), f"gr00t.embodiment (in {known})")
    row = rows[tag]
    if not isinstance(row, int) or isinstance(row, bool) or row < 0:
        raise ValueError(f"{path}: the row of {tag} is {row!r}, no whole number from 0; copy the checkpoint again")
    return row


def _dict(found: Any) -> dict[str, Any]:
    """What a file holds at one place, empty where that is no JSON object."""
    return found if isinstance(found, dict) else {}


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"{path} is not readable as JSON ({e}); copy the checkpoint again") from e
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object; copy the checkpoint again")
    return found
