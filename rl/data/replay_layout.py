"""What one observation slot of a replay holds, and how many bytes the whole takes."""

from dataclasses import dataclass

import gymnasium as gym
import torch

from rl.types import TensorTree

SINGLE = ""  # name of an observation that is one tensor


@dataclass(frozen=True)
class Entry:
    """One tensor of an observation: `shape` and `dtype` as the environment gives them, `stored` as the replay keeps it.

    stack: of how many frames, oldest first, the leading dimension consists; only the newest is stored.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    stored: torch.dtype
    stack: int = 1

    @property
    def frame(self) -> tuple[int, ...]:
        """Shape of what is stored in one slot."""
        return (self.shape[0] // self.stack, *self.shape[1:]) if self.stack > 1 else self.shape

    @property
    def slot_bytes(self) -> int:
        return torch.Size(self.frame).numel() * self.stored.itemsize


Layout = dict[str, Entry]


def layout_of(space: gym.Space, stored_floats: torch.dtype, frame_stack: int = 1) -> Layout:
    """Entries of a Box or of a Dict of Boxes. Pictures (uint8, three dims) stay uint8, numbers become floats.

    frame_stack: frames a picture consists of along its first dimension. ValueError for other spaces.
    """
    spaces = dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {SINGLE: space}
    layout = {}
    for name, s in spaces.items():
        if not isinstance(s, gym.spaces.Box):
            raise ValueError(f"observation '{name}' is {s}; replay needs a Box, or a Dict of Boxes")
        if s.dtype == "uint8" and len(s.shape) == 3:
            if s.shape[0] % frame_stack:
                raise ValueError(f"observation '{name}' {s.shape} does not consist of {frame_stack} frames")
            layout[name] = Entry(s.shape, torch.uint8, torch.uint8, frame_stack)
        else:
            layout[name] = Entry(s.shape, torch.float32, stored_floats)
    return layout


def as_dict(tree: TensorTree) -> dict[str, torch.Tensor]:
    return tree if isinstance(tree, dict) else {SINGLE: tree}


def as_tree(parts: dict[str, torch.Tensor]) -> TensorTree:
    return parts[SINGLE] if set(parts) == {SINGLE} else parts


def replay_bytes(layout: Layout, action_dim: int, slots: int, num_envs: int) -> int:
    """Bytes of a replay: one observation, action, reward, flags and two indices a slot and environment."""
    per_slot = sum(e.slot_bytes for e in layout.values()) + 4 * action_dim + 4 + 2 + 8
    return per_slot * slots * num_envs
