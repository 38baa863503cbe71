"""Actions that follow a script: towards the noisy screen."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from rl.training.collector import RandomActions

TURN = 0.6  # rad of the first joint, from the first pose to a view of the noisy screen


class TowardsScreen:
    """Turns the arm until the wrist camera has the noisy screen in view; then random actions.

    With `share` below 1 only in so many of the episodes, evenly spread over their numbers; random actions in the
    others.
    """

    def __init__(self, random: RandomActions, action_scale: float, share: float = 1.0) -> None:
        """`action_scale`: rad of a joint at action 1."""
        self.random, self.share = random, share
        self.steps = round(TURN / action_scale)

    def __call__(self, observations: dict[str, npt.NDArray[Any]], episode: int, step: int) -> npt.NDArray[np.float32]:
        actions = self.random(observations, episode, step)
        if self._turns(episode) and step < self.steps:
            actions[:] = 0
            actions[:, 0] = 1
        return actions

    def _turns(self, episode: int) -> bool:
        return math.floor((episode + 1) * self.share) > math.floor(episode * self.share)
