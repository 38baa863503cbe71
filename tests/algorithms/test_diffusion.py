"""QVPO: weights, targets at time limits, averages, schedules, and that it learns."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl.algorithms.diffusion import DiffusionPolicy, chosen
from rl.algorithms.guarded_step import guarded_step
from rl.config import ActorReduce, DiffusionConfig, DiffusionNetworkConfig, TargetReduce, check_diffusion
from rl.data.replay import ReplayBatch

OBS, ACT, B = 3, 2, 16
SPACE = gym.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)


def make(**changes: Any) -> DiffusionPolicy:
    torch.manual_seed(0)
    network = DiffusionNetworkConfig(width=32, num_blocks=2, num_heads=2, state_tokens=2, critic_hidden=[32])
    defaults = {"batch_size": B, "actor_batch_size": B, "train_samples": 4, "eval_samples": 4, "entropy_actions": 2}
    cfg = DiffusionConfig(network=network, **{**defaults, **changes})
    return DiffusionPolicy(cfg, SPACE, ACT, generator=torch.Generator().manual_seed(0))


def batch(rows: int = B, seed: int = 0) -> ReplayBatch:
    g = torch.Generator().manual_seed(seed)
    return ReplayBatch(
        torch.randn(rows, OBS, generator=g), torch.rand(rows, ACT, generator=g) * 2 - 1,
        torch.randn(rows, generator=g), torch.full((rows,), 0.9), torch.randn(rows, OBS, generator=g),
    )  # fmt: skip


class Judge(torch.nn.Module):
    """Critics in place of a network: -|a - 0.5|^2, and the same less 1."""

    def forward(self, features: torch.Tensor, action: torch.Tensor) -> Any:
        q = -(action - 0.5).square().sum(1)
        return type("Value", (), {"mean": lambda self: torch.stack([q, q - 1])})()


@pytest.mark.parametrize("reduce", ActorReduce)
def test_the_best_of_several_actions_is_the_one_the_critics_prefer(reduce: ActorReduce) -> None:
    policy = make(actor_reduce=reduce)
    actions = torch.tensor([[[0.0, 0.0], [0.5, 0.5], [1.0, 1.0]], [[0.4, 0.5], [-1.0, 0.5], [0.5, -1.0]]])
    worth = policy.networks.worth(Judge(), torch.zeros(2, OBS), actions)  # type: ignore[arg-type]
    q = torch.tensor([[-0.5, 0.0, -0.5], [-0.01, -2.25, -2.25]])
    torch.testing.assert_close(worth, q - (0.5 if reduce is ActorReduce.mean else 1.0))
    torch.testing.assert_close(chosen(actions, worth), torch.tensor([[0.5, 0.5], [0.4, 0.5]]))


@pytest.mark.parametrize("reduce", TargetReduce)
def test_targets_bootstrap_at_time_limits_and_not_after_terminations(reduce: TargetReduce) -> None:
    """The discount of the replay decides, which is 0 after a termination only."""
    policy = make(reward_scale=2.0, target_reduce=reduce)
    b = batch()
    b.discount[:5] = 0.0
    nets = policy.networks
    assert isinstance(b.next_observation, torch.Tensor)
    drawn = policy._draw(b.next_observation, 3, 10)
    loss, _ = policy._critic_loss(b.observation, b, b.next_observation, drawn)
    worth = torch.stack([nets.target(b.next_observation, drawn[:, k]).mean().amin(0) for k in range(3)], 1)
    action = drawn[torch.arange(B), worth.argmax(1)]
    after = nets.target(b.next_observation, action).mean()
    target = 2.0 * b.reward + b.discount * (after if reduce is TargetReduce.own else after.amin(0))
    now = nets.critic(b.observation, b.action).mean()
    assert loss.item() == pytest.approx((0.5 * (now - target).square().mean(1).sum()).item(), rel=1e-5)
    torch.testing.assert_close(target[..., :5], 2.0 * b.reward[:5].expand_as(target[..., :5]))


def test_the_actor_loss_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make(entropy_weight=0.5, entropy_weight_final=0.1)
    policy.set_progress(0.5)  # weight 0.3
    features, drawn = torch.randn(B, OBS), torch.rand(B, 4, ACT) * 2 - 1
    seen: list[torch.Tensor] = []
    nets, generator = policy.networks, policy.generator
    assert generator is not None
    predict = type(nets.actor).forward

    def spy(self: Any, context: Any, noisy: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out = predict(self, context, noisy, t)
        seen.extend([noisy, t, out.detach()])
        return out

    start = generator.get_state()
    with monkeypatch.context() as patch:
        patch.setattr(type(nets.actor), "forward", spy)
        loss, advantage = policy._actor_loss(features, drawn)
    generator.set_state(start)
    q = torch.stack([nets.critic(features, drawn[:, k]).mean().amin(0) for k in range(4)], 1)
    best, adv = drawn[torch.arange(B), q.argmax(1)], (q.amax(1) - q.mean(1)).detach()
    uniform = torch.rand(B, 2, ACT, generator=generator) * 2 - 1
    t = torch.randint(10, (3 * B,), generator=generator)
    noise = torch.randn(3 * B, ACT, generator=generator)
    actions = torch.cat([best[:, None], uniform], 1).view(-1, ACT)
    noisy, steps, predicted = seen
    torch.testing.assert_close(noisy, nets.diffusion.add_noise(actions, t, noise))
    assert torch.equal(steps, t)
    error = (predicted - actions).square().mean(1).view(B, 3)
    by_hand = (adv / adv.mean() * (error[:, 0] + 0.3 * (error[:, 1] + error[:, 2]))).mean()
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    assert advantage.item() == pytest.approx(adv.mean().item())


def test_gradients_of_the_actor_come_from_the_denoising_loss_only() -> None:
    policy = make()
    loss, _ = policy._actor_loss(torch.randn(B, OBS), torch.rand(B, 4, ACT))
    loss.backward()
    assert all(p.grad is None for p in [*policy.networks.critic.parameters(), *policy.networks.average.parameters()])
    assert policy.networks.actor.head.weight.grad is not None


def test_averages_follow_and_the_actor_learns_every_second_update_with_delay_two() -> None:
    policy = make(actor_delay=2, ema_tau=0.25, tau=0.5)
    nets = policy.networks
    before = {k: v.clone() for k, v in nets.state_dict().items()}
    policy.update(batch())
    middle = {k: v.clone() for k, v in nets.state_dict().items()}
    metrics = policy.update(batch(seed=1))
    after = nets.state_dict()
    assert "actor_loss" not in metrics and metrics["finite"] == 1
    for name in (k.removeprefix("actor.") for k in before if k.startswith("actor.")):
        mixed = 0.75 * before[f"average.{name}"] + 0.25 * middle[f"actor.{name}"]
        torch.testing.assert_close(middle[f"average.{name}"], mixed)
        assert torch.equal(middle[f"actor.{name}"], after[f"actor.{name}"])
    name = "head.weight"
    torch.testing.assert_close(middle[f"target.{name}"], 0.5 * (before[f"target.{name}"] + middle[f"critic.{name}"]))


def test_exploration_noise_falls_over_its_share_of_the_run() -> None:
    policy = make(noise=0.4, noise_final=0.1, noise_share=0.5, act_samples=1)
    spreads = []
    for share in (0.0, 0.25, 0.5, 1.0):
        policy.set_progress(share)
        policy._draw = lambda *a: torch.zeros(4000, 1, ACT)  # type: ignore[method-assign]
        spreads.append(policy.act(torch.zeros(4000, OBS)).std().item())
    assert spreads == pytest.approx([0.4, 0.25, 0.1, 0.1], rel=0.05)


def test_actions_near_the_best_drawn_one_compete_at_a_distance_that_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every second one with noise 0.2 to 0.05 over half of the run, the others with 0.05; none of them leaves [-1, 1];
    the advantage is over those drawn."""
    policy = make(nearby_samples=400, nearby_noise=0.2, nearby_noise_final=0.05, noise_share=0.5)
    nets = policy.networks
    nets.critic = Judge()  # type: ignore[assignment]
    drawn = torch.tensor([[[0.1, 0.4], [1.0, 0.98]]])  # worth -1.17 and -1.4804 by the smaller critic
    judged: list[torch.Tensor] = []
    worth = nets.worth

    def spy(critic: Any, features: torch.Tensor, actions: torch.Tensor) -> torch.Tensor:
        judged.append(actions)
        return worth(critic, features, actions)

    monkeypatch.setattr(nets, "worth", spy)
    for progress, scale in [(0.0, 0.2), (0.25, 0.125), (1.0, 0.05)]:
        policy.set_progress(progress)
        judged.clear()
        best, advantage = policy._improved(torch.zeros(1, OBS), drawn)
        first, near = judged
        assert torch.equal(first, drawn) and near.shape == (1, 400, ACT) and near.abs().max() <= 1
        for rows, noise in [(near[0, ::2], scale), (near[0, 1::2], 0.05)]:
            assert (rows - drawn[0, 0]).std().item() == pytest.approx(noise, rel=0.1)
        nearest = (near[0] - 0.5).square().sum(1).min()
        torch.testing.assert_close((best[0] - 0.5).square().sum(), nearest)
        torch.testing.assert_close(advantage[0], -1 - nearest - (-1.17 - 1.4804) / 2)


def test_when_nothing_near_is_better_the_best_drawn_action_stays() -> None:
    policy = make(nearby_samples=5)
    policy.networks.critic = Judge()  # type: ignore[assignment]
    best, advantage = policy._improved(torch.zeros(1, OBS), torch.tensor([[[0.5, 0.5], [0.5, 0.0]]]))
    torch.testing.assert_close(best, torch.tensor([[0.5, 0.5]]))
    torch.testing.assert_close(advantage, torch.tensor([0.125]))


def test_the_policy_moves_to_where_the_critic_is_high() -> None:
    """The best action is 0.5 in both dims; a new policy draws zeros."""
    policy = make(actor_lr=3e-3, train_samples=1, nearby_samples=8, ema_tau=0.1)
    nets = policy.networks
    nets.critic = Judge()  # type: ignore[assignment]

    def away() -> float:
        return (policy._draw(torch.randn(200, OBS), 1, 10) - 0.5).abs().mean().item()

    start = away()
    for _ in range(80):
        features = torch.randn(B, OBS)
        loss, _ = policy._actor_loss(features, policy._draw(features, 1, 2))
        assert guarded_step(policy.optimizers["actor"], loss, 2.0).finite == 1
        policy._follow(nets.actor, nets.average, 0.1)
    assert start == pytest.approx(0.5) and away() < 0.15


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_samples": 1}, r"diffusion\.train_samples is 1; it must lie between 2 and 1000"),
        ({"train_passes": 11}, r"diffusion\.train_passes is 11; it must lie between 1 and 10"),
        ({"actor_batch_size": 64, "batch_size": 32}, r"diffusion\.actor_batch_size is 64; .* between 1 and 32"),
        ({"batch_size": 0}, r"diffusion\.batch_size is 0; it must lie between 1"),
        ({"actor_lr": -1e-3}, r"diffusion\.actor_lr is -0\.001"),
        ({"noise": -0.1}, r"diffusion\.noise is -0\.1"),
        ({"network": DiffusionNetworkConfig(num_heads=0)}, r"diffusion\.network\.num_heads is 0"),
        ({"network": DiffusionNetworkConfig(critic_hidden=[32, 0])}, r"diffusion\.network\.critic_hidden is 0"),
    ],
)
def test_settings_that_no_run_can_use_are_refused_by_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_diffusion(DiffusionConfig(**changes))
