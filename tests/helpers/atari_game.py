"""A game with the interface of an ALE environment, whose pictures say what happened."""

from typing import Any

import gymnasium as gym
import numpy as np


class Screen:
    """What AtariPreprocessing reads."""

    def __init__(self, game: "FakeAtari") -> None:
        self.game = game

    def lives(self) -> int:
        return self.game.lives

    def getScreenGrayscale(self, into: np.ndarray) -> None:  # noqa: N802
        into[:] = self.game.frame % 200


class FakeAtari(gym.Env):
    """Three lives of `life` frames each; a frame pays 5 for RIGHT, -3 for FIRE; pictures hold the frame number."""

    _frameskip = 1

    def __init__(self, life: int = 40, fire: bool = True) -> None:
        self.observation_space = gym.spaces.Box(0, 255, (100, 80, 3), np.uint8)
        self.meanings = ["NOOP", "FIRE", "RIGHT"] if fire else ["NOOP", "RIGHT"]
        self.action_space = gym.spaces.Discrete(len(self.meanings))
        self.life, self.ale = life, Screen(self)
        self.actions: list[str] = []  # since the game began
        self.games = 0

    def get_action_meanings(self) -> list[str]:
        return self.meanings

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.frame, self.lives, self.actions = 0, 3, []
        self.games += 1
        return self._picture(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.frame += 1
        self.actions.append(self.meanings[action])
        self.lives = 3 - self.frame // self.life
        reward = {"NOOP": 0.0, "FIRE": -3.0, "RIGHT": 5.0}[self.meanings[action]]
        return self._picture(), reward, self.lives <= 0, False, {}

    def _picture(self) -> np.ndarray:
        return np.full((100, 80, 3), self.frame % 200, np.uint8)
