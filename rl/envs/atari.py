"""The Atari treatment of the 37 PPO details (14 to 20), from gymnasium's wrappers where it has them."""

from typing import Any

import gymnasium as gym
import numpy as np


def atari_env(
    env: gym.Env, noop_max: int = 30, frame_skip: int = 4, screen_size: int = 84, episodic_life: bool = True,
    clip_reward: bool = True, frame_stack: int = 4,
) -> gym.Env:  # fmt: skip
    """`env` is an ALE game without frame skipping. Observations become uint8 (frame_stack, size, size).

    Details: up to `noop_max` no-ops after a reset (14), the maximum of the last two of `frame_skip` frames (15), an
    episode ends with a life (16), FIRE where a game waits for it (17), gray pictures (18), the sign of the reward (19),
    stacked frames (20).
    """
    env = gym.wrappers.AtariPreprocessing(env, noop_max=noop_max, frame_skip=frame_skip, screen_size=screen_size)
    if episodic_life:
        env = EpisodicLife(env)
    if "FIRE" in _meanings(env):
        env = FireReset(env)
    if clip_reward:
        env = gym.wrappers.TransformReward(env, lambda reward: float(np.sign(float(reward))))
    return gym.wrappers.FrameStackObservation(env, frame_stack)


def _meanings(env: gym.Env) -> list[str]:
    meanings: list[str] = env.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
    return meanings


class EpisodicLife(gym.Wrapper):
    """A lost life terminates, but the game itself begins anew only when it is over."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._lives, self._game_over = 0, True

    def _now(self) -> int:
        lives: int = self.env.unwrapped.ale.lives()  # type: ignore[attr-defined]
        return lives

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._game_over = terminated or truncated
        lives = self._now()
        lost, self._lives = lives < self._lives, lives
        return observation, reward, terminated or lost, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if self._game_over or seed is not None:
            observation, info = self.env.reset(seed=seed, options=options)
        else:  # on with the next life, by a no-op
            observation, _, terminated, truncated, info = self.env.step(0)
            if terminated or truncated:
                observation, info = self.env.reset(options=options)
        self._game_over, self._lives = False, self._now()
        return observation, info


class FireReset(gym.Wrapper):
    """Presses FIRE after a reset."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.env.reset(seed=seed, options=options)
        observation, _, terminated, truncated, info = self.env.step(_meanings(self.env).index("FIRE"))
        if terminated or truncated:
            observation, info = self.env.reset(options=options)
        return observation, info
