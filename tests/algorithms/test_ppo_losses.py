"""Losses of PPO on numbers worked out by hand, with rows that do not count and over several processes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rl.algorithms import ppo_losses as L


def log(*ratios: float) -> Tensor:
    return torch.tensor([math.log(r) for r in ratios])


def test_the_surrogate_is_clipped_only_where_that_makes_it_worse() -> None:
    # A > 0 at ratio 1.5 counts 1.2 A, at 0.5 its 0.5 A; A < 0 at ratio 0.5 counts 0.8 A, at 1.5 its 1.5 A.
    loss = L.clipped_surrogate(log(1.5, 0.5, 0.5, 1.5), log(1, 1, 1, 1), torch.tensor([1.0, 1, -1, -1]), 0.2)
    assert loss.item() == pytest.approx(-(1.2 + 0.5 - 0.8 - 1.5) / 4)


def test_the_upper_clip_can_be_wider() -> None:
    loss = L.clipped_surrogate(log(1.5), log(1), torch.tensor([1.0]), 0.2, clip_high=0.28)
    assert loss.item() == pytest.approx(-1.28)


def test_at_ratio_one_the_gradient_is_that_of_the_policy_gradient() -> None:
    logp = torch.tensor([-1.0, -2.0], requires_grad=True)
    L.clipped_surrogate(logp, logp.detach(), torch.tensor([3.0, -5.0]), 0.2).backward()
    assert logp.grad is not None
    torch.testing.assert_close(logp.grad, torch.tensor([-1.5, 2.5]))


def test_a_clipped_row_has_no_gradient() -> None:
    logp = log(1.5).requires_grad_()
    L.clipped_surrogate(logp, log(1), torch.tensor([1.0]), 0.2).backward()
    assert logp.grad is not None and logp.grad.item() == 0


def test_the_value_loss_is_the_mean_squared_error() -> None:
    assert L.value_loss(torch.tensor([1.0, 4.0]), torch.tensor([2.0, 2.0])).item() == 2.5


def test_the_clipped_value_loss_takes_the_larger_error() -> None:
    # V 1.0 -> 3.0 with return 3: error 0, but near value 1.2 has error 1.8^2. V 1 -> 1.1 with return 0: 1.1^2.
    loss = L.value_loss(torch.tensor([3.0, 1.1]), torch.tensor([3.0, 0.0]), torch.tensor([1.0, 1.0]), clip=0.2)
    assert loss.item() == pytest.approx((1.8**2 + 1.1**2) / 2)


def test_rows_of_weight_zero_change_no_loss_even_when_not_finite() -> None:
    nan = float("nan")
    weights = torch.tensor([1.0, 0.0, 1.0])
    new, old = torch.tensor([-1.0, nan, -2.0]), torch.tensor([-1.1, -1.0, -1.9])
    a, v, r = torch.tensor([1.0, nan, -2.0]), torch.tensor([0.5, nan, 1.0]), torch.tensor([1.0, 3.0, 2.0])
    keep = torch.tensor([0, 2])
    assert torch.equal(
        L.clipped_surrogate(new, old, a, 0.2, weights), L.clipped_surrogate(new[keep], old[keep], a[keep], 0.2)
    )
    assert torch.equal(L.value_loss(v, r, v, 0.2, weights), L.value_loss(v[keep], r[keep], v[keep], 0.2))
    assert torch.equal(L.approx_kl(new, old, weights), L.approx_kl(new[keep], old[keep]))
    assert torch.equal(L.clip_fraction(new, old, 0.05, weights), L.clip_fraction(new[keep], old[keep], 0.05))
    torch.testing.assert_close(L.explained_variance(v, r, weights), L.explained_variance(v[keep], r[keep]))
    normalised = L.normalize_advantages(a, weights)
    torch.testing.assert_close(normalised[keep], L.normalize_advantages(a[keep]))
    assert normalised[1] == 0


def test_no_row_at_all_gives_zero() -> None:
    assert L.value_loss(torch.ones(3), torch.zeros(3), weights=torch.zeros(3)).item() == 0


def test_normalised_advantages_have_mean_zero_and_unbiased_std_one() -> None:
    x = L.normalize_advantages(torch.tensor([1.0, 2.0, 3.0]))
    torch.testing.assert_close(x, torch.tensor([-1.0, 0.0, 1.0]))


def test_a_single_advantage_is_left_as_it_is() -> None:
    assert L.normalize_advantages(torch.tensor([7.0])).item() == 7
    assert L.normalize_advantages(torch.tensor([7.0, 9.0]), torch.tensor([1.0, 0.0])).tolist() == [7, 0]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), split=st.integers(1, 8), masked=st.booleans())
def test_two_processes_normalise_like_one(seed: int, split: int, masked: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(9, generator=g) * 3 + 5
    w = (torch.rand(9, generator=g) < 0.7).float() if masked else torch.ones(9)
    parts = [(x[:split], w[:split]), (x[split:], w[split:])]

    def together(part: int) -> Tensor:
        """What rank `part` computes when the sums of the other rank are added."""
        mine, other = parts[part], parts[1 - part]
        n = w.sum()
        mean = (x * w).sum().double() / n.clamp_min(1)
        others = [
            torch.stack([other[1].sum().double(), (other[0] * other[1]).sum().double()]),
            (((other[0] - mean) ** 2) * other[1]).sum().double()[None],
        ]
        return L.normalize_advantages(*mine, total=lambda s: s + others.pop(0))

    torch.testing.assert_close(
        torch.cat([together(0), together(1)]), L.normalize_advantages(x, w), rtol=1e-4, atol=1e-5
    )


def test_the_kl_estimate_is_that_of_the_formula_and_never_negative() -> None:
    found = L.approx_kl(log(1.5, 0.8), log(1, 1))
    assert found.item() == pytest.approx(((0.5 - math.log(1.5)) + (-0.2 - math.log(0.8))) / 2, rel=1e-5)
    assert found >= 0


def test_the_clip_fraction_counts_ratios_outside_the_range() -> None:
    assert L.clip_fraction(log(1.5, 1.1, 0.5, 0.95), log(1, 1, 1, 1), 0.2).item() == 0.5


def test_explained_variance_is_one_for_a_perfect_critic_and_zero_for_a_constant_one() -> None:
    returns = torch.tensor([1.0, 2.0, 4.0])
    assert L.explained_variance(returns, returns).item() == 1
    assert L.explained_variance(torch.zeros(3), returns).item() == pytest.approx(0)
    assert torch.isnan(L.explained_variance(returns, torch.ones(3)))


def test_the_average_of_the_ranks_losses_with_a_shared_denominator_is_the_loss_of_all_rows() -> None:
    x, w = torch.tensor([1.0, 2.0, 3.0, 10.0]), torch.tensor([1.0, 0.0, 1.0, 1.0])
    mean_count = (1 + 2) / 2
    ranks = [L.weighted_mean(x[:2], w[:2], mean_count), L.weighted_mean(x[2:], w[2:], mean_count)]
    assert sum(r.item() for r in ranks) / 2 == pytest.approx(14 / 3)
