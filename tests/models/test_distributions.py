"""Action distributions against torch.distributions."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Categorical as Reference
from torch.distributions import Normal, kl_divergence

from rl.config import StdKind
from rl.models.distributions import Categorical, Gaussian, MultiCategorical, make_distribution


@pytest.mark.parametrize("kind", list(StdKind))
def test_a_gaussian_agrees_with_torch(kind: StdKind) -> None:
    torch.manual_seed(0)
    d = Gaussian(3, kind, 0.7)
    with torch.no_grad():
        d.parameter += 0.1 * torch.randn(3)
    out, old_out, actions = torch.randn(5, 3), torch.randn(5, 3), torch.randn(5, 3)
    old_scale, reference = torch.tensor([0.5, 1.0, 2.0]), Normal(out, d.std())
    torch.testing.assert_close(d.log_prob(out, actions), reference.log_prob(actions).sum(-1))
    torch.testing.assert_close(d.entropy(out), reference.entropy().sum(-1))
    torch.testing.assert_close(
        d.kl(old_out, old_scale, out), kl_divergence(Normal(old_out, old_scale), reference).sum(-1)
    )
    assert torch.equal(d.scale(), d.std())


@pytest.mark.parametrize("kind", list(StdKind))
def test_the_std_begins_as_configured_and_is_trained(kind: StdKind) -> None:
    d = Gaussian(2, kind, 0.3)
    torch.testing.assert_close(d.std(), torch.full((2,), 0.3))
    d.log_prob(torch.zeros(1, 2), torch.ones(1, 2)).sum().backward()
    assert d.parameter.grad is not None and d.parameter.grad.abs().min() > 0


def test_a_scalar_std_that_would_become_negative_stays_positive() -> None:
    d = Gaussian(1, StdKind.scalar, 0.3)
    with torch.no_grad():
        d.parameter.fill_(-1.0)
    assert d.std().item() > 0 and torch.isfinite(d.log_prob(torch.zeros(1, 1), torch.zeros(1, 1))).all()


def test_a_categorical_agrees_with_torch() -> None:
    torch.manual_seed(0)
    d, out, old = Categorical(4), torch.randn(6, 4), torch.randn(6, 4)
    actions = torch.tensor([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(d.log_prob(out, actions), Reference(logits=out).log_prob(actions))
    torch.testing.assert_close(d.entropy(out), Reference(logits=out).entropy())
    expected = kl_divergence(Reference(logits=old), Reference(logits=out))
    torch.testing.assert_close(d.kl(old, d.scale(), out), expected)
    assert torch.equal(d.mode(out), out.argmax(-1))


def test_a_multi_categorical_adds_up_its_parts() -> None:
    torch.manual_seed(0)
    d, out, old = MultiCategorical([2, 3]), torch.randn(6, 5), torch.randn(6, 5)
    parts = [(out[:, :2], old[:, :2]), (out[:, 2:], old[:, 2:])]
    expected = sum(kl_divergence(Reference(logits=o), Reference(logits=n)) for n, o in parts)
    assert isinstance(expected, Tensor)
    torch.testing.assert_close(d.kl(old, d.scale(), out), expected)
    assert d.mode(out).tolist() == [[int(n[i].argmax()) for n, _ in parts] for i in range(6)]


def test_draws_are_a_function_of_the_generator() -> None:
    for d, width in [(Gaussian(3, StdKind.log, 1.0), 3), (Categorical(4), 4), (MultiCategorical([2, 3]), 5)]:
        out = torch.zeros(50, width)
        draws = [d.sample(out, torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
        assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_frequencies_of_a_categorical_are_its_probabilities() -> None:
    p = torch.tensor([0.1, 0.6, 0.3])
    drawn = Categorical(3).sample(p.log().expand(40_000, 3), torch.Generator().manual_seed(0))
    torch.testing.assert_close(torch.bincount(drawn, minlength=3) / 40_000, p, rtol=0, atol=0.01)


@pytest.mark.parametrize("space", [gym.spaces.Box(-1, 1, (2, 2)), gym.spaces.MultiBinary(3), gym.spaces.Text(3)])
def test_a_space_without_a_policy_is_refused(space: gym.Space) -> None:
    with pytest.raises(ValueError, match="no policy for the action space"):
        make_distribution(space, StdKind.log, 1.0)


def test_spaces_give_their_distributions() -> None:
    kinds = [gym.spaces.Box(-np.inf, np.inf, (2,)), gym.spaces.Discrete(3), gym.spaces.MultiDiscrete([2, 3])]
    found = [make_distribution(s, StdKind.log, 1.0) for s in kinds]
    assert [type(d) for d in found] == [Gaussian, Categorical, MultiCategorical]
    assert [d.outputs for d in found] == [2, 3, 5]
