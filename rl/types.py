"""Names and records that pass between the parts. No logic.

Letters: T time, N history slots, E environments, A padded action dim, S padded state dim.
"""

from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]


class Observation(TypedDict, total=False):
    """One observation of `F1RLEnv`; vector environments put E in front of every shape."""

    image0: UInt8Array  # (vlm, vlm, 3) teacher: head camera; student: wrist camera
    image1: UInt8Array  # (vlm, vlm, 3) wrist camera; teacher only
    image0_history: UInt8Array  # (N, wm, wm, 3) wrist camera, oldest first
    history_mask: Int8Array  # (N,) 1 where the slot lies inside the episode
    action_history: FloatArray  # (N, A) executed normalised actions
    action_known: Int8Array  # (N,) 0 where the action is not known yet (the last slot)
    state: FloatArray  # (S,)


@dataclass
class Transition:
    """One row of a vector step over E environments; `next_observation` is the true one, also where an episode ended."""

    observation: Observation
    action: FloatArray  # (E, A) executed
    reward: FloatArray  # (E,)
    terminated: npt.NDArray[np.bool_]  # (E,)
    truncated: npt.NDArray[np.bool_]  # (E,)
    next_observation: Observation
    infos: dict[str, Any]


@dataclass
class EpisodeRecord:
    """One episode as pictures: frame t was seen before `actions[t]`, frame t + 1 after it."""

    head: UInt8Array  # (T + 1, vlm, vlm, 3)
    wrist: UInt8Array  # (T + 1, wm, wm, 3)
    wrist_vlm: UInt8Array  # (T + 1, vlm, vlm, 3)
    states: FloatArray  # (T + 1, S)
    actions: FloatArray  # (T, A) executed normalised actions
    env_index: int
    episode_index: int  # of this environment
