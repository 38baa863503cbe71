"""Numbers of a task in the places where a released GR00T was trained to see them (`gr00t.state_names`).

Each named number goes to the slot of its name in the checkpoint's state and is scaled by the checkpoint's statistics to
[-1, 1], as LeRobot's processor of N1.7 does it (GrootN17PackInputsStep). Slots that no number is named for are 0, the
middle between their bounds.
"""

import logging
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import torch
from torch import Tensor, nn

from rl.config import nearest
from rl.models.gr00t_checkpoint import StateLayout
from rl.models.gr00t_observation import observed

log = logging.getLogger(__name__)


class StateMap(nn.Module):
    """What was trained with one mapping is not loaded under another: its state dict holds the mapping."""

    columns: Tensor
    slots: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, layout: StateLayout, columns: Sequence[int], slots: Sequence[int]) -> None:
        """Number `columns[i]` of the task's vectors goes to slot `slots[i]` of the checkpoint's state."""
        super().__init__()
        self.size, self.clip = len(layout.names), layout.clip
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.long))
        self.register_buffer("slots", torch.tensor(slots, dtype=torch.long))
        self.register_buffer("low", torch.tensor([layout.low[i] for i in slots], dtype=torch.float32))
        self.register_buffer("high", torch.tensor([layout.high[i] for i in slots], dtype=torch.float32))

    def forward(self, vector: Tensor, width: int) -> Tensor:
        """(B, numbers of the task) -> (B, width)."""
        scaled = 2 * (vector.index_select(1, self.columns) - self.low) / (self.high - self.low) - 1
        scaled = scaled.clamp(-1.0, 1.0) if self.clip else scaled
        return vector.new_zeros(len(vector), width).index_copy(1, self.slots, scaled)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Raises ValueError for weights that were trained with another mapping."""
        for name, own in self.named_buffers():
            trained = state_dict.get(prefix + name)
            if trained is not None and not torch.equal(trained.cpu(), own.cpu()):
                raise ValueError(
                    f"these weights were trained with other {name} of the state ({trained.tolist()}) than "
                    f"gr00t.state_names and the files of gr00t.checkpoint give now ({own.tolist()}); put both back as "
                    "they were (config.yaml of the run; statistics.json and processor_config.json of the checkpoint)"
                )
        super()._load_from_state_dict(state_dict, prefix, *args)


def unread() -> StateMap:
    """Of a plan, which reads no checkpoint: nothing is named."""
    return StateMap(StateLayout([], [], [], True, set()), [], [])


def map_state(names: Sequence[str | None], layout: StateLayout, space: gym.Space) -> StateMap:
    """Raises ValueError where names and numbers of the task, or names and the checkpoint, do not go together."""
    vectors, _, width = observed(space)
    if len(names) != width:
        spaces = dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {"": space}
        sizes = [f"{n or 'the observation'} {int(torch.Size(spaces[n].shape or ()).numel())}" for n in vectors]
        raise ValueError(
            f"gr00t.state_names has {len(names)} names, the task shows the actor {width} numbers "
            f"({', '.join(sizes)}); give one for each in this order, null for one that the checkpoint does not know"
        )
    named = {column: name for column, name in enumerate(names) if name is not None}
    for name in named.values():
        if name not in layout.names:
            raise ValueError(
                f"{nearest(name, layout.names, 'gr00t.state_names:')} (null for a number that the checkpoint does not "
                "know)"
            )
    slots = [layout.names.index(name) for name in named.values()]
    other = [n for n in named.values() if n in layout.standardized]
    if other:
        raise ValueError(
            f"gr00t.state_names: {', '.join(other)} are scaled by mean and standard deviation in this checkpoint, "
            "which is not supported; give them null"
        )
    still = [layout.names[i] for i in slots if _still(layout.low[i], layout.high[i])]
    if still:
        raise ValueError(
            f"gr00t.state_names: {', '.join(still)} never moved in the data of this checkpoint (lowest and highest are "
            "equal), so nothing gives them a scale; give them null"
        )
    unnamed = [n for n in layout.names if n not in named.values()]
    log.info("GR00T's state: %d of the task's %d numbers are told, as the checkpoint's %s; not told, 0: %s",
             len(named), width, ", ".join(named.values()), ", ".join(unnamed) or "none")  # fmt: skip
    return StateMap(layout, list(named), slots)


def _still(low: float, high: float) -> bool:
    """As good as equal, by NumPy's `isclose`: NVIDIA's own processor told such a number as 0."""
    return high - low <= 1e-8 + 1e-5 * abs(low)
