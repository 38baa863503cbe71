"""Names and records that pass between the parts. No logic.

Letters: T time, N history slots, E environments, A padded action dim, S padded state dim.
"""

from dataclasses import dataclass
from typing import Any, Protocol, TypedDict

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]
TensorTree = torch.Tensor | dict[str, torch.Tensor]  # one observation, or several by name
PRIVILEGED = "critic"  # entry of a Dict observation (or critic_...) that the critic sees instead of the others
ARM_CAMERAS = ("front", "side", "top")  # of the reaching arm, in the order of its pictures


class PictureSpace(gym.spaces.Box):
    """uint8 (frames * V * 3, H, W): frames oldest first, in each the RGB pictures of V `cameras` in their order.

    A plain Box of pictures is a stack of one camera.
    """

    def __init__(self, cameras: tuple[str, ...], frames: int, height: int, width: int) -> None:
        super().__init__(0, 255, (frames * len(cameras) * 3, height, width), np.uint8)
        self.cameras = cameras


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
class SceneTrace:
    """What only the simulator knows of T + 1 frames of an episode with K objects; see `facts` of the simulator."""

    wrist_pose: FloatArray  # (T + 1, 7) position (m) and quaternion wxyz
    objects: FloatArray  # (T + 1, K, 3) positions (m)
    touched: npt.NDArray[np.bool_]  # (T + 1, K) so far in the episode
    in_view: npt.NDArray[np.bool_]  # (T + 1, K) of the wrist camera


@dataclass(frozen=True)
class Frame:
    """One moment of one environment, both cameras."""

    head: UInt8Array  # (vlm, vlm, 3)
    wrist: UInt8Array  # (wm, wm, 3)
    wrist_vlm: UInt8Array  # (vlm, vlm, 3)
    state: FloatArray  # (S,)


class StepReward(Protocol):
    """Rewards of one environment, step by step."""

    def begin(self, frame: Frame) -> None:
        """An episode begins."""
        ...

    def step(self, action: FloatArray, frame: Frame) -> tuple[float, dict[str, float]]:
        """Reward of the executed action (A,) that led to `frame`, and its raw components."""
        ...


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
    scene: SceneTrace | None = None  # where the collector was asked for it


@dataclass
class VectorStep:
    """What one action did in each of E environments; tensors on the environments' device.

    An adapter fills this from whatever autoreset its environments have. Rows with `valid` False are no transitions
    (the reset step of NEXT_STEP autoreset; an environment that was lost): they are neither trained on nor counted, an
    episode that was running in them is dropped, and `observation` begins another.
    """

    observation: TensorTree  # (E, ...) what the policy sees next: the first of a new episode where one ended
    next_observation: TensorTree  # (E, ...) what the action led to: the final one where an episode ended
    reward: torch.Tensor  # (E,) float32
    terminated: torch.Tensor  # (E,) bool; no bootstrap
    truncated: torch.Tensor  # (E,) bool; bootstrap from next_observation
    valid: torch.Tensor  # (E,) bool
    infos: dict[str, torch.Tensor]  # (E, ...) each; e.g. success
    # (E,) bool: environments whose simulator crashed or hung in this step (truncated, not valid); None where none can.
    lost: torch.Tensor | None = None
