"""Histories of images, actions and validity in one object, so that they can never differ in length.

Letters: N slots (`n_obs_img_steps`), K stride (`obs_img_stride`), A action dim. Slot i of the view at time t shows the
image at t - (N-1-i) K and the sum of the K actions executed from there to the image of the next slot. The last slot
belongs to the image at t; its action is a_t, which nobody knows while observing: zeros and `action_known` False.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class HistoryView(NamedTuple):
    """What an observation takes from the history; all arrays have N rows, oldest first, and are copies."""

    images: npt.NDArray[np.uint8]  # (N, H, W, 3)
    actions: npt.NDArray[np.float32]  # (N, A), sums over the stride
    valid: npt.NDArray[np.bool_]  # (N,), False where the slot lies before the episode
    action_known: npt.NDArray[np.bool_]  # (N,)


class History:
    """The last N K frames of an episode, each with the action executed after it.

    Before the episode began there is the first frame, repeated, with zero actions and validity False.
    """

    def __init__(self, num_slots: int, stride: int, image_shape: tuple[int, ...], action_dim: int) -> None:
        for name, value in [("n_obs_img_steps", num_slots), ("obs_img_stride", stride), ("action dim", action_dim)]:
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.num_slots, self.stride = num_slots, stride
        length = num_slots * stride
        self._images = np.zeros((length, *image_shape), np.uint8)
        self._actions = np.zeros((length, action_dim), np.float32)
        self._valid = np.zeros(length, np.bool_)
        self._head = -1  # row of the newest frame; negative before the first reset

    def reset(self, image: npt.NDArray[np.uint8]) -> None:
        """Starts an episode with its first frame."""
        self._images[:] = image
        self._actions[:] = 0.0
        self._valid[:] = False
        self._head = 0
        self._valid[0] = True

    def append(self, action: npt.NDArray[np.float32], image: npt.NDArray[np.uint8]) -> None:
        """`action` (A,) was executed after the newest frame and led to `image`."""
        assert self._head >= 0, "reset() must give the first frame before append()"
        self._actions[self._head] = action
        self._head = (self._head + 1) % len(self._valid)
        self._images[self._head] = image
        self._actions[self._head] = 0.0
        self._valid[self._head] = True

    def view(self) -> HistoryView:
        """The N slots at the newest frame."""
        assert self._head >= 0, "reset() must give the first frame before view()"
        length = len(self._valid)
        assert len(self._images) == len(self._actions) == length
        # Times -(N-1)K .. 0 relative to the newest frame; the rows older than that are never shown.
        slots = (self._head - self.stride * np.arange(self.num_slots - 1, -1, -1)) % length
        spans = (slots[:-1, None] + np.arange(self.stride)) % length
        actions = np.zeros((self.num_slots, self._actions.shape[1]), np.float32)
        actions[:-1] = self._actions[spans].sum(axis=1)
        known = np.ones(self.num_slots, np.bool_)
        known[-1] = False
        return HistoryView(self._images[slots], actions, self._valid[slots], known)
