"""Environments that do harm to themselves, for the supervisor's tests; also imported by its worker processes."""

import ctypes
import os
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np

HORIZON = 6


def hurt(kind: str) -> None:
    """What a simulator may do."""
    if kind == "raise":
        raise RuntimeError("the solver diverged")
    if kind == "exit":
        os._exit(7)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "segfault":
        ctypes.string_at(0)
    if kind == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    if kind == "hang":
        time.sleep(60)


class ToyEnv(gym.Env[np.ndarray, np.ndarray]):
    """Observation (4,): environment, random word of the episode, step, action that led here. Ends after 6 steps.

    `fault`: what happens at step `at` of an episode, once (it leaves the file `flag`) or with `always` every time.
    """

    def __init__(
        self, index: int = 0, fault: str | None = None, at: int = 3, flag: str | None = None, always: bool = False
    ) -> None:
        self.index, self.fault, self.at, self.flag, self.always = index, fault, at, flag, always
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = gym.spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.t, self.word = 0, 0.0

    def _maybe_hurt(self) -> None:
        if self.fault is None or self.t != self.at:
            return
        if not self.always:
            assert self.flag is not None
            if Path(self.flag).exists():
                return
            Path(self.flag).touch()
        hurt(self.fault)

    def _see(self, action: float) -> np.ndarray:
        return np.array([self.index, self.word, self.t, action], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.t, self.word = 0, float(self.np_random.random())
        self._maybe_hurt()
        return self._see(0.0), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.t += 1
        self._maybe_hurt()
        return self._see(float(action[0])), float(action[0]), False, self.t >= HORIZON, {}


class Holder:
    """Not an environment: what a worker can hold."""

    def __init__(self, start: int) -> None:
        self.value = start

    def add(self, number: int) -> int:
        self.value += number
        return self.value

    def hurt(self, kind: str) -> None:
        hurt(kind)

    def half_an_answer(self) -> None:
        """Begins to answer and hangs."""
        os.write(int(sys.argv[1]), struct.pack("!Q", 1000) + bytes(10))
        hurt("hang")

    def close(self) -> None:
        """A worker closes what it builds anew."""


def refuse() -> None:
    raise ValueError("environment.num_objects is -1; it must be at least 0")
