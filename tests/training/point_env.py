"""A tiny vector environment for phases: a point on a plane is pushed to a target within a few steps."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rl.types import VectorStep

HORIZON = 8


class PointEnv:
    """Observation position and target (E, 4), action velocity in [-2, 2] (E, 2), reward minus the distance.

    Episodes are truncated after 8 steps. `saves` False: `state_dict` refuses, as simulators do.
    """

    max_episode_steps: int | None = HORIZON

    def __init__(self, num_envs: int, saves: bool = True, action_space: gym.Space | None = None) -> None:
        self.num_envs, self.device, self.saves = num_envs, torch.device("cpu"), saves
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.action_space = action_space or gym.spaces.Box(-2.0, 2.0, (2,), np.float32)
        self.generator = torch.Generator()
        self.resets: list[int | None] = []

    def reset(self, seed: int | None = None) -> Tensor:
        self.resets.append(seed)
        if seed is not None:
            self.generator.manual_seed(seed)
        self.time = torch.randint(HORIZON, (self.num_envs,), generator=self.generator)
        self.observation = self._starts()
        return self.observation

    def _starts(self) -> Tensor:
        target = torch.rand(self.num_envs, 2, generator=self.generator) * 2 - 1
        return torch.cat([torch.zeros(self.num_envs, 2), target], 1)

    def step(self, actions: Tensor) -> VectorStep:
        position = self.observation[:, :2] + 0.25 * actions.clamp(-2, 2)
        final = torch.cat([position, self.observation[:, 2:]], 1)
        distance = (final[:, :2] - final[:, 2:]).norm(dim=1)
        self.time = self.time + 1
        ended = self.time == HORIZON
        self.time = torch.where(ended, 0, self.time)
        self.observation = torch.where(ended[:, None], self._starts(), final)
        never = torch.zeros_like(ended)
        return VectorStep(
            self.observation, final, -distance, never, ended, torch.ones_like(ended), {"success": distance < 0.2}
        )

    def state_dict(self) -> dict[str, Any]:
        if not self.saves:
            raise ValueError("PointEnv was told not to be saved")
        return {"time": self.time, "observation": self.observation, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> Tensor:
        self.time, self.observation = state["time"], state["observation"]
        self.generator.set_state(state["generator"])
        return self.observation

    def close(self) -> None:
        pass


class PicturePointEnv(PointEnv):
    """The same with a stack of two 3-channel pictures, oldest first, whose brightness is the position."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        self.observation_space = gym.spaces.Dict(  # type: ignore[assignment]
            {"pixels": gym.spaces.Box(0, 255, (6, 36, 36), np.uint8), "state": self.observation_space}
        )

    def _frame(self, state: Tensor) -> Tensor:
        level = (128 + 40 * state[:, :1]).clamp(0, 255).to(torch.uint8)
        return level[:, :, None, None].expand(-1, 3, 36, 36)

    def reset(self, seed: int | None = None) -> Any:
        state = super().reset(seed)
        self.frames = self._frame(state).repeat(1, 2, 1, 1)
        return {"pixels": self.frames, "state": state}

    def step(self, actions: Tensor) -> VectorStep:
        result = super().step(actions)
        assert isinstance(result.observation, Tensor) and isinstance(result.next_observation, Tensor)
        final = torch.cat([self.frames[:, 3:], self._frame(result.next_observation)], 1)
        first = self._frame(result.observation).repeat(1, 2, 1, 1)
        self.frames = torch.where(result.truncated[:, None, None, None], first, final)
        result.observation = {"pixels": self.frames, "state": result.observation}
        result.next_observation = {"pixels": final, "state": result.next_observation}
        return result

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "frames": self.frames}
