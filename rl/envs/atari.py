"""The Atari treatment of the 37 PPO details (14 to 20), from gymnasium's wrappers where it has them."""

import importlib
import importlib.util
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec

from rl.config import AtariConfig

INSTALL = ".venv/bin/python -m pip install -r requirements/atari.txt"


def is_game(task: str) -> bool:
    """By its id, or by its package once that is imported."""
    spec = gym.registry.get(task)
    known = spec is not None and str(spec.entry_point).startswith("ale_py")
    return known or task.startswith("ALE/") or task.endswith("NoFrameskip-v4")


def register_games(task: str) -> None:
    """Makes gymnasium know the ids of ale_py. Raises ValueError with the command where it is not installed."""
    if importlib.util.find_spec("ale_py") is None:
        raise ValueError(f"task {task} is an Atari game and needs ale_py, which is not installed: {INSTALL}")
    gym.register_envs(importlib.import_module("ale_py"))


def make_game(spec: EnvSpec, cfg: AtariConfig, render_mode: str | None = None) -> gym.Env:
    """One environment of a game; frames are skipped here and not in the emulator."""
    return atari_env(gym.make(spec, render_mode=render_mode, frameskip=1), cfg)


def atari_env(env: gym.Env, cfg: AtariConfig) -> gym.Env:
    """`env` is an ALE game without frame skipping. Observations become uint8 (frame_stack, size, size)."""
    env = gym.wrappers.AtariPreprocessing(
        env, noop_max=cfg.noop_max, frame_skip=cfg.frame_skip, screen_size=cfg.screen_size
    )
    if cfg.episodic_life:
        env = EpisodicLife(env)
    if cfg.fire and "FIRE" in _meanings(env):
        env = FireReset(env)
    if cfg.clip_rewards:
        env = gym.wrappers.TransformReward(env, lambda reward: float(np.sign(float(reward))))
    return gym.wrappers.FrameStackObservation(env, cfg.frame_stack)


def _meanings(env: gym.Env) -> list[str]:
    meanings: list[str] = env.unwrapped.get_action_meanings()  # type: ignore[attr-defined]
    return meanings


def _lives(env: gym.Env) -> int:
    lives: int = env.unwrapped.ale.lives()  # type: ignore[attr-defined]
    return lives


class EpisodicLife(gym.Wrapper):
    """A lost life terminates, but the game itself begins anew only when it is over."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._lives, self._game_over = 0, True

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._game_over = terminated or truncated
        lives = _lives(self.env)
        lost, self._lives = lives < self._lives, lives
        return observation, reward, terminated or lost, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if self._game_over or seed is not None:
            observation, info = self.env.reset(seed=seed, options=options)
        else:  # on with the next life, by a no-op
            observation, _, terminated, truncated, info = self.env.step(0)
            if terminated or truncated:
                observation, info = self.env.reset(options=options)
        self._game_over, self._lives = False, _lives(self.env)
        return observation, info


class FireReset(gym.Wrapper):
    """Presses FIRE after a reset, and after a lost life when the episode goes on: a policy that never presses it would
    stand still until the time is over."""

    def __init__(self, env: gym.Env) -> None:
        super().__init__(env)
        self._lives = 0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        before, self._lives = self._lives, _lives(self.env)
        if self._lives < before and not terminated and not truncated:
            observation, more, terminated, truncated, info = self._fire()
            reward = float(reward) + float(more)
        return observation, reward, terminated, truncated, info

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.env.reset(seed=seed, options=options)
        observation, _, terminated, truncated, info = self._fire()
        if terminated or truncated:
            observation, info = self.env.reset(options=options)
        self._lives = _lives(self.env)
        return observation, info

    def _fire(self) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        return self.env.step(_meanings(self.env).index("FIRE"))
