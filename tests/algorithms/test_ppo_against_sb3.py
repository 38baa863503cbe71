"""The presets sb3 and a2c against Stable-Baselines3 itself on recorded rollouts."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3 as sb3
import torch
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from rl.data.returns import gae
from rl.types import VectorStep
from tests.helpers.ppo_learner import Learner, WalkEnv, preset

E = 4
Rows = list[tuple[Tensor, Tensor, VectorStep]]


class Spaces(gym.Env):
    """Tells Stable-Baselines3 the spaces; never stepped."""

    def __init__(self, env: WalkEnv) -> None:
        self.observation_space, self.action_space = env.observation_space, env.action_space


def linears(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


def pairs(learner: Learner, theirs: Any) -> list[tuple[Tensor, Tensor]]:
    """(ours, theirs) of every parameter."""
    p = learner.policy
    assert p.critic_body is not None
    own = [*linears(p.actor_body), p.actor_head, *linears(p.critic_body), p.critic_head]
    other = [
        *linears(theirs.mlp_extractor.policy_net), theirs.action_net,
        *linears(theirs.mlp_extractor.value_net), theirs.value_net,
    ]  # fmt: skip
    found = [
        (a, b) for m, n in zip(own, other, strict=True) for a, b in zip(m.parameters(), n.parameters(), strict=True)
    ]
    if isinstance(learner.env.action_space, gym.spaces.Box):
        found.append((next(p.distribution.parameters()), theirs.log_std))
    assert len(found) == len(list(p.parameters()))
    return found


def make(kind: type, learner: Learner, **settings: Any) -> Any:
    """Stable-Baselines3's algorithm with our weights."""
    cfg = learner.ppo.cfg
    vec = DummyVecEnv([lambda: Spaces(learner.env)] * E)
    algorithm = kind("MlpPolicy", vec, n_steps=cfg.n_steps, device="cpu", **settings)
    algorithm.set_logger(Logger(None, []))
    with torch.no_grad():
        for ours, theirs in pairs(learner, algorithm.policy):
            theirs.copy_(ours)
    return algorithm


def record(learner: Learner) -> Rows:
    """One rollout of ours."""
    rows: Rows = []
    while not learner.actor.storage.full:
        x = learner.env.x
        sent = learner.actor.act(learner.ppo.parallel.autocast())
        step = learner.env.step(sent)
        rows.append((x, learner.actor._actions, step))
        learner.actor.record(step)
    return rows


def replay(algorithm: Any, rows: Rows, starts: np.ndarray) -> np.ndarray:
    """Fills its buffer as `collect_rollouts` does; returns the flags of the next rollout's first row."""
    buffer = algorithm.rollout_buffer
    buffer.reset()
    for x, actions, step in rows:
        with torch.no_grad():
            values, logp, _ = algorithm.policy.evaluate_actions(x, actions)
            reward = (
                step.reward
                + algorithm.gamma * step.truncated * algorithm.policy.predict_values(step.next_observation)[:, 0]
            )
        buffer.add(x.numpy(), actions.numpy(), reward.numpy(), starts, values, logp)
        starts = (step.terminated | step.truncated).numpy()
    with torch.no_grad():
        last = algorithm.policy.predict_values(rows[-1][2].observation)
    buffer.compute_returns_and_advantage(last_values=last, dones=starts)
    return starts


def same_order(learner: Learner) -> Callable[[int], np.ndarray]:
    """np.random.permutation that gives the rows we will draw; its rows are environment-major, ours time-major."""
    T, generator = learner.ppo.cfg.n_steps, torch.Generator()
    generator.set_state(learner.ppo.generator.get_state())

    def permutation(count: int) -> np.ndarray:
        ours = torch.randperm(count, generator=generator)
        return ((ours % E) * T + ours // E).numpy()

    return permutation


def test_two_iterations_equal_stable_baselines3(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = preset("sb3", "n_steps=16", "minibatch_size=24", "n_epochs=3", "entropy_coef=0.01")
    learner = Learner.make(cfg, WalkEnv(E))
    peer = make(sb3.PPO, learner, batch_size=24, n_epochs=3, ent_coef=0.01)
    starts = np.ones(E, dtype=bool)
    for _ in range(2):
        rows = record(learner)
        assert any(bool(r[2].truncated.any()) for r in rows)
        batch = learner.actor.finish(learner.ppo.parallel.total, learner.ppo.parallel.autocast())
        starts = replay(peer, rows, starts)
        buffer = peer.rollout_buffer
        for ours, theirs in [
            (batch.returns, buffer.returns), (batch.advantages, buffer.advantages), (batch.logp, buffer.log_probs),
            (batch.values, buffer.values),
        ]:  # fmt: skip
            torch.testing.assert_close(ours, torch.from_numpy(theirs), rtol=1e-4, atol=1e-5)
        monkeypatch.setattr(np.random, "permutation", same_order(learner))
        found = learner.ppo.update(batch, 0.0)
        peer.train()
        seen = peer.logger.name_to_value
        assert found["value_loss"] == pytest.approx(seen["train/value_loss"], rel=1e-4)
        assert found["policy_loss"] == pytest.approx(seen["train/policy_gradient_loss"], rel=1e-3, abs=1e-6)
        assert found["entropy"] == pytest.approx(-seen["train/entropy_loss"], rel=1e-5)
        assert found["clip_fraction"] == pytest.approx(seen["train/clip_fraction"], abs=1e-6)
        assert found["explained_variance"] == pytest.approx(seen["train/explained_variance"], abs=1e-4)
        for own, other in pairs(learner, peer.policy):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "space", [gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(3), gym.spaces.MultiDiscrete([2, 3])]
)
def test_the_a2c_preset_equals_stable_baselines3_a2c(space: gym.Space) -> None:
    cfg = preset("a2c")
    learner = Learner.make(cfg, WalkEnv(E, action_space=space))
    peer = make(sb3.A2C, learner)
    starts = np.ones(E, dtype=bool)
    for _ in range(20):
        rows = record(learner)
        batch = learner.actor.finish(learner.ppo.parallel.total, learner.ppo.parallel.autocast())
        starts = replay(peer, rows, starts)
        learner.ppo.update(batch, 0.0)
        peer.train()
    for own, other in pairs(learner, peer.policy):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)


def test_advantages_equal_those_of_its_buffer_when_nothing_is_cut_by_time() -> None:
    learner = Learner.make(preset("sb3", "n_steps=16"), WalkEnv(E, limit=10**6))
    peer = make(sb3.PPO, learner, batch_size=16)
    rows = record(learner)
    replay(peer, rows, np.ones(E, dtype=bool))
    buffer = peer.rollout_buffer
    values = torch.from_numpy(buffer.values)
    with torch.no_grad():
        last = peer.policy.predict_values(rows[-1][2].observation)[:, 0]
    ends = torch.stack([r[2].terminated for r in rows])
    advantages, _ = gae(
        torch.from_numpy(buffer.rewards), values, torch.cat([values[1:], last[None]]), ends, torch.zeros_like(ends),
        torch.ones_like(ends), 0.99, 0.95,
    )  # fmt: skip
    torch.testing.assert_close(advantages, torch.from_numpy(buffer.advantages), rtol=1e-4, atol=1e-5)
