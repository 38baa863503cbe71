"""A small PPO learner over a tiny torch environment, from a preset of configs/algo."""

from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rl.algorithms.ppo import PPO, SingleProcess, make_optimizer
from rl.algorithms.ppo_rollout import Batch, RolloutActor
from rl.config import CONFIG_DIR, PPOConfig, load
from rl.models.actor_critic import ActorCritic
from rl.types import TensorTree, VectorStep


def preset(name: str, *overrides: str) -> PPOConfig:
    """configs/algo/NAME.yaml with `key=value` of the block `ppo`."""
    return load(CONFIG_DIR / "algo" / f"{name}.yaml", [f"ppo.{o}" for o in overrides]).ppo


class WalkEnv:
    """A noisy walk towards 0; episodes terminate far out or by chance and are cut by time after `limit` steps.

    SAME_STEP autoreset; with `next_step` the row after an end is a reset row (valid False) instead.
    """

    def __init__(
        self,
        num_envs: int,
        dims: int = 3,
        limit: int = 7,
        next_step: bool = False,
        action_space: gym.Space | None = None,
    ) -> None:
        self.num_envs, self.device, self.max_episode_steps = num_envs, torch.device("cpu"), limit
        self.observation_space: gym.Space = gym.spaces.Box(-np.inf, np.inf, (dims,), np.float32)
        self.action_space = action_space or gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.next_step, self.generator = next_step, torch.Generator()
        self.sent: list[Tensor] = []

    def reset(self, seed: int | None = None) -> TensorTree:
        if seed is not None:
            self.generator.manual_seed(seed)
        self.x, self.ended = self._start(), torch.zeros(self.num_envs, dtype=torch.bool)
        self.age = torch.zeros(self.num_envs, dtype=torch.long)
        return self.x

    def step(self, actions: Tensor) -> VectorStep:
        self.sent.append(actions)
        push = actions.float().reshape(self.num_envs, -1).sum(-1, keepdim=True)
        noise = torch.randn(self.x.shape, generator=self.generator)
        moved = 0.9 * self.x + 0.1 * push + 0.3 * noise
        chance = torch.rand(self.num_envs, generator=self.generator) < 0.05
        valid = ~self.ended
        age = self.age + 1
        terminated = (chance | (moved.norm(dim=-1) > 4)) & valid
        truncated = (age >= self.max_episode_steps) & ~terminated & valid
        ended, fresh = terminated | truncated, self._start()
        reward = torch.where(valid, -moved.square().sum(-1), 0.0)
        restart = ended if not self.next_step else self.ended
        self.x = torch.where(restart[:, None], fresh, moved)
        self.age = torch.where(restart, 0, age)
        self.ended = ended if self.next_step else torch.zeros_like(ended)
        return VectorStep(self.x, moved, reward, terminated, truncated, valid, {})

    def state_dict(self) -> dict[str, Any]:
        return {"x": self.x, "age": self.age, "ended": self.ended, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> TensorTree:
        self.x, self.age, self.ended = state["x"].clone(), state["age"].clone(), state["ended"].clone()
        self.generator.set_state(state["generator"])
        return self.x

    def close(self) -> None: ...

    def _start(self) -> Tensor:
        return torch.randn(self.num_envs, self.observation_space.shape[0], generator=self.generator)  # type: ignore[index]


@dataclass
class Learner:
    env: Any
    policy: ActorCritic
    actor: RolloutActor
    ppo: PPO

    @classmethod
    def make(cls, cfg: PPOConfig, env: Any, seed: int = 0, parallel: Any = None, micro_batches: int = 1) -> "Learner":
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        policy = ActorCritic(env.observation_space, env.action_space, cfg.network)
        actor = RolloutActor(cfg, policy, env.observation_space, env.action_space, env.num_envs, env.device, generator)
        optimizer = make_optimizer(cfg, policy.parameters())
        ppo = PPO(cfg, policy, policy, optimizer, parallel or SingleProcess(), generator, micro_batches)
        actor.start(env.reset(seed))
        return cls(env, policy, actor, ppo)

    def collect(self) -> Batch:
        one = SingleProcess()
        while not self.actor.storage.full:
            self.actor.record(self.env.step(self.actor.act(one.autocast())))
        return self.actor.finish(one.total, one.autocast())

    def iterate(self, share: float = 0.0) -> dict[str, float]:
        batch = self.collect()
        line = self.ppo.update(batch, share)
        self.actor.end_update(SingleProcess().total)
        return line

    def parameters(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.policy.parameters()])


def assert_orthogonal(weight: Tensor, gain: float) -> None:
    """`weight` is orthogonal times `gain`."""
    w = weight.detach().flatten(1)
    small = w @ w.t() if w.shape[0] <= w.shape[1] else w.t() @ w
    torch.testing.assert_close(small, torch.eye(len(small)) * gain**2, rtol=1e-4, atol=1e-5)
