"""What a released GR00T checkpoint says about a robot: its row of weights, what its actions and its state are called.

Layout of N1.7: statistics.json (tag -> state|action|relative_action -> key -> min, max, q01, q99),
processor_config.json (order of the keys, which statistics count) and embodiment_id.json (tag -> row of the per-robot
weights). Of N1.5: experiment_cfg/metadata.json (tag -> statistics), whose keys are in order and whose actions are
scaled by min and max; how its state was encoded is not written there.
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


@dataclass
class StateLayout:
    """The numbers that a checkpoint's state encoder was trained on, of one robot."""

    names: list[str]  # as in `Embodiment.action_names`; in the order of the encoder's slots
    low: list[float]  # what the encoder is told as -1
    high: list[float]
    clip: bool  # whether it never sees more than 1 and less than -1
    standardized: set[str]  # names of numbers that were scaled by mean and standard deviation instead


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
        of_key = _names(key, len(lower))
        names += of_key
        relative |= set(of_key) if counts_from_state else set()
    low, high = ([v for bounds, _ in groups.values() for v in bounds[i]] for i in (0, 1))
    return Embodiment(_index(folder, version, tag), names, torch.tensor(low), torch.tensor(high), relative)


def _groups_n15(robot: dict[str, Any], path: Path) -> dict[str, tuple[Bounds, bool]]:
    actions = robot["action"]
    return {key: (_bounds(actions, "action", key, "min", "max", path), False) for key in actions}


def _groups_n17(folder: Path, tag: str, robot: dict[str, Any], path: Path) -> dict[str, tuple[Bounds, bool]]:
    """Key -> bounds and whether it is relative to the state, in the order and with the statistics of the processor."""
    settings, action, source = _processor(folder, tag, "action")
    keys, kinds = _keys(action, "actions", tag, source), action.get("action_configs") or []
    if not isinstance(kinds, list):
        raise ValueError(f"{source}: action_configs of {tag} is no list; copy the checkpoint again")
    groups = {}
    for i, key in enumerate(keys):
        kind = _dict(kinds[i]).get("rep") if i < len(kinds) else None
        relative = bool(settings.get("use_relative_action")) and str(kind).lower() == "relative"
        statistics, bounds = ("relative_action", ("min", "max")) if relative else ("action", _limits(settings))
        found = _bounds(_dict(robot.get(statistics)), "action", key, *bounds, path, steps=relative)
        groups[key] = found, relative
    return groups


def read_state(folder: Path, tag: str) -> StateLayout:
    """Of N1.7, after `read_embodiment`. Raises ValueError where nothing is said of the state, and for a state whose
    numbers do not go to one slot each (sine and cosine, several moments) or not at all to the encoder."""
    path = folder / "statistics.json"
    settings, state, source = _processor(folder, tag, "state")
    keys = _keys(state, "state", tag, source)
    turned = [k for k in keys if k in _list(state.get("sin_cos_embedding_keys"))]
    moments = _list(state.get("delta_indices"))
    ignored = settings.get("exclude_state") or state.get("exclude_state")
    for wrong, what in [
        (settings.get("apply_sincos_state_encoding") and turned, f"tells {', '.join(turned)} as sine and cosine"),
        (len(moments) > 1, f"tells the state of {len(moments)} moments"),
        (ignored, "was trained without a state (exclude_state)"),
    ]:
        if wrong:
            raise ValueError(
                f"gr00t.state_names: {source} {what}, which is not supported; leave it out, or take a checkpoint that "
                "tells each number once"
            )
    by_mean = _list(state.get("mean_std_embedding_keys"))
    layout = StateLayout([], [], [], settings.get("clip_outliers") is not False, set())
    statistics = _dict(_dict(_json(path).get(tag)).get("state"))
    for key in keys:
        low, high = _bounds(statistics, "state", key, *_limits(settings), path)
        names = _names(key, len(low))
        layout.names += names
        layout.low += low
        layout.high += high
        layout.standardized |= set(names) if key in by_mean else set()
    return layout


def _processor(folder: Path, tag: str, modality: str) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Settings of processor_config.json, those of them for a modality of the robot, and where they are from."""
    source = folder / "processor_config.json"
    if not source.is_file():
        raise ValueError(
            f"gr00t.checkpoint {folder} has no {source.name}, which says in what order and by which statistics its "
            f"{modality}s are scaled; take the checkpoint's whole directory"
        )
    settings = _dict(_json(source).get("processor_kwargs"))
    return settings, _dict(_dict(_dict(settings.get("modality_configs")).get(tag)).get(modality)), source


def _keys(modality: dict[str, Any], what: str, tag: str, source: Path) -> list[str]:
    """Groups of a modality, in the order of the model's slots."""
    keys = modality.get("modality_keys")
    if not isinstance(keys, list) or not keys:
        raise ValueError(f"{source}: no modality_keys of the {what} of {tag}; choose another gr00t.embodiment")
    return [str(key) for key in keys]


def _limits(settings: dict[str, Any]) -> tuple[str, str]:
    """Which statistics count."""
    return ("q01", "q99") if settings.get("use_percentiles") else ("min", "max")


def _names(key: str, count: int) -> list[str]:
    return [key] if count == 1 else [f"{key}_{i}" for i in range(count)]


def _bounds(
    statistics: dict[str, Any], what: str, key: str, low: str, high: str, path: Path, *, steps: bool = False
) -> Bounds:  # fmt: skip
    """`steps`: a row for each action of a chunk is taken too; the bounds are then over all of them."""
    found = []
    for name in (low, high):
        numbers = _dict(statistics.get(key)).get(name)
        if numbers is None:
            raise ValueError(f"{path}: the statistics of the {what} {key} have no {name}; they are damaged")
        stepwise = steps and isinstance(numbers, list) and numbers and isinstance(numbers[0], list)
        rows = numbers if stepwise else [numbers]
        try:
            columns = zip(*([float(v) for v in (r if isinstance(r, list) else [r])] for r in rows), strict=True)
            found.append([(min if name == low else max)(column) for column in columns])
        except (TypeError, ValueError) as e:
            raise ValueError(f"{path}: {name} of the {what} {key} is no list of numbers; it is damaged") from e
    if not found[0] or len(found[0]) != len(found[1]):
        raise ValueError(f"{path}: {low} and {high} of the {what} {key} are not of one length above 0; it is damaged")
    lower, upper = found
    wrong = [i for i, (a, b) in enumerate(zip(lower, upper, strict=True)) if not -math.inf < a <= b < math.inf]
    if wrong:
        i = wrong[0]
        raise ValueError(
            f"{path}: {low} and {high} of the {what} {key} are {lower[i]} and {upper[i]} at place {i}, no bounds; it "
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


def _list(found: Any) -> list[Any]:
    return found if isinstance(found, list) else []


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as e:
        raise ValueError(f"{path} is not readable as JSON ({e}); copy the checkpoint again") from e
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no JSON object; copy the checkpoint again")
    return found
