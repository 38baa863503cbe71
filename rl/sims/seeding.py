"""Random streams of an episode: a pure function of (seed, rank, environment index, scene or episode index, purpose).

Every purpose has a stream of its own, so a domain randomisation switch changes what it names and nothing else.
"""

from enum import IntEnum
from typing import NamedTuple

import numpy as np


class Purpose(IntEnum):
    """What a stream is used for. The numbers are part of what makes runs repeatable: append, never renumber."""

    background = 0  # scene
    objects = 1  # scene
    appearance = 2  # scene
    placement = 3  # episode
    arm = 4  # episode
    light = 5  # episode
    screen = 6  # episode, one picture after another


class StreamKey(NamedTuple):
    """Identity of an environment within a run."""

    seed: int
    rank: int
    env_index: int

    def check(self) -> "StreamKey":
        """Raises ValueError unless every part is an integer of 32 bits (so that no two keys give one stream)."""
        for name, value in zip(self._fields, self, strict=True):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not 0 <= value < 2**32:
                raise ValueError(f"{name} is {value!r}; it must be an integer from 0 to 2**32 - 1")
        return self


def stream(key: StreamKey, index: int, purpose: Purpose) -> np.random.Generator:
    """Independent generator of scene or episode `index` for one purpose."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([*key, index, int(purpose)])))
