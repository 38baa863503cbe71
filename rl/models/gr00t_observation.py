"""What of a task's observation GR00T sees: vectors, cameras, and what is for the critic alone."""

from typing import NamedTuple

import gymnasium as gym
import torch
from torch import Tensor

from rl.models.actor_critic import is_privileged
from rl.types import PictureSpace, TensorTree


class Camera(NamedTuple):
    """Where an observation has the newest picture of a camera: three channels of an entry."""

    entry: str
    first: int
    name: str

    def of(self, parts: dict[str, Tensor]) -> Tensor:
        """(B, 3, H, W) uint8."""
        return parts[self.entry][:, self.first : self.first + 3]


def by_name(observation: TensorTree) -> dict[str, Tensor]:
    return {"": observation} if isinstance(observation, Tensor) else observation


def observed(space: gym.Space) -> tuple[list[str], list[Camera], int]:
    """Names of the vectors that the actor is shown, its cameras, and how many numbers the vectors hold.

    Cameras are in the order of the observation's entries, and of the space's `cameras` where an entry has several.
    Raises ValueError for spaces that are neither.
    """
    spaces = dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {"": space}
    vectors: list[str] = []
    pictures: list[Camera] = []
    width = 0
    for name, s in spaces.items():
        if is_privileged(name):
            continue
        if not isinstance(s, gym.spaces.Box):
            raise ValueError(f"observation '{name}' is {s}; GR00T needs a Box, or a Dict of Boxes")
        if s.dtype == "uint8" and len(s.shape) == 3:
            pictures += cameras_of(name, s)
        else:
            vectors.append(name)
            width += int(torch.Size(s.shape).numel())
    if not vectors:
        raise ValueError("GR00T needs a state beside the pictures; this task shows pictures only")
    return vectors, pictures, width


def cameras_of(name: str, space: gym.spaces.Box) -> list[Camera]:
    """Of the newest frame. Raises ValueError for pictures that are not RGB, channels first."""
    names = space.cameras if isinstance(space, PictureSpace) else (name,)
    channels, height, width = space.shape
    if channels % (3 * len(names)) or min(height, width) <= 4:
        raise ValueError(
            f"observation '{name}' {space.shape} does not consist of RGB pictures, their channels first; GR00T sees "
            "no others"
        )
    start = channels - 3 * len(names)
    return [Camera(name, start + 3 * i, camera) for i, camera in enumerate(names)]


def for_critic(space: gym.Space) -> tuple[list[str], int]:
    """Names of the entries for the critic alone, and how many numbers they hold.

    Raises ValueError for one that is no vector.
    """
    entries = dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {}
    spaces = {n: s for n, s in entries.items() if is_privileged(n)}
    for name, s in spaces.items():
        if not isinstance(s, gym.spaces.Box) or len(s.shape) == 3:
            raise ValueError(f"observation '{name}' is {s}; GR00T's value head takes vectors for the critic alone only")
    return list(spaces), sum(int(torch.Size(s.shape or ()).numel()) for s in spaces.values())
