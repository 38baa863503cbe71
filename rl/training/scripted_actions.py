"""Actions that follow a script: towards the noisy screen."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from rl.training.collector import RandomActions

TURN = {0: 0.9, 5: 0.6}  # rad of first and sixth joint, from the first pose to a view of the noisy screen


class TowardsScreen:
    """Turns the arm until the wrist camera has the noisy screen in view; then random actions.

    With `share` below 1 only in so many of the episodes, evenly spread over their numbers; random actions in the
    others.
    """

    def __init__(self, random: RandomActions, action_scale: float, share: float = 1.0) -> None:
        """`action_scale`: rad of a joint at action 1."""
        self.random, self.share = random, share
        self.steps = {joint: round(angle / action_scale) for joint, angle in TURN.items()}

    def __call__(self, observations: dict[str, npt.NDArray[Any]], episode: int, step: int) -> npt.NDArray[np.float32]:
        actions = self.random(observations, episode, step)
        if self._turns(episode) and step < max(self.steps.values()):
            actions[:] = 0
            for joint, steps in self.steps.items():
                actions[:, joint] = step < steps
        return actions

    def _turns(self, episode: int) -> bool:
        return math.floor((episode + 1) * self.share) > math.floor(episode * self.share)
