"""SAC: one update equal to Stable-Baselines3's, and each switch by what it changes."""

from copy import deepcopy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl.algorithms.sac import SAC
from rl.config import (
    ActorReduce,
    AlphaOn,
    CriticHead,
    LogStdMode,
    NetworkNorm,
    SACConfig,
    SACNetworkConfig,
    SACOptimizer,
    TargetReduce,
    check_sac,
)  # fmt: skip
from rl.data.replay import ReplayBatch

OBS, ACT, B = 5, 2, 32
SPACE = gym.spaces.Box(-np.inf, np.inf, (OBS,), np.float32)
ACTIONS = gym.spaces.Box(-1.0, 1.0, (ACT,), np.float32)


class NoEnv(gym.Env):
    """Spaces only: the peer wants an environment."""

    observation_space, action_space = SPACE, ACTIONS

    def reset(self, **_: Any) -> Any:
        return np.zeros(OBS, np.float32), {}

    def step(self, action: Any) -> Any:
        return np.zeros(OBS, np.float32), 0.0, False, False, {}


def batch(rows: int = B, seed: int = 0) -> ReplayBatch:
    g = torch.Generator().manual_seed(seed)
    return ReplayBatch(
        torch.randn(rows, OBS, generator=g), torch.rand(rows, ACT, generator=g) * 2 - 1,
        torch.randn(rows, generator=g), 0.99 * (torch.rand(rows, generator=g) > 0.2).float(),
        torch.randn(rows, OBS, generator=g),
    )  # fmt: skip


def small(**changes: Any) -> SACConfig:
    network = SACNetworkConfig(actor_hidden=[16, 16], critic_hidden=[16, 16], **changes.pop("network", {}))
    return SACConfig(network=network, **changes)


def make(cfg: SACConfig, seed: int = 0) -> SAC:
    torch.manual_seed(seed)
    return SAC(cfg, SPACE, ACT, generator=torch.Generator().manual_seed(seed))


def parameters(sac: SAC) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in sac.networks.state_dict().items()}


# --- the oracle ------------------------------------------------------------------------------------------------------


def copy_from_peer(sac: SAC, peer: Any) -> None:
    """The peer's weights into ours: mean and log_std heads side by side, critics stacked and transposed."""
    own = sac.networks
    with torch.no_grad():
        for ours, theirs in zip(own.actor.body[::2], peer.actor.latent_pi[::2], strict=True):
            ours.load_state_dict(theirs.state_dict())
        own.actor.head.weight.copy_(torch.cat([peer.actor.mu.weight, peer.actor.log_std.weight]))
        own.actor.head.bias.copy_(torch.cat([peer.actor.mu.bias, peer.actor.log_std.bias]))
        for q, networks in ((own.critic, peer.critic.q_networks), (own.target, peer.critic_target.q_networks)):
            for i, layer in enumerate([*q.head.layers, q.head.head]):
                layer.weight.copy_(torch.stack([n[2 * i].weight.t() for n in networks]))
                layer.bias.copy_(torch.stack([n[2 * i].bias[None] for n in networks]))


def test_updates_equal_those_of_stable_baselines3(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three gradient steps: losses of actor, critic and temperature, and every parameter after them."""
    peers = pytest.importorskip("stable_baselines3")  # Isaac Lab's environment does not have it
    from stable_baselines3.common.logger import Logger
    from stable_baselines3.common.type_aliases import ReplayBufferSamples

    peer = peers.SAC("MlpPolicy", NoEnv(), policy_kwargs={"net_arch": [16, 16]}, batch_size=B, device="cpu", seed=0)
    sac = make(small(batch_size=B))
    copy_from_peer(sac, peer)
    noises = [torch.randn(B, ACT) for _ in range(6)]  # of step i: current 2i, next 2i + 1
    batches = [batch(seed=i) for i in range(3)]

    def peer_batch(i: int) -> Any:
        b = batches[i]
        done = (b.discount == 0).float()[:, None]
        return ReplayBufferSamples(b.observation, b.action, b.next_observation, done, b.reward[:, None], None)

    peer_noise, peer_batches = iter(noises), iter(range(3))
    monkeypatch.setattr(
        "torch.distributions.normal._standard_normal", lambda *a, **k: next(peer_noise)
    )  # what Normal.rsample draws
    monkeypatch.setattr(type(peer.replay_buffer), "sample", lambda *a, **k: peer_batch(next(peer_batches)))
    logged: list[dict[str, float]] = []
    peer.set_logger(Logger(None, []))
    for i in range(3):
        peer.train(1, B)
        logged.append({k: float(v) for k, v in peer.logger.name_to_value.items() if k.startswith("train/")})
        peer.logger.name_to_value.clear()
        order = iter([noises[2 * i + 1], noises[2 * i]])  # ours: next first
        monkeypatch.setattr(sac, "_noise", lambda rows, order=order: next(order))
        metrics = sac.update(batches[i])
        assert metrics["critic_loss"].item() == pytest.approx(logged[i]["train/critic_loss"], rel=1e-4)
        assert metrics["actor_loss"].item() == pytest.approx(logged[i]["train/actor_loss"], rel=1e-4)
        assert metrics["alpha_loss"].item() == pytest.approx(logged[i]["train/ent_coef_loss"], rel=1e-4, abs=1e-6)
        assert metrics["alpha"].item() == pytest.approx(logged[i]["train/ent_coef"], rel=1e-5)
    expected = make(small(batch_size=B))
    copy_from_peer(expected, peer)
    for (name, ours), theirs in zip(sac.networks.named_parameters(), expected.networks.parameters(), strict=True):
        if name != "log_alpha":
            torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4, msg=name)
    assert sac.networks.log_alpha.item() == pytest.approx(peer.log_ent_coef.item(), abs=1e-6)


# --- switches --------------------------------------------------------------------------------------------------------


def test_a_critic_loss_by_hand_in_float64() -> None:
    """Own targets, reward scale, entropy on: 0.5 * sum over critics of mean (Q - (c r + d (Q' - alpha log pi)))^2."""
    sac = make(small(reward_scale=3.0, target_reduce=TargetReduce.own, alpha_init=0.2))
    b, noise = batch(), torch.randn(B, ACT)
    nets = sac.networks
    loss, log_prob, _ = sac._critic_loss(
        b.observation, b.action, b.reward * 3.0, b.discount, b.next_observation, torch.tensor(0.2), noise
    )
    policy = nets.actor(b.next_observation)
    u = policy.mean + policy.log_std.exp() * noise
    normal = torch.distributions.Normal(policy.mean.double(), policy.log_std.double().exp())
    logp = (normal.log_prob(u.double()) - (1 - torch.tanh(u.double()) ** 2).log()).sum(1)
    torch.testing.assert_close(log_prob.double(), logp, atol=1e-4, rtol=1e-4)
    after = nets.target(b.next_observation, torch.tanh(u)).mean().double()
    target = 3.0 * b.reward.double() + b.discount.double() * (after - 0.2 * logp)
    now = nets.critic(b.observation, b.action).mean().double()
    by_hand = 0.5 * sum(((now[n] - target[n]) ** 2).mean() for n in range(2))
    assert loss.item() == pytest.approx(by_hand.item(), rel=1e-5)


def test_the_actor_follows_the_mean_or_the_smaller_of_the_critics() -> None:
    losses = {}
    for reduce in ActorReduce:
        sac = make(small(actor_reduce=reduce))
        b, noise, alpha = batch(), torch.ones(B, ACT), torch.tensor(0.0)
        losses[reduce] = sac._actor_loss(b.observation, alpha, noise)[0].item()
        policy = sac.networks.actor(b.observation)
        action = torch.tanh(policy.mean + policy.log_std.exp())
        q = sac.networks.critic(b.observation, action).mean()
        by_hand = -(q.amin(0) if reduce is ActorReduce.min else q.mean(0)).mean()
        assert losses[reduce] == pytest.approx(by_hand.item(), rel=1e-5)
    assert losses[ActorReduce.min] > losses[ActorReduce.mean]


def test_targets_move_by_tau_and_the_actor_only_every_second_update_with_delay_two() -> None:
    sac = make(small(policy_delay=2, tau=0.25))
    before = parameters(sac)
    sac.update(batch())
    middle = parameters(sac)
    sac.update(batch(seed=1))
    after = parameters(sac)

    def moved(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor], part: str) -> bool:
        return any(not torch.equal(a[k], b[k]) for k in a if k.startswith(part))

    assert moved(before, middle, "actor") and not moved(middle, after, "actor")
    assert moved(before, middle, "critic") and moved(middle, after, "critic")
    for k in (k for k in before if k.startswith("target.")):
        online = middle["critic." + k.removeprefix("target.")]
        torch.testing.assert_close(middle[k], 0.75 * before[k] + 0.25 * online)


@pytest.mark.parametrize("alpha_on", list(AlphaOn))
def test_temperature_rises_where_the_policy_is_less_random_than_the_target(alpha_on: AlphaOn) -> None:
    for target, rises in ((100.0, True), (-100.0, False)):
        sac = make(small(alpha_on=alpha_on, target_entropy=target, alpha_init=0.1))
        start = sac.networks.log_alpha.item()
        sac.update(batch())
        assert (sac.networks.log_alpha.item() > start) == rises


def test_the_entropy_target_is_a_ratio_of_the_action_dims_unless_it_is_given() -> None:
    assert make(small()).target_entropy == -ACT
    assert make(small(target_entropy_ratio=0.5)).target_entropy == -ACT / 2
    assert make(small(target_entropy=-3.5)).target_entropy == -3.5


def test_alpha_has_no_weight_decay_and_learning_rates_fall_to_their_share() -> None:
    sac = make(small(optimizer=SACOptimizer.adamw, weight_decay=0.1, lr_final_fraction=0.1, critic_lr=1e-3))
    decay = {k: o.param_groups[0]["weight_decay"] for k, o in sac.optimizers.items()}
    assert decay == {"actor": 0.1, "critic": 0.1, "alpha": 0.0}
    sac.set_progress(0.5)
    assert sac.optimizers["critic"].param_groups[0]["lr"] == pytest.approx(0.55e-3)
    sac.set_progress(7.0)
    assert sac.optimizers["critic"].param_groups[0]["lr"] == pytest.approx(1e-4)


C51 = {"critic_head": CriticHead.c51, "num_atoms": 21, "v_min": -5.0, "v_max": 5.0}
FAST = {"norm": NetworkNorm.layernorm, "activation": "silu", "log_std_mode": LogStdMode.tanh, "log_std_min": -5.0,
        "log_std_max": 0.0, "zero_init_heads": True}  # fmt: skip


@pytest.mark.parametrize("network", [{}, C51, FAST, {**C51, **FAST}], ids=["scalar", "c51", "fast", "fast-c51"])
def test_critics_learn_a_reward_that_depends_on_the_action_and_the_actor_finds_it(network: dict[str, Any]) -> None:
    """One-step problem: reward is -(a - 0.5)^2 summed; the best action is 0.5 in every dim."""
    cfg = small(network=network, actor_lr=3e-3, critic_lr=1e-2, alpha_init=0.02, target_entropy=-4.0)
    cfg.network.actor_hidden = cfg.network.critic_hidden = [32, 32]
    sac = make(cfg)
    for i in range(400):
        b = batch(128, seed=i)
        b.reward, b.discount = -(b.action - 0.5).square().sum(1), torch.zeros(128)
        metrics = sac.update(b)
        assert metrics["finite"] == 1
    action = sac.act(torch.randn(50, OBS), deterministic=True)
    assert (action - 0.5).abs().mean() < 0.12


def test_parameters_and_the_vector_that_is_optimised_are_one_memory() -> None:
    sac = make(small())
    flat = sac._flat["critic"]
    assert flat.vector.numel() == sum(p.numel() for p in sac.networks.critic.parameters())
    with torch.no_grad():
        flat.vector.fill_(0.5)
    assert all(bool((p == 0.5).all()) for p in sac.networks.critic.parameters())
    sac.networks.load_state_dict(make(small(), seed=1).networks.state_dict())
    loaded = torch.cat([p.flatten() for p in sac.networks.critic.parameters()])
    assert torch.equal(flat.vector, loaded)
    sac.networks.double()  # moves the parameters elsewhere
    with pytest.raises(AssertionError, match="the module was moved"):
        flat.gradient(loaded.sum())


def test_a_gradient_that_is_not_finite_changes_no_parameter_and_is_reported() -> None:
    sac = make(small())
    before = parameters(sac)
    b = batch()
    b.reward[3] = float("nan")
    metrics = sac.update(b)
    assert metrics["finite"] == 0
    after = parameters(sac)
    assert all(torch.equal(before[k], after[k]) for k in before if k.startswith(("critic", "target")))


def test_observation_statistics_are_those_of_valid_rows_and_reach_every_network() -> None:
    sac = make(small(obs_norm=True))
    rows = torch.randn(1000, OBS) * 5 + 3
    valid = torch.rand(1000) > 0.5
    sac.observe(rows, valid)
    out = sac.networks.normalize(rows[valid])
    assert isinstance(out, torch.Tensor)
    torch.testing.assert_close(out.mean(0), torch.zeros(OBS), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.std(0), torch.ones(OBS), atol=1e-2, rtol=0)
    raw = sac.networks.actor(out)
    assert torch.equal(sac.act(rows[valid], deterministic=True), torch.tanh(raw.mean))


def test_a_restored_learner_continues_bit_for_bit() -> None:
    cfg = small(policy_delay=2, obs_norm=True)
    one = make(cfg)
    one.observe(torch.randn(50, OBS))
    for i in range(3):
        one.update(batch(seed=i))
    two = make(cfg, seed=9)
    two.networks.load_state_dict(deepcopy(one.networks.state_dict()))
    two.load_state_dict(deepcopy(one.state_dict()))
    assert one.generator is not None and two.generator is not None
    two.generator.set_state(one.generator.get_state())
    for i in range(3, 6):
        one.update(batch(seed=i))
        two.update(batch(seed=i))
    a, b = parameters(one), parameters(two)
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.slow  # test_ppo compiles by default
@pytest.mark.parametrize("network", [{}, C51], ids=["scalar", "c51"])
def test_fifty_compiled_updates_are_those_of_eager_mode(network: dict[str, Any]) -> None:
    eager, compiled = (make(small(network=network, compile=c, policy_delay=2)) for c in (False, True))
    for i in range(50):
        a, b = eager.update(batch(seed=i)), compiled.update(batch(seed=i))
        assert a["critic_loss"].item() == pytest.approx(b["critic_loss"].item(), rel=1e-3, abs=1e-5)
    ours, theirs = parameters(eager), parameters(compiled)
    for k in ours:
        torch.testing.assert_close(ours[k], theirs[k], atol=1e-4, rtol=1e-3, msg=k)


def test_bfloat16_autocast_stays_near_float32() -> None:
    torch.manual_seed(0)
    plain = make(small())
    mixed = make(small())
    mixed.autocast = torch.bfloat16
    a, b = plain.update(batch()), mixed.update(batch())
    assert b["critic_loss"].item() == pytest.approx(a["critic_loss"].item(), rel=0.05)
    assert a["critic_loss"].item() != b["critic_loss"].item()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gamma": 1.5}, r"sac\.gamma is 1\.5; it must lie between 0 and 1"),
        ({"policy_delay": 0}, r"sac\.policy_delay is 0"),
        ({"batch_size": 0}, r"sac\.batch_size is 0; it must lie between 1"),
        ({"learning_starts": -1}, r"sac\.learning_starts is -1"),
        ({"random_shift": -1}, r"sac\.random_shift is -1"),
        ({"critic_lr": -1e-3}, r"sac\.critic_lr is -0\.001"),
        ({"beta2": 1.0}, r"sac\.beta2 is 1\.0"),
        ({"max_grad_norm": -1.0}, r"sac\.max_grad_norm is -1\.0"),
        ({"obs_norm_eps": 0.0}, r"sac\.obs_norm_eps is 0\.0"),
        ({"reward_scale": float("nan")}, r"sac\.reward_scale is nan"),
        ({"network": {"picture_features": 0}}, r"sac\.network\.picture_features is 0"),
        ({"network": {"v_min": float("nan")}}, "v_min must lie below v_max"),
        ({"network": {"v_min": 1.0, "v_max": 1.0}}, "v_min must lie below v_max"),
    ],
)
def test_settings_that_no_run_can_use_are_refused_by_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_sac(small(**changes))
