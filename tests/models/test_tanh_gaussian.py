"""The squashed Gaussian against numerical integration."""

import math
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.models.tanh_gaussian import Gaussian, TanhGaussianActor, log_prob, log_tanh_slope, sample

D = torch.float64


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, 0.0), (1.5, -1.0), (-3.0, 0.5), (0.2, -2.5)])
def test_the_density_integrates_to_one_and_its_entropy_is_the_numerical_one(mean: float, log_std: float) -> None:
    u = torch.linspace(-18, 18, 400_001, dtype=D)
    policy = Gaussian(torch.full((1, 1), mean, dtype=D), torch.full((1, 1), log_std, dtype=D))
    log_p = log_prob(policy, u[:, None])
    a = torch.tanh(u)
    inside = log_tanh_slope(u) > -35  # beyond, neighbouring actions are one float
    p, a = log_p.exp()[inside], a[inside]
    assert torch.trapezoid(p, a).item() == pytest.approx(1.0, abs=1e-4)
    entropy = -torch.trapezoid(p * log_p[inside], a).item()
    noise = torch.randn(400_000, 1, dtype=D, generator=torch.Generator().manual_seed(0))
    assert -sample(policy, noise)[1].mean().item() == pytest.approx(entropy, abs=0.02)


def test_the_probability_of_an_interval_is_that_of_the_normal_distribution() -> None:
    mean, std = 0.4, 0.7
    policy = Gaussian(torch.full((1, 1), mean, dtype=D), torch.full((1, 1), math.log(std), dtype=D))
    a = torch.linspace(-0.3, 0.9, 100_001, dtype=D)
    mass = torch.trapezoid(log_prob(policy, torch.atanh(a)[:, None]).exp(), a).item()
    z = [(math.atanh(x) - mean) / std for x in (-0.3, 0.9)]
    assert mass == pytest.approx(0.5 * (math.erf(z[1] / math.sqrt(2)) - math.erf(z[0] / math.sqrt(2))), abs=1e-8)


def test_sampled_log_probs_are_those_of_the_sampled_actions_summed_over_dims() -> None:
    policy = Gaussian(torch.randn(5, 3, dtype=D), torch.randn(5, 3, dtype=D) * 0.3)
    noise = torch.randn(5, 3, dtype=D)
    action, logp = sample(policy, noise)
    torch.testing.assert_close(log_prob(policy, torch.atanh(action)), logp)


def test_the_slope_of_a_saturated_tanh_keeps_its_logarithm() -> None:
    u = torch.tensor([0.0, 1.0, 20.0, -20.0])
    exact = [0.0, math.log(1 - math.tanh(1.0) ** 2), 2 * (math.log(2) - 20), 2 * (math.log(2) - 20)]
    torch.testing.assert_close(log_tanh_slope(u), torch.tensor(exact))


def test_log_std_modes_and_zero_heads() -> None:
    zero = TanhGaussianActor(3, 2, [8], "silu", True, (-5.0, 0.0), squash_log_std=True, zero_init_heads=True)
    out = zero(torch.randn(4, 3))
    assert (out.mean == 0).all() and (out.log_std == -2.5).all()  # sigma 0.082
    cut = TanhGaussianActor(3, 2, [8], "relu", False, (-1.0, 0.5), squash_log_std=False, zero_init_heads=False)
    with torch.no_grad():
        cut.head.bias.copy_(torch.tensor([0.0, 0.0, -9.0, 9.0]))
    assert cut(torch.zeros(1, 3)).log_std.tolist() == [[-1.0, 0.5]]


@settings(max_examples=15)
@given(
    hidden=st.lists(st.integers(2, 12), min_size=1, max_size=3), rows=st.integers(1, 9),
    activation=st.sampled_from(["relu", "silu", "elu"]), layernorm=st.booleans(), squash=st.booleans(),
)  # fmt: skip
def test_the_policy_and_every_gradient_are_those_of_double_precision(
    hidden: list[int], rows: int, activation: str, layernorm: bool, squash: bool
) -> None:
    """In single precision the whole network is one operation, in double precision it goes layer by layer."""
    torch.manual_seed(0)
    single = TanhGaussianActor(5, 2, hidden, activation, layernorm, (-5.0, 2.0), squash, zero_init_heads=False)
    features, found = torch.randn(rows, 5), []
    for actor in (single, deepcopy(single).double()):
        x = features.to(actor.head.weight.dtype).requires_grad_()
        policy = actor(x)
        loss = policy.mean.square().sum() + policy.log_std.square().sum()
        found.append([*policy, *torch.autograd.grad(loss, [x, *actor.parameters()])])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), two.double(), rtol=1e-3, atol=1e-3)


def test_gradients_of_samples_are_those_that_finite_differences_give() -> None:
    torch.manual_seed(0)
    mean, log_std = (torch.randn(4, 3, dtype=D, requires_grad=True) for _ in range(2))
    noise = torch.randn(4, 3, dtype=D)
    assert torch.autograd.gradcheck(lambda m, s: sample(Gaussian(m, s), noise), (mean, log_std))
    saturated = torch.tensor([[40.0, -40.0]], requires_grad=True)
    actions, log_density = sample(Gaussian(saturated, torch.zeros(1, 2)), torch.zeros(1, 2))
    of_mean = torch.autograd.grad(log_density.sum(), saturated, retain_graph=True)[0]
    torch.testing.assert_close(of_mean, torch.tensor([[2.0, -2.0]]))
    assert not torch.autograd.grad(actions.sum(), saturated)[0].any()
