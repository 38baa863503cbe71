"""A2C as a preset of PPO equals an independent A2C (Huang et al. 2022) in every parameter."""

import torch
from torch import Tensor

from rl.models.actor_critic import ActorCritic
from rl.types import VectorStep
from tests.helpers.ppo_learner import Learner, WalkEnv, preset


def a2c_step(
    policy: ActorCritic, optimizer: torch.optim.Optimizer, rows: list[tuple[Tensor, Tensor, VectorStep]]
) -> None:
    """One update written out: n-step returns, -A log pi, half the squared error, clipped by 0.5."""
    with torch.no_grad():
        target, targets = policy.value(rows[-1][2].observation), []
        for _, _, s in reversed(rows):
            target = torch.where(s.truncated, policy.value(s.next_observation), target)
            target = s.reward + 0.99 * torch.where(s.terminated, 0.0, target)
            targets.insert(0, target)
    x, a, returns = torch.cat([r[0] for r in rows]), torch.cat([r[1] for r in rows]), torch.cat(targets)
    normal = torch.distributions.Normal(policy.actor_head(policy.actor_body(x)), policy.distribution.std())
    values = policy.value(x)
    advantages = (returns - values).detach()
    loss = -(advantages * normal.log_prob(a).sum(-1)).mean() + 0.5 * (returns - values).square().mean()
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 0.5)
    optimizer.step()


def test_six_hundred_updates_equal_an_independent_a2c() -> None:
    env = WalkEnv(2)
    learner = Learner.make(preset("a2c", "network.hidden=[16,16]"), env)
    other = ActorCritic(env.observation_space, env.action_space, learner.ppo.cfg.network)
    other.load_state_dict(learner.policy.state_dict())
    before = learner.parameters().clone()
    optimizer = torch.optim.RMSprop(other.parameters(), lr=7e-4, alpha=0.99, eps=1e-5)
    for _ in range(600):
        rows = []
        while not learner.actor.storage.full:
            x = env.x
            sent = learner.actor.act(learner.ppo.parallel.autocast())
            step = env.step(sent)
            rows.append((x, learner.actor._actions, step))
            learner.actor.record(step)
        batch = learner.actor.finish(learner.ppo.parallel.total, learner.ppo.parallel.autocast())
        learner.ppo.update(batch, 0.0)
        a2c_step(other, optimizer, rows)
    for ours, theirs in zip(learner.policy.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert (learner.parameters() - before).abs().max() > 0.05  # they went somewhere
