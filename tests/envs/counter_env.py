"""A deterministic gymnasium environment whose every number can be written down."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class CounterEnv(gym.Env[Any, Any]):
    """Episode k of environment `index` has `lengths[k % len]` steps and ends by `kinds[k % len]`.

    Observation (episode, step, index); reward step + 0.1 * action. With `as_dict` the observation is {"count": ...}.
    """

    def __init__(self, lengths: list[int], kinds: list[str], index: int = 0, as_dict: bool = False) -> None:
        self.lengths, self.kinds, self.index, self.as_dict = lengths, kinds, index, as_dict
        box = spaces.Box(-np.inf, np.inf, (3,), np.float64)
        self.observation_space = spaces.Dict({"count": box}) if as_dict else box
        self.action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.episode, self.steps = -1, 0

    def _observe(self) -> Any:
        count = np.array([self.episode, self.steps, self.index], np.float64)
        return {"count": count} if self.as_dict else count

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.steps < self.lengths[self.episode % len(self.lengths)], "stepped past the end of an episode"
        self.steps += 1
        ended = self.steps == self.lengths[self.episode % len(self.lengths)]
        kind = self.kinds[self.episode % len(self.kinds)]
        reward = self.steps + 0.1 * float(action[0])
        return self._observe(), reward, ended and "terminated" in kind, ended and "truncated" in kind, {}
