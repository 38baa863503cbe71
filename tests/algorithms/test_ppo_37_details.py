"""The 37 implementation details of PPO (Huang et al. 2022), a test each, named by its number.

14 to 22 are in test_ppo_37_details_atari. A test of a detail with a switch shows both sides. Inherent, without one:

- 1 (episodes go on across rollouts), 5 (the bootstrap; gamma and lambda are settings), 8 and 11 (ratio and gradient are
  clipped; the ranges are settings), 10 (the terms of the loss; their weights are settings), 12 (the numbers)
- 23 and 25: a Box space has independent Gaussians; 24: their std does not depend on the state
- 33 to 36: whatever has an LSTM (`network.lstm=0`: none); 37: a MultiDiscrete space has independent choices
- auxiliary 2 (several processes share gradients) and 4 (an observation with an action_mask has one)
"""

import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rl.algorithms import ppo_losses as L
from rl.algorithms.ppo import PPO, SingleProcess, make_optimizer
from rl.config import AdvantageNorm, InitKind, Minibatches, PPONetworkConfig
from rl.data.rollout import minibatch_indices
from rl.models.actor_critic import ActorCritic
from rl.models.recurrent import ResettingLSTM
from rl.models.running_norm import ObservationNormalizer, RewardNormalizer, RunningNorm
from tests.helpers.ppo_learner import Learner, WalkEnv, assert_orthogonal, preset

BOX3 = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
BOX2 = gym.spaces.Box(-1, 1, (2,), np.float32)
SMALL = ("num_envs=4", "n_steps=8", "num_minibatches=2", "n_epochs=2")


def learner(*overrides: str, env: Any = None) -> Learner:
    return Learner.make(preset("ppo37", *SMALL, *overrides), env or WalkEnv(4))


# --- 13 core details ---


def test_detail_1_episodes_go_on_across_rollouts_of_fixed_length() -> None:
    env = WalkEnv(4, limit=20)
    env.reset(0)
    one = learner(env=env)
    ages = []
    for _ in range(2):
        batch = one.collect()
        assert batch.logp.shape == (8, 4)
        ages.append(env.age.clone())
    assert (ages[1] == ages[0] + 8).any()  # nobody was reset at the end of a rollout


def test_detail_2_weights_are_orthogonal_and_biases_zero() -> None:
    policy = learner().policy
    assert policy.critic_body is not None
    for body in (policy.actor_body, policy.critic_body):
        for layer in (m for m in body if isinstance(m, nn.Linear)):
            assert_orthogonal(layer.weight, math.sqrt(2))
    assert_orthogonal(policy.actor_head.weight, 0.01)
    assert_orthogonal(policy.critic_head.weight, 1.0)
    assert all(not m.bias.any() for m in policy.modules() if isinstance(m, nn.Linear))
    plain = learner("network.init=torch").policy.actor_body[0]
    assert isinstance(plain, nn.Linear) and plain.bias.any()
    assert plain.weight.abs().max() <= 1 / math.sqrt(3)  # uniform within 1 / sqrt(inputs)


def test_detail_3_adam_has_epsilon_1e_5() -> None:
    optimizer = learner().ppo.optimizer
    assert isinstance(optimizer, torch.optim.Adam) and optimizer.defaults["eps"] == 1e-5
    assert learner("optimizer_eps=1e-8").ppo.optimizer.defaults["eps"] == 1e-8


def test_detail_4_the_learning_rate_falls_linearly_to_zero() -> None:
    one = learner()
    rates = [one.iterate(share)["learning_rate"] for share in (0.0, 0.25, 0.5)]
    assert rates == pytest.approx([3e-4, 2.25e-4, 1.5e-4])
    before = one.parameters().clone()
    one.iterate(1.0)
    assert torch.equal(one.parameters(), before)
    assert learner("schedule=constant").iterate(0.5)["learning_rate"] == pytest.approx(3e-4)


def test_detail_5_advantages_are_gae_with_a_bootstrap_at_the_end_and_returns_are_advantage_plus_value() -> None:
    one = learner("gamma=0.9", "gae_lambda=0.5", "reward_norm=false", env=WalkEnv(1, limit=10**6))
    batch = one.collect()
    rewards, ends = one.actor.storage["reward"][:, 0], one.actor.storage["terminated"][:, 0]
    last = one.policy.value(one.actor._waiting).item()
    after = [*batch.values[1:, 0].tolist(), last]
    running = 0.0
    for t in reversed(range(8)):
        alive = 0.0 if ends[t] else 1.0
        delta = float(rewards[t]) + 0.9 * alive * after[t] - float(batch.values[t, 0])
        running = delta + 0.9 * 0.5 * alive * running
        assert batch.advantages[t, 0].item() == pytest.approx(running, abs=1e-4)
    torch.testing.assert_close(batch.returns, batch.advantages + batch.values)


def test_detail_6_every_epoch_shuffles_all_rows_into_minibatches() -> None:
    generator = torch.Generator().manual_seed(0)
    epochs = list(minibatch_indices(Minibatches.shuffled, 12, [4, 4, 4], 3, generator))
    assert [[len(b) for b in e] for e in epochs] == [[4, 4, 4]] * 3
    orders = [torch.cat(e).tolist() for e in epochs]
    assert all(sorted(o) == list(range(12)) for o in orders) and orders[0] != orders[1] != orders[2]
    in_order = [torch.cat(e).tolist() for e in minibatch_indices(Minibatches.contiguous, 12, [4, 4, 4], 3, generator)]
    assert in_order == [list(range(12))] * 3


def test_detail_7_advantages_are_normalised_within_the_minibatch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = PPO._losses

    def spy(self: PPO, m: Any, *rest: Any) -> Any:
        seen.append(m.advantages)
        return original(self, m, *rest)

    monkeypatch.setattr(PPO, "_losses", spy)
    one = learner()
    assert one.ppo.cfg.advantage_norm is AdvantageNorm.minibatch
    one.iterate()
    assert len(seen) == 4
    for advantages in seen:
        assert advantages.mean().abs() < 1e-5 and advantages.std().item() == pytest.approx(1, abs=1e-4)
    seen.clear()
    raw = learner("advantage_norm=none", "n_epochs=1")
    batch = raw.collect()
    raw.ppo.update(batch, 0.0)
    assert torch.equal(torch.cat(seen).sort().values, batch.advantages.flatten().sort().values)


def test_detail_8_the_surrogate_is_clipped_at_0_2() -> None:
    cfg = preset("ppo37")
    assert cfg.clip_range == 0.2
    loss = L.clipped_surrogate(torch.tensor([math.log(3)]), torch.zeros(1), torch.ones(1), cfg.clip_range)
    assert loss.item() == pytest.approx(-1.2)


def test_detail_9_the_value_loss_is_clipped_with_the_same_range() -> None:
    cfg = preset("ppo37")
    assert cfg.value_clip == cfg.clip_range
    loss = L.value_loss(torch.tensor([2.0]), torch.tensor([2.0]), torch.tensor([0.0]), cfg.value_clip)
    assert loss.item() == pytest.approx(1.8**2)
    assert preset("ppo37", "value_clip=null").value_clip is None
    free = L.value_loss(torch.tensor([2.0]), torch.tensor([2.0]), torch.tensor([0.0]), None)
    assert free.item() == 0.0


def test_detail_10_the_loss_is_policy_minus_entropy_plus_half_of_half_the_squared_error() -> None:
    one = learner("entropy_coef=0.01")
    batch = one.collect()
    minibatch = next(iter(next(one.ppo._epochs(batch))))
    loss, stats = one.ppo._losses(minibatch, batch.scale, torch.tensor(0.2), None)
    policy, value, entropy = stats[:3].tolist()
    found = one.policy(minibatch.observation, minibatch.actions)
    assert value == pytest.approx(0.5 * (found.values - minibatch.returns).square().mean().item(), rel=1e-3)
    assert loss.item() == pytest.approx(policy - 0.01 * entropy + 0.5 * value, rel=1e-5)


def test_detail_11_the_global_gradient_norm_is_clipped_at_0_5() -> None:
    one = learner("value_coef=1000.0")
    batch = one.collect()
    minibatch = next(iter(next(one.ppo._epochs(batch))))
    one.ppo._losses(minibatch, batch.scale, torch.tensor(0.2), None)[0].backward()
    assert one.ppo._clip_gradients() > 0.5
    norm = torch.cat([p.grad.flatten() for p in one.policy.parameters() if p.grad is not None]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-3)


def test_detail_12_the_debug_numbers_are_reported() -> None:
    names = {"policy_loss", "value_loss", "entropy", "clip_fraction", "approx_kl", "explained_variance"}
    line = learner().iterate()
    assert names <= line.keys() and all(math.isfinite(line[n]) for n in names)


def test_detail_13_actor_and_critic_share_layers_or_not() -> None:
    apart = ActorCritic(BOX3, BOX2, PPONetworkConfig())
    shared = ActorCritic(BOX3, BOX2, PPONetworkConfig(shared=True))
    x = torch.randn(4, 3)
    for policy, reaches in ((apart, False), (shared, True)):
        policy.value(x).sum().backward()
        assert any(p.grad is not None for p in policy.actor_body.parameters()) is reaches


# --- 9 details of continuous actions ---


def test_detail_23_actions_are_normal_around_the_output() -> None:
    d = learner().policy.distribution
    drawn = d.sample(torch.full((20_000, 2), 3.0), torch.Generator().manual_seed(0))
    assert drawn.mean().item() == pytest.approx(3, abs=0.02) and drawn.std().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(d.mode(torch.ones(1, 2)), torch.ones(1, 2))


def test_detail_24_the_log_std_is_a_free_vector_that_begins_at_zero() -> None:
    policy = learner().policy
    assert [tuple(p.shape) for p in policy.distribution.parameters()] == [(2,)]
    assert not next(policy.distribution.parameters()).any()


def test_detail_25_dims_are_independent_so_log_probs_add_up() -> None:
    out, actions = torch.randn(5, 2), torch.randn(5, 2)
    expected = torch.distributions.Normal(out, 1.0).log_prob(actions).sum(-1)
    torch.testing.assert_close(learner().policy.distribution.log_prob(out, actions), expected)


def test_detail_26_actor_and_critic_are_networks_of_64_64_tanh() -> None:
    policy = learner().policy
    assert policy.critic_body is not None
    for body in (policy.actor_body, policy.critic_body):
        assert [m.out_features for m in body if isinstance(m, nn.Linear)] == [64, 64]
        assert sum(isinstance(m, nn.Tanh) for m in body) == 2
    other = learner("network.hidden=[32]", "network.activation=elu").policy.actor_body
    assert [m.out_features for m in other if isinstance(m, nn.Linear)] == [32]
    assert sum(isinstance(m, nn.ELU) for m in other) == 1


def test_detail_27_actions_are_clipped_only_on_their_way_to_the_environment() -> None:
    env = WalkEnv(4)
    one = learner("network.init_std=3.0", env=env)
    batch = one.collect()
    assert batch.actions.abs().max() > 1 and torch.stack(env.sent).abs().max() == 1
    torch.testing.assert_close(batch.logp, one.policy.distribution.log_prob(batch.out, batch.actions))
    unbounded = WalkEnv(4)
    own = learner("network.init_std=3.0", "clip_actions=false", env=unbounded).collect()
    assert torch.equal(torch.stack(unbounded.sent), own.actions) and own.actions.abs().max() > 1


def test_detail_28_observations_are_normalised_by_running_statistics() -> None:
    norm, x = RunningNorm((3,), eps=1e-8), torch.randn(50, 3) * 7 + 100
    for part in x.split(10):
        norm.update(part)
    expected = (x.double() - x.double().mean(0)) / x.double().std(0, correction=0)
    torch.testing.assert_close(norm(x), expected.float(), rtol=1e-4, atol=1e-4)
    assert first_observation("observation_norm=none") == pytest.approx(first_raw())
    assert first_observation() != pytest.approx(first_raw())


def first_observation(*overrides: str) -> list[float]:
    """What the network sees of the first environment at the first step of a rollout."""
    observation = learner(*overrides).collect().observation
    assert isinstance(observation, Tensor)
    return observation[0, 0].tolist()


def first_raw() -> list[float]:
    """What the environment shows there."""
    observation = WalkEnv(4).reset(0)
    assert isinstance(observation, Tensor)
    return observation[0].tolist()


def test_detail_29_normalised_observations_are_clipped_to_10() -> None:
    norm = ObservationNormalizer(BOX3, 1e-8, False, preset("ppo37").observation_clip)
    norm.update(torch.randn(100, 3))
    found = norm(torch.tensor([[1000.0, -1000.0, 0.0]]))
    assert isinstance(found, Tensor) and found[0, :2].tolist() == [10, -10]
    free = ObservationNormalizer(BOX3, 1e-8, False, preset("ppo37", "observation_clip=null").observation_clip)
    free.update(torch.randn(100, 3))
    found = free(torch.tensor([[1000.0, -1000.0, 0.0]]))
    assert isinstance(found, Tensor) and found[0, 0] > 500 and found[0, 1] < -500


def test_detail_30_rewards_are_divided_by_the_std_of_the_discounted_return_without_subtracting_a_mean() -> None:
    norm = RewardNormalizer(1, gamma=0.5, clip=None)
    rewards, ends = [1.0, 2.0, 3.0, 4.0], [False, False, True, False]
    seen, running = [], 0.0
    for r, end in zip(rewards, ends, strict=True):
        running = 0.5 * running + r
        seen.append(running)
        found = norm(torch.tensor([r]), torch.tensor([end])).item()
        running = 0.0 if end else running
        if len(seen) > 1:
            assert found == pytest.approx(r / np.std(seen), rel=1e-4)
    assert seen == [1.0, 2.5, 4.25, 4.0]
    env = WalkEnv(4)
    raw = learner("reward_norm=false", env=env)
    raw.collect()
    again = WalkEnv(4)
    again.reset(0)
    rewards_TE = torch.stack([again.step(actions).reward for actions in env.sent])
    assert torch.equal(raw.actor.storage["reward"], rewards_TE)


def test_detail_31_normalised_rewards_are_clipped_to_10() -> None:
    norm = RewardNormalizer(2, 0.99, preset("ppo37").reward_clip)
    for _ in range(1000):
        norm(torch.tensor([0.1, -0.1]), torch.ones(2, dtype=torch.bool))
    assert norm(torch.tensor([50.0, -50.0]), torch.ones(2, dtype=torch.bool)).tolist() == [10, -10]
    free = RewardNormalizer(2, 0.99, preset("ppo37", "reward_clip=null").reward_clip)
    for _ in range(1000):
        free(torch.tensor([0.1, -0.1]), torch.ones(2, dtype=torch.bool))
    found = free(torch.tensor([50.0, -50.0]), torch.ones(2, dtype=torch.bool))
    assert found[0] > 10 and found[1] < -10


# --- 5 details of recurrent policies ---


LSTM = ("network.lstm=8", "minibatches=by_environment")


def test_detail_32_lstm_weights_are_orthogonal_with_gain_1_and_biases_zero() -> None:
    policy = learner(*LSTM).policy
    assert policy.lstm is not None
    for name, parameter in policy.lstm.lstm.named_parameters():
        if "bias" in name:
            assert not parameter.any()
        else:
            assert_orthogonal(parameter, 1.0)
    plain = learner(*LSTM, "network.init=torch").policy.lstm
    assert plain is not None
    for parameter in plain.lstm.parameters():  # uniform within 1 / sqrt(hidden), biases too
        assert parameter.any() and parameter.abs().max() <= 1 / math.sqrt(8)


def test_detail_33_the_first_state_is_zero() -> None:
    one = learner(*LSTM)
    batch = one.collect()
    assert batch.state is not None and not batch.state[0].any() and not batch.state[1].any()


def test_detail_34_the_state_is_zeroed_where_an_episode_begins() -> None:
    lstm = ResettingLSTM(3, 8, InitKind.orthogonal)
    x, begins = torch.randn(6, 2, 3), torch.zeros(6, 2, dtype=torch.bool)
    begins[4, 1] = True
    state = (torch.randn(1, 2, 8), torch.randn(1, 2, 8))
    found, _ = lstm(x, state, begins)
    zero = lstm.initial_state(2)
    fresh, _ = lstm(x[4:], zero, torch.zeros(2, 2, dtype=torch.bool))
    straight, _ = lstm(x, state, torch.zeros_like(begins))
    torch.testing.assert_close(found[4:, 1], fresh[:, 1])
    torch.testing.assert_close(found[:, 0], straight[:, 0])
    assert not torch.allclose(found[4:, 1], straight[4:, 1])


def test_detail_35_minibatches_are_whole_environments_in_time_order() -> None:
    one = learner(*LSTM)
    batch = one.collect()
    assert isinstance(batch.observation, Tensor)
    for epoch in one.ppo._epochs(batch):
        seen = []
        for m in epoch:
            assert isinstance(m.observation, Tensor) and m.observation.shape == (8, 2, 3)
            columns = [
                e for e in range(4) if any(torch.equal(batch.observation[:, e], m.observation[:, i]) for i in (0, 1))
            ]
            seen += columns
            torch.testing.assert_close(m.logp.reshape(8, 2).sum(), batch.logp[:, columns].sum())
        assert sorted(seen) == [0, 1, 2, 3]


def test_detail_36_training_recomputes_from_the_stored_first_state() -> None:
    one = learner(*LSTM)
    one.collect()
    batch = one.collect()  # its first state is not zero any more
    assert batch.state is not None and batch.state[0].any() and batch.begins is not None and batch.begins.any()
    found = one.policy(batch.observation, batch.actions.flatten(0, 1), batch.state, batch.begins)
    torch.testing.assert_close(found.logp, batch.logp.flatten(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.values, batch.values.flatten(), rtol=1e-4, atol=1e-5)


# --- 1 detail of several discrete actions, and the auxiliary ones ---


def test_detail_37_a_multi_discrete_action_is_one_independent_choice_a_component() -> None:
    d = ActorCritic(BOX3, gym.spaces.MultiDiscrete([2, 3]), PPONetworkConfig()).distribution
    out = torch.randn(4, 5)
    actions = torch.tensor([[0, 2], [1, 1], [1, 0], [0, 0]])
    parts = [torch.distributions.Categorical(logits=out[:, :2]), torch.distributions.Categorical(logits=out[:, 2:])]
    torch.testing.assert_close(d.log_prob(out, actions), sum(p.log_prob(actions[:, i]) for i, p in enumerate(parts)))
    torch.testing.assert_close(d.entropy(out), sum(p.entropy() for p in parts))
    drawn = d.sample(out[:1].expand(30_000, 5), torch.Generator().manual_seed(0))
    for i, p in enumerate(parts):
        share = torch.bincount(drawn[:, i], minlength=2 + i) / 30_000
        torch.testing.assert_close(share, p.probs[0], rtol=0, atol=0.015)


def test_auxiliary_1_the_clip_range_can_fall() -> None:
    one = learner("clip_range_final_fraction=0.5")
    assert [one.iterate(s)["clip_range"] for s in (0.0, 0.5, 1.0)] == pytest.approx([0.2, 0.15, 0.1])
    assert learner().iterate(0.5)["clip_range"] == pytest.approx(0.2)


def test_auxiliary_2_two_processes_share_gradients() -> None:
    """See test_on_policy_phase: two ranks equal one with the rows of both. Here: micro-batches equal the whole."""
    whole, cut = learner(), Learner.make(preset("ppo37", *SMALL), WalkEnv(4), micro_batches=3)
    for one in (whole, cut):
        one.ppo.parallel = Thirds() if one is cut else SingleProcess()
        one.iterate()
    torch.testing.assert_close(cut.parameters(), whole.parameters(), rtol=1e-4, atol=1e-5)


class Thirds(SingleProcess):
    """Divides losses by the micro-batches, as Accelerate does."""

    def backward(self, loss: Tensor) -> None:
        (loss / 3).backward()


def test_auxiliary_3_the_update_can_end_when_the_policy_has_moved_too_far() -> None:
    free, stopped = learner("learning_rate=0.03"), learner("learning_rate=0.03", "kl_stop=0.01")
    steps = [one.iterate()["optimizer_steps"] for one in (free, stopped)]
    assert steps[0] == 4 and 1 <= steps[1] < 4


def test_auxiliary_4_actions_that_are_not_allowed_are_never_drawn_and_have_no_gradient() -> None:
    space = gym.spaces.Dict({"x": BOX3, "action_mask": gym.spaces.MultiBinary(4)})
    policy = ActorCritic(space, gym.spaces.Discrete(4), PPONetworkConfig())
    observation = {"x": torch.randn(500, 3), "action_mask": torch.tensor([[1, 0, 1, 0]]).expand(500, 4)}
    out, _, _ = policy.step(observation, None, torch.empty(0))
    drawn = policy.distribution.sample(out, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {0, 2}
    found = policy(observation, drawn)
    assert found.entropy.max() <= math.log(2) + 1e-5
    found.logp.sum().backward()
    grad = policy.actor_head.bias.grad
    assert grad is not None and grad[1] == grad[3] == 0 and grad[0] != 0


def test_rmsprop_is_there_for_a2c() -> None:
    cfg = preset("a2c")
    optimizer = make_optimizer(cfg, [nn.Parameter(torch.zeros(1))])
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert (optimizer.defaults["alpha"], optimizer.defaults["eps"], optimizer.defaults["lr"]) == (0.99, 1e-5, 7e-4)
