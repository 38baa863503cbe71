"""An environment with Isaac Lab's contract and none of its weight: buffers are used again, ended environments are
reset inside `step`, "final_obs" appears only when one ended and stays there, stale, afterwards. `common_step_counter`,
by which curricula go, counts every step.

Environment e counts its steps: the observation is [count, e]. It terminates at count `fatal` in environment 0 and is
cut by time after `limit` steps.
"""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from tests.envs.counter_env import CounterEnv


class FakeIsaacEnv:
    def __init__(
        self, num_envs: int = 3, limit: int = 5, fatal: int = 3, final_obs: bool = True, finite: bool = False,
        critic: bool = False,
    ) -> None:  # fmt: skip
        self.num_envs, self.device, self.step_dt, self.max_episode_length = num_envs, "cpu", 0.02, limit
        self.cfg = SimpleNamespace(is_finite_horizon=finite)
        if final_obs:
            self.cfg.compute_final_obs = True
        box = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
        groups = {"policy": box} | ({"critic": gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)} if critic else {})
        self.single_observation_space = gym.spaces.Dict(groups)
        self.single_action_space: gym.Space[Any] = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.fatal, self.final_obs, self.critic = fatal, final_obs, critic
        self.count = torch.zeros(num_envs)
        self.episode_length_buf = torch.zeros(num_envs, dtype=torch.long)
        self.policy_buf, self.reward_buf = torch.zeros(num_envs, 2), torch.zeros(num_envs)
        self.terminated_buf, self.truncated_buf = torch.zeros(2, num_envs, dtype=torch.bool).unbind(0)
        self.extras: dict[str, Any] = {}
        self.seeds: list[int] = []
        self.sent: list[Tensor] = []
        self.closed, self.common_step_counter = 0, 0

    def _observe(self) -> dict[str, Tensor]:
        self.policy_buf[:, 0], self.policy_buf[:, 1] = self.count, torch.arange(self.num_envs)
        return {"policy": self.policy_buf} | ({"critic": 10 * self.count[:, None]} if self.critic else {})

    def reset(self, seed: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        self.seeds.append(seed)
        torch.manual_seed(seed)
        self.count.zero_()
        self.episode_length_buf.zero_()
        return self._observe(), self.extras

    def step(self, actions: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        self.sent.append(actions.clone())
        self.count += 1
        self.common_step_counter += 1
        self.episode_length_buf = self.episode_length_buf + 1
        self.terminated_buf[:] = (self.count == self.fatal) & (torch.arange(self.num_envs) == 0)
        self.truncated_buf[:] = self.episode_length_buf >= self.max_episode_length
        self.reward_buf[:] = self.count
        ended = self.terminated_buf | self.truncated_buf
        if ended.any():
            if self.final_obs:
                self.extras["final_obs"] = {k: v.clone() for k, v in self._observe().items()}
            self.count[ended] = 0
            self.episode_length_buf[ended] = 0
        return self._observe(), self.reward_buf, self.terminated_buf, self.truncated_buf, self.extras

    def close(self) -> None:
        self.closed += 1


class IsaacCounters:
    """Environments of `CounterEnv` behind the same contract; `make` is called for each of them."""

    def __init__(self, make: Callable[[], CounterEnv], num_envs: int) -> None:
        self.envs = [make() for _ in range(num_envs)]
        self.num_envs, self.device, self.step_dt, self.max_episode_length = num_envs, "cpu", 0.02, 10**6
        self.cfg = SimpleNamespace(is_finite_horizon=False, compute_final_obs=True)
        box = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.single_observation_space = gym.spaces.Dict({"policy": box})
        self.single_action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.policy_buf, self.reward_buf = torch.zeros(num_envs, 3), torch.zeros(num_envs)
        self.terminated_buf, self.truncated_buf = torch.zeros(2, num_envs, dtype=torch.bool).unbind(0)
        self.extras: dict[str, Any] = {}
        self.common_step_counter = 0

    def reset(self, seed: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
        for i in range(self.num_envs):
            self._begin(i)
        return {"policy": self.policy_buf}, self.extras

    def _begin(self, i: int) -> None:
        self.policy_buf[i] = torch.from_numpy(self.envs[i].reset()[0])

    def step(self, actions: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        self.common_step_counter += 1
        for i, env in enumerate(self.envs):
            observation, reward, terminated, truncated, _ = env.step(actions[i].numpy())
            self.policy_buf[i] = torch.from_numpy(observation)
            self.reward_buf[i], self.terminated_buf[i], self.truncated_buf[i] = reward, terminated, truncated
        ended = (self.terminated_buf | self.truncated_buf).nonzero().flatten().tolist()
        if ended:
            self.extras["final_obs"] = {"policy": self.policy_buf.clone()}
        for i in ended:
            self._begin(i)
        return {"policy": self.policy_buf}, self.reward_buf, self.terminated_buf, self.truncated_buf, self.extras

    def close(self) -> None:
        """Nothing to end."""
