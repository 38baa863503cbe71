"""PPO's behaviour where no peer is the oracle: schedules, masks, autoreset, compilation, precision."""

import dataclasses
import math
from contextlib import AbstractContextManager
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rl.algorithms.ppo import SingleProcess, clip_grad_norm
from rl.config import CONFIG_DIR, Minibatches, load
from rl.types import VectorStep
from tests.helpers.ppo_learner import Learner, WalkEnv, preset

PRESETS = sorted(p.stem for p in (CONFIG_DIR / "algo").glob("*.yaml") if "ppo:" in p.read_text())
SMALL = ("num_envs=4", "n_steps=8", "network.hidden=[8,8]")


def learner(name: str, *overrides: str, env: Any = None) -> Learner:
    return Learner.make(preset(name, *SMALL, *overrides), env or WalkEnv(4))


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_names_existing_keys_only_of_the_block_ppo_and_trains(name: str) -> None:
    assert all(math.isfinite(v) for v in learner(name).iterate().values())


@pytest.mark.parametrize("max_norm", [0.1, 1e6])
def test_gradients_are_clipped_bit_for_bit_as_torch_clips_them(max_norm: float) -> None:
    torch.manual_seed(0)
    ours = [nn.Parameter(torch.zeros(n)) for n in (1, 7, 300)]
    for p in ours:
        p.grad = torch.randn_like(p)
    theirs = [nn.Parameter(torch.zeros_like(p)) for p in ours]
    for p, q in zip(ours, theirs, strict=True):
        q.grad = None if p.grad is None else p.grad.clone()
    frozen = nn.Parameter(torch.zeros(2))
    assert torch.equal(clip_grad_norm([*ours, frozen], max_norm), nn.utils.clip_grad_norm_(theirs, max_norm))
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(ours, theirs, strict=True))  # type: ignore[arg-type]
    assert clip_grad_norm([frozen], max_norm) == 0


@pytest.mark.parametrize("name", PRESETS)
def test_the_ratio_is_one_before_the_first_step(name: str) -> None:
    line = learner(name, "n_epochs=1", "minibatch_size=0", "num_minibatches=1").iterate()
    assert abs(line["approx_kl"]) < 1e-6 and line["clip_fraction"] == 0


def test_a_learning_rate_of_almost_zero_changes_nothing() -> None:
    one = learner("ppo_reach", "learning_rate=1e-30")
    before = one.parameters().clone()
    line = one.iterate()
    torch.testing.assert_close(before, one.parameters(), rtol=0, atol=1e-25)
    assert abs(line["approx_kl"]) < 1e-6


class Circle(WalkEnv):
    """Deterministic: reward and end depend on the episode's age only; NEXT_STEP or SAME_STEP autoreset."""

    def reset(self, seed: int | None = None) -> Tensor:
        self.age = torch.arange(self.num_envs) % 3
        self.ended = torch.zeros(self.num_envs, dtype=torch.bool)
        return self._see()

    def _see(self) -> Tensor:
        return torch.stack([torch.sin(self.age.float()), torch.cos(self.age.float()), self.age / 5.0], 1)

    def step(self, actions: Tensor) -> VectorStep:
        valid = ~self.ended
        self.age = self.age + 1
        final = self._see()
        truncated, terminated = (
            (self.age == 5) & valid,
            (self.age == 4) & (torch.arange(self.num_envs) % 2 == 0) & valid,
        )
        ended, reward = truncated | terminated, torch.where(valid, self.age.float(), 0.0)
        restart = self.ended if self.next_step else ended
        self.age = torch.where(restart, 0, self.age)
        self.ended = ended if self.next_step else torch.zeros_like(ended)
        return VectorStep(self._see(), final, reward, terminated, truncated, valid, {})


def test_both_kinds_of_autoreset_give_equal_advantages_and_losses() -> None:
    found = []
    for next_step in (False, True):
        one = learner("sb3", "n_steps=40", "minibatch_size=0", env=Circle(4, next_step=next_step))
        batch = one.collect()
        counts = torch.ones_like(batch.logp) if batch.weights is None else batch.weights
        # What an environment of a given age and kind (odd or even) should expect, whatever the autoreset.
        ages, kinds = (batch.observation[..., 2] * 5).round().long(), torch.arange(4).expand(40, 4) % 2  # type: ignore[index, call-overload]
        late = torch.arange(40)[:, None].expand(40, 4) < 25  # far from the end of the rollout
        row = {}
        for age in range(5):
            for kind in range(2):
                rows = (ages == age) & (kinds == kind) & (counts > 0) & late
                if rows.any():
                    values = batch.advantages[rows]
                    assert values.std().nan_to_num() < 1e-4 * values.abs().max() + 1e-4
                    row[age, kind] = values.mean().item()
        found.append(row)
    assert found[0].keys() == found[1].keys() and len(found[0]) == 9  # even ones terminate at 4
    for key in found[0]:
        assert found[0][key] == pytest.approx(found[1][key], rel=1e-3), key


def test_rows_of_a_reset_change_no_parameter() -> None:
    one, other = (
        learner("ppo_reach", "minibatch_size=0", "minibatches=contiguous", env=WalkEnv(4, next_step=True)) for _ in "12"
    )
    a, b = one.collect(), other.collect()
    assert a.weights is not None and isinstance(b.observation, Tensor) and b.weights is not None
    rows = b.weights == 0
    assert rows.any()
    for tensor in (b.observation, b.actions, b.returns, b.values, b.logp, b.advantages):
        tensor[rows] = torch.randn_like(tensor[rows])
    lines = [one.ppo.update(a, 0.0), other.ppo.update(b, 0.0)]
    assert torch.equal(one.parameters(), other.parameters())
    assert lines[0]["policy_loss"] == lines[1]["policy_loss"] and lines[0]["approx_kl"] == lines[1]["approx_kl"]


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(0.03, 1e-3 / 1.5), (0.015, 1e-3), (0.004, 1e-3 * 1.5), (0.0, 1e-3)],
)
def test_the_adaptive_learning_rate_follows_the_kl_divergence(kl: float, expected: float) -> None:
    one = learner("rsl_rl")
    assert one.ppo._go_on(torch.tensor([0, 0, 0, 0, 0, kl]))
    assert one.ppo.learning_rate == pytest.approx(expected)
    assert one.ppo.optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_the_adaptive_learning_rate_stays_within_its_bounds() -> None:
    one = learner("rsl_rl")
    for kl, bound in [(1.0, 1e-5), (1e-5, 1e-2)]:
        for _ in range(40):
            one.ppo._go_on(torch.tensor([0, 0, 0, 0, 0, kl]))
        assert one.ppo.learning_rate == bound


def test_separate_clipping_bounds_actor_and_critic_each() -> None:
    one = learner("rsl_rl", "max_grad_norm=0.1")
    for p in one.policy.parameters():
        p.grad = torch.ones_like(p)
    one.ppo._clip_gradients()
    for part in (one.policy.actor_parameters(), one.policy.critic_parameters()):
        norm = torch.cat([p.grad.flatten() for p in part if p.grad is not None]).norm()
        assert norm.item() == pytest.approx(0.1, rel=1e-3)


def test_a_loss_that_is_not_finite_raises_and_leaves_the_parameters() -> None:
    one = learner("sb3")
    batch, before = one.collect(), one.parameters().clone()
    batch.advantages[2, 1] = torch.inf
    with pytest.raises(FloatingPointError):
        one.ppo.update(batch, 0.0)
    assert torch.equal(before, one.parameters())


@pytest.mark.parametrize("mode", ["stored", "raw", "frozen"])
def test_observations_are_stored_as_the_mode_says(mode: str) -> None:
    one = learner("ppo_reach", f"observation_norm={mode}")
    first = one.env.x.clone()
    batch = one.collect()
    norm = one.actor.observation_norm
    assert norm is not None and isinstance(one.actor.storage.observation, Tensor)
    stored, count = one.actor.storage.observation[0], next(iter(norm.buffers())).item()
    assert torch.equal(stored, first) == (mode != "stored")
    assert count == (0 if mode == "frozen" else 4 * 9)
    if mode == "raw":
        torch.testing.assert_close(batch.observation[0], norm(first))  # type: ignore[index]
    one.ppo.update(batch, 0.0)
    one.actor.end_update(SingleProcess().total)
    assert next(iter(norm.buffers())).item() == (4 * 8 if mode == "frozen" else 4 * 9)


class BF16(SingleProcess):
    def autocast(self) -> AbstractContextManager[Any]:
        return torch.autocast("cpu", torch.bfloat16)


def test_bf16_autocast_keeps_likelihoods_in_float32_and_close_to_full_precision() -> None:
    half, full = (Learner.make(preset("ppo_reach", *SMALL), WalkEnv(4), parallel=p) for p in (BF16(), SingleProcess()))
    half.actor.act(half.ppo.parallel.autocast())
    assert half.actor._out.dtype is torch.float32
    batch = full.collect()
    lines = [one.ppo.update(batch, 0.0) for one in (half, full)]
    for name in ("policy_loss", "value_loss", "entropy"):
        assert lines[0][name] == pytest.approx(lines[1][name], rel=0.05, abs=0.02), name


@pytest.mark.parametrize(
    ("iterations", "epochs"),  # of two minibatches
    [pytest.param(1, 1, id="two-steps"), pytest.param(5, 5, id="fifty-steps", marks=pytest.mark.slow)],
)
def test_a_compiled_update_equals_the_eager_one(iterations: int, epochs: int) -> None:
    settings = ("n_steps=16", "minibatch_size=0", "num_minibatches=2", f"n_epochs={epochs}")
    eager, compiled = learner("rsl_rl", *settings), learner("rsl_rl", *settings, "compile=true")
    for _ in range(iterations):
        eager.iterate()
        compiled.iterate()
    torch.testing.assert_close(compiled.parameters(), eager.parameters(), rtol=1e-3, atol=1e-4)
    assert torch.equal(eager.ppo.generator.get_state(), compiled.ppo.generator.get_state())


def test_it_learns_to_keep_the_walk_near_zero() -> None:
    one = learner("ppo_reach", "n_steps=32", "observation_norm=raw", env=WalkEnv(16, dims=1, limit=50))
    costs = []
    for _ in range(30):
        one.iterate()
        assert isinstance(one.actor.storage.observation, Tensor)
        costs.append(one.actor.storage.observation.square().mean().item())
    assert sum(costs[-5:]) < 0.8 * sum(costs[:5])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ppo.n_steps=0", r"ppo\.n_steps is 0"),
        ("ppo.gamma=1.5", r"ppo\.gamma is 1\.5"),
        ("ppo.clip_range=0", r"ppo\.clip_range"),
        ("ppo.num_minibatches=4", "both set"),
        ("ppo.network.lstm=8", "by_environment"),
        ("ppo.learning_rate=0", "must be positive"),
        ("ppo.value_clip=-0.2", r"ppo\.value_clip is -0\.2; it must be positive"),
        ("ppo.kl_stop=-0.1", r"ppo\.kl_stop is -0\.1; it must be positive"),
        ("ppo.kl_stop=.nan", r"ppo\.kl_stop is nan"),
        ("ppo.observation_clip=0", r"ppo\.observation_clip is 0"),
        ("ppo.observation_norm_eps=0", r"ppo\.observation_norm_eps"),
        ("ppo.entropy_coef=-0.01", r"ppo\.entropy_coef is -0\.01; it must not be negative"),
        ("ppo.clip_range_final_fraction=-1", r"ppo\.clip_range_final_fraction"),
        ("ppo.final_lr_fraction=-1", r"ppo\.final_lr_fraction"),
        ("ppo.rmsprop_alpha=2", r"ppo\.rmsprop_alpha is 2\.0; it must lie between 0 and 1"),
        ("ppo.min_learning_rate=1", "ppo.min_learning_rate 1.0 lies above ppo.max_learning_rate 0.01"),
        ("ppo.network.hidden=[64,0]", r"ppo\.network\.hidden is 0"),
    ],
)
def test_settings_that_cannot_work_are_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(None, [override])


def test_separate_clipping_of_shared_layers_is_refused() -> None:
    with pytest.raises(ValueError, match="grad_clip=separate"):
        preset("rsl_rl", "network.shared=true")


def test_more_minibatches_than_rows_are_refused() -> None:
    one = learner("rsl_rl", "num_minibatches=64")
    assert one.ppo.cfg.minibatches is Minibatches.one_permutation
    with pytest.raises(ValueError, match="no minibatch"):
        one.iterate()


def test_a_minibatch_smaller_than_its_micro_batches_is_refused() -> None:
    one = Learner.make(preset("ppo_reach", *SMALL, "minibatch_size=2"), WalkEnv(4), micro_batches=3)
    with pytest.raises(ValueError, match="gradient_accumulation_steps"):
        one.iterate()


class Told(WalkEnv):
    """The actor sees the walk's first two places, the critic all of them; all are x, 2 x, -x of one number."""

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs)
        box = self.observation_space
        self.observation_space = gym.spaces.Dict({"state": gym.spaces.Box(-np.inf, np.inf, (2,)), "critic": box})

    def _start(self) -> Tensor:
        return torch.randn(self.num_envs, 3, generator=self.generator)

    def _told(self, x: Tensor) -> dict[str, Tensor]:
        whole = x[:, :1] * torch.tensor([1.0, 2.0, -1.0])
        return {"state": whole[:, :2], "critic": whole}

    def reset(self, seed: int | None = None) -> Any:
        return self._told(super().reset(seed))  # type: ignore[arg-type]

    def step(self, actions: Tensor) -> VectorStep:
        s = super().step(actions)
        told = {k: self._told(getattr(s, k)) for k in ("observation", "next_observation")}
        return dataclasses.replace(s, **told)


def test_the_estimator_s_error_is_part_of_the_loss_and_falls() -> None:
    estimating = ("network.estimator=8", "learning_rate=0.01", "schedule=constant", "observation_norm=none")
    one = learner("ppo_reach", "n_epochs=1", "minibatch_size=0", *estimating, env=Told(4))
    policy, batch = one.policy, one.collect()
    flat = {k: v.flatten(0, 1) for k, v in batch.observation.items()}
    with torch.no_grad():
        expected = (policy.estimator(flat["state"]) - flat["critic"]).square().mean()
    assert one.ppo.update(batch, 0.0)["estimator_loss"] == pytest.approx(expected.item(), rel=1e-5)
    for _ in range(60):
        line = one.iterate()
    assert line["estimator_loss"] < 0.1 * expected
    assert "estimator_loss" not in learner("ppo_reach").iterate()
