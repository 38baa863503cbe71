"""Critics: the C51 projection against brute force, ensembles against single networks."""

import math
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rl.models.q_networks import CategoricalValue, CriticEnsemble, ScalarValue, project


def brute_force(probs: list[float], atoms: list[float], reward: float, discount: float) -> list[float]:
    """Algorithm 1 of Bellemare et al. 2017, one atom at a time, with the share of exact hits spelled out."""
    spacing = (atoms[-1] - atoms[0]) / (len(atoms) - 1)
    out = [0.0] * len(atoms)
    for p, z in zip(probs, atoms, strict=True):
        moved = min(max(reward + discount * z, atoms[0]), atoms[-1])
        for j, atom in enumerate(atoms):
            out[j] += p * max(0.0, 1.0 - abs(moved - atom) / spacing)
    return out


rows = st.lists(
    st.tuples(st.floats(-30, 30), st.sampled_from([0.0, 0.5, 0.97, 1.0])), min_size=1, max_size=6
)  # discount 0: terminal


@settings(max_examples=60, deadline=None)
@given(rows=rows, atoms=st.integers(2, 21), seed=st.integers(0, 100))
def test_the_projection_is_the_brute_force_one(rows: list[tuple[float, float]], atoms: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    support = torch.linspace(-10, 10, atoms, dtype=torch.float64)
    probs = torch.rand(2, len(rows), atoms, generator=generator, dtype=torch.float64).softmax(-1)
    reward, discount = torch.tensor(rows, dtype=torch.float64).unbind(1)
    out = project(probs, support, reward, discount)
    expected = [
        [brute_force(probs[n, b].tolist(), support.tolist(), *rows[b]) for b in range(len(rows))] for n in range(2)
    ]
    torch.testing.assert_close(out, torch.tensor(expected, dtype=torch.float64), atol=1e-9, rtol=0)
    torch.testing.assert_close(out.sum(-1), torch.ones(2, len(rows), dtype=torch.float64))


def test_the_projection_of_exact_hits_clamped_and_terminal_rows_by_hand() -> None:
    atoms = torch.tensor([0.0, 1.0, 2.0])
    probs = torch.tensor([0.2, 0.3, 0.5]).expand(1, 4, 3)
    reward = torch.tensor([0.0, 1.0, 5.0, 1.25])
    discount = torch.tensor([1.0, 1.0, 1.0, 0.0])
    expected = [[0.2, 0.3, 0.5], [0.0, 0.2, 0.8], [0.0, 0.0, 1.0], [0.0, 0.75, 0.25]]
    torch.testing.assert_close(project(probs, atoms, reward, discount)[0], torch.tensor(expected))


def test_targets_by_hand_pessimistic_and_of_each_critics_own() -> None:
    reward, discount = torch.tensor([1.0, 1.0]), torch.tensor([0.5, 0.0])
    value = ScalarValue(torch.tensor([[2.0, 7.0], [4.0, 6.0]]))
    assert value.target(reward, discount, own=True).tolist() == [[2.0, 1.0], [3.0, 1.0]]
    assert value.target(reward, discount, own=False).tolist() == [[2.0, 1.0]]
    assert value.loss(torch.tensor([[1.0, 7.0]])).item() == pytest.approx(0.5 * ((1 + 0) / 2 + (9 + 1) / 2))
    atoms = torch.tensor([0.0, 1.0])
    logits = torch.tensor([[[0.0, 0.0]], [[0.0, 3.0]]])  # the first critic has the smaller mean
    categorical = CategoricalValue(logits, atoms)
    torch.testing.assert_close(categorical.mean(), torch.tensor([[0.5], [1 / (1 + math.exp(-3))]]))
    one = (torch.zeros(1), torch.ones(1))
    torch.testing.assert_close(categorical.target(*one, own=False), torch.tensor([[[0.5, 0.5]]]))
    torch.testing.assert_close(categorical.target(*one, own=True), logits.softmax(-1))
    target = torch.tensor([[[0.25, 0.75]]])
    by_hand = nn.CrossEntropyLoss(reduction="sum")(logits[:, 0], target[0].expand(2, -1))
    torch.testing.assert_close(categorical.loss(target), by_hand)
    assert categorical.target_mean(target).item() == 0.75


@pytest.mark.parametrize("layernorm", [False, True])
def test_an_ensemble_is_its_members_side_by_side(layernorm: bool) -> None:
    critic = CriticEnsemble(3, 2, [8, 5], 3, "silu", layernorm)
    features, action = torch.randn(6, 3), torch.randn(6, 2)
    values = critic(features, action).mean()
    for n in range(3):
        x = torch.cat([features, action], 1)
        for i in range(2):
            x = x @ critic.layers[i].weight[n] + critic.layers[i].bias[n]
            if layernorm:
                x = nn.functional.layer_norm(x, x.shape[-1:], critic.norms[i].weight[n, 0], critic.norms[i].bias[n, 0])
            x = nn.functional.silu(x)
        out = x @ critic.head.weight[n] + critic.head.bias[n]
        torch.testing.assert_close(values[n], out[:, 0])


@settings(max_examples=25)
@given(
    hidden=st.lists(st.integers(1, 12), min_size=1, max_size=3), members=st.integers(1, 3), rows=st.integers(1, 9),
    activation=st.sampled_from(["relu", "silu", "tanh"]), layernorm=st.booleans(), frozen=st.booleans(),
    categorical=st.booleans(),
)  # fmt: skip
def test_values_and_every_gradient_are_those_of_double_precision(
    hidden: list[int], members: int, rows: int, activation: str, layernorm: bool, frozen: bool, categorical: bool
) -> None:
    """In single precision the whole network is one operation, in double precision it goes layer by layer."""
    torch.manual_seed(0)
    # A normalised layer of width 1 is always 0, and its gradient rounding alone.
    widths = [max(2, h) for h in hidden]
    atoms = torch.linspace(-1, 1, 7) if categorical else None
    single = CriticEnsemble(5, 3, widths, members, activation, layernorm, atoms)
    with torch.no_grad():
        for p in single.parameters():
            p += 0.1 * torch.randn_like(p)
    found = []
    features, action = torch.randn(rows, 5), torch.randn(rows, 3)
    for critic in (single, deepcopy(single).double()):
        dtype = critic.head.weight.dtype
        inputs = [x.to(dtype).requires_grad_() for x in (features, action)]
        value = critic(*inputs, frozen=frozen)
        out = value.logits_NBK if isinstance(value, CategoricalValue) else value.mean()
        loss = out.square().sum() + value.mean().mean(0).sum()
        trained = [] if frozen else list(critic.parameters())
        found.append([out, *torch.autograd.grad(loss, [*inputs, *trained])])
    for one, two in zip(*found, strict=True):
        torch.testing.assert_close(one.double(), two.double(), rtol=1e-3, atol=1e-3)


def test_a_frozen_critic_passes_gradients_to_the_action_only() -> None:
    critic = CriticEnsemble(3, 2, [8], 2, "relu", True, torch.linspace(-1, 1, 5))
    action = torch.randn(4, 2, requires_grad=True)
    critic(torch.randn(4, 3), action, frozen=True).mean().sum().backward()
    assert action.grad is not None and action.grad.abs().sum() > 0
    assert all(p.grad is None for p in critic.parameters())


def test_an_unknown_activation_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="'gelu' does not exist; there are tanh, elu, relu, silu"):
        CriticEnsemble(3, 2, [8], 2, "gelu")
