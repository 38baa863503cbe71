"""The flow policy as a stochastic one: moments and likelihoods against closed forms in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from f1_vla.config import FlowKind, StochasticSteps
from f1_vla.flow_likelihood import (
    Chain,
    FlowProcess,
    chain_kl,
    chain_likelihood,
    chain_moments,
    draw_noise,
    noise_moments,
    sample_chain,
    sde_moments,
    stacked,
)

Q, A = 2, 5
MASK = torch.zeros(Q, A, dtype=torch.bool)
MASK[0, :3] = True  # one executed action of three real dims
REAL = torch.arange(A) < 3


def process(kind: str = "sde", steps: int = 4, n: float = 0.5, stochastic: str = "all") -> FlowProcess:
    return FlowProcess(FlowKind(kind), steps, n, StochasticSteps(stochastic))


class Net(torch.nn.Module):
    """A small velocity field that mixes all actions and dims."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.mix = torch.nn.Linear(Q * A + 1, Q * A).to(dtype)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        flat = torch.cat([x.flatten(1), time[:, None].to(x.dtype)], 1)
        return torch.tanh(self.mix(flat)).view_as(x)


def std_of(value: float) -> Callable[[Tensor], Tensor]:
    return lambda time: (value * (1 + time))[:, None, None].expand(-1, 1, A)


def drawn(p: FlowProcess, net: Net, rows: int = 6, std: Callable[[Tensor], Tensor] | None = None) -> tuple:
    noise, steps = draw_noise(p, rows, Q, A, torch.Generator().manual_seed(3))
    return (noise, *sample_chain(p, noise, steps, MASK, REAL, net, std))


# --- moments ---------------------------------------------------------------------------------------------------------


def test_the_sde_step_is_the_published_one_in_both_of_its_forms() -> None:
    """Flow-GRPO writes it as x (1 - s^2 d / 2t) - v d (1 + s^2 (1 - t) / 2t), and so do we here, number by number."""
    x, v = torch.randn(5, Q, A, dtype=torch.float64), torch.randn(5, Q, A, dtype=torch.float64)
    n, d = 0.7, 0.25
    for time in (0.25, 0.5, 0.75):
        mean, std = sde_moments(x, v, torch.full((5,), time, dtype=torch.float64), d, n)
        s = n * math.sqrt(time / (1 - time))
        expected = x * (1 - s * s * d / (2 * time)) - v * d * (1 + s * s * (1 - time) / (2 * time))
        torch.testing.assert_close(mean, expected, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(std, torch.full_like(std, s * math.sqrt(d)), rtol=1e-12, atol=0)


def test_at_the_first_step_sigma_takes_the_denominator_of_the_next_time() -> None:
    x = v = torch.ones(1, Q, A, dtype=torch.float64)
    _, std = sde_moments(x, v, torch.ones(1, dtype=torch.float64), 0.25, 0.5)
    assert float(std.squeeze()) == pytest.approx(0.5 * math.sqrt(1 / 0.25) * math.sqrt(0.25))  # n


def test_without_noise_both_kinds_are_the_euler_step() -> None:
    x, v, t = torch.randn(4, Q, A).double(), torch.randn(4, Q, A).double(), torch.full((4,), 0.5).double()
    euler = x - 0.25 * v
    mean, std = sde_moments(x, v, t, 0.25, 1e-9)
    torch.testing.assert_close(mean, euler, rtol=0, atol=1e-12)
    assert float(std.max()) < 1e-8
    assert torch.equal(noise_moments(x, v, 0.25, torch.ones(1))[0], euler)


def _gaussian_flow(mean: float, spread: float) -> Callable[[Tensor, Tensor], Tensor]:
    """Exact velocity field for actions ~ N(mean, spread^2): E[noise - action | x_t]."""

    def velocity(x: Tensor, time: Tensor) -> Tensor:
        t = time.to(x.dtype)[:, None, None]
        variance = t**2 + (1 - t) ** 2 * spread**2
        centred = x - (1 - t) * mean
        return t / variance * centred - mean - (1 - t) * spread**2 / variance * centred

    return velocity


@pytest.mark.parametrize("noise_level", [1e-6, 0.3, 0.7])
def test_the_sde_ends_in_the_distribution_of_the_ode(noise_level: float) -> None:
    """With the exact velocity of a Gaussian target both end there; 400 steps, 20,000 chains."""
    p = process(steps=400, n=noise_level)
    g = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 1, 1, generator=g, dtype=torch.float64)
    field = _gaussian_flow(0.4, 0.5)
    for i in range(p.num_steps):
        t = p.time(torch.full((len(x),), i)).double()
        mean, std = sde_moments(x, field(x, t), t, 1 / p.num_steps, p.noise_level)
        x = mean + std * torch.randn(x.shape, generator=g, dtype=torch.float64)
    assert float(x.mean()) == pytest.approx(0.4, abs=0.02)
    assert float(x.std()) == pytest.approx(0.5, abs=0.02)


# --- likelihood ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sde", "noise"])
@pytest.mark.parametrize("stochastic", ["all", "one"])
def test_the_log_probability_is_that_of_the_normals_step_by_step(kind: str, stochastic: str) -> None:
    """Float64 oracle: torch.distributions over the masked elements, steps picked one by one."""
    p, net = process(kind, stochastic=stochastic), Net()
    std = std_of(0.1) if kind == "noise" else None
    _, chain, sampled = drawn(p, net, std=std)
    log_prob, entropy = chain_likelihood(p, chain, MASK, net, std)
    wide = Net(torch.float64)
    wide.load_state_dict({k: v.double() for k, v in net.state_dict().items()})
    d = 1 / p.num_steps
    for row in range(6):
        expected = uncertain = 0.0
        for i in chain.steps[row].tolist():
            x, after = chain.x[row, i].double(), chain.x[row, i + 1].double()
            t = 1 - i * d
            v = wide(x[None], torch.tensor([t], dtype=torch.float64))[0].detach()
            if kind == "sde":
                s = p.noise_level * math.sqrt(t / (d if i == 0 else 1 - t))
                mean = (x - v * t) * (1 - (t - d)) + (x + v * (1 - t)) * (t - d - s * s * d / (2 * t))
                spread = s * math.sqrt(d)
            else:
                mean, spread = x - v * d, 0.1 * (1 + t)
            normal = torch.distributions.Normal(mean[MASK], torch.tensor(spread, dtype=torch.float64))
            expected += float(normal.log_prob(after[MASK]).sum())
            uncertain += 3 * 0.5 * math.log(2 * math.pi * math.e * spread**2)
        assert float(log_prob[row].detach()) == pytest.approx(expected, abs=2e-4)
        assert float(entropy[row]) == pytest.approx(uncertain, abs=1e-4)
    torch.testing.assert_close(sampled, log_prob, rtol=0, atol=1e-5)  # drawing and recomputing agree


@pytest.mark.parametrize("kind", ["sde", "noise"])
def test_the_ratio_of_equal_weights_is_exactly_one_and_of_others_is_not(kind: str) -> None:
    p, net = process(kind), Net()
    std = std_of(0.1) if kind == "noise" else None
    _, chain, _ = drawn(p, net, std=std)
    old, _ = chain_likelihood(p, chain, MASK, net, std)
    new, _ = chain_likelihood(p, chain, MASK, net, std)
    assert torch.equal((new - old).exp(), torch.ones(6))
    with torch.no_grad():
        net.mix.bias += 0.05
    moved, _ = chain_likelihood(p, chain, MASK, net, std)
    assert ((moved - old).exp() - 1).abs().min() > 1e-4


@pytest.mark.parametrize(("kind", "stochastic"), [("sde", "all"), ("sde", "one"), ("noise", "all")])
def test_the_gradient_is_that_of_finite_differences(kind: str, stochastic: str) -> None:
    p, net = process(kind, steps=3, stochastic=stochastic), Net(torch.float64)
    scale = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)

    def learned(time: Tensor) -> Tensor:
        return (scale * (1 + time.double()))[:, None, None].expand(-1, 1, A)

    g = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, Q, A, generator=g, dtype=torch.float64)
    steps = torch.arange(3).expand(2, 3) if stochastic == "all" else torch.tensor([[0], [2]])

    def value(weight: Tensor, s: Tensor) -> Tensor:
        def velocity(y: Tensor, time: Tensor) -> Tensor:
            return torch.func.functional_call(net, {"mix.weight": weight}, (y, time))

        std = (lambda time: learned(time) / scale * s) if kind == "noise" else None
        return chain_likelihood(p, Chain(x, steps), MASK, velocity, std)[0].sum()

    weight = net.mix.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(value, (weight, scale), atol=1e-6)


def test_elements_outside_the_mask_enter_neither_log_probability_nor_entropy() -> None:
    p = process(steps=1)
    x = torch.randn(3, 2, Q, A)
    changed = x.clone()
    changed[:, 1][:, ~MASK] += 7.0

    def velocity(y: Tensor, time: Tensor) -> Tensor:
        return torch.zeros_like(y)

    steps = torch.zeros(3, 1, dtype=torch.int64)
    for a, b in zip(
        chain_likelihood(p, Chain(x, steps), MASK, velocity),
        chain_likelihood(p, Chain(changed, steps), MASK, velocity), strict=True,
    ):  # fmt: skip
        assert torch.equal(a, b)
    padded = torch.zeros(Q, 32, dtype=torch.bool)
    padded[0, :3] = True
    wide = torch.zeros(3, 2, Q, 32)
    wide[..., :A] = x
    torch.testing.assert_close(
        chain_likelihood(p, Chain(wide, steps), padded, velocity)[0],
        chain_likelihood(p, Chain(x, steps), MASK, velocity)[0],
    )


# --- drawing ---------------------------------------------------------------------------------------------------------


def test_only_masked_elements_are_random_and_padding_keeps_its_exact_path() -> None:
    p, net = process(), Net()
    noise, steps = draw_noise(p, 3, Q, A, torch.Generator().manual_seed(0))
    first, _ = sample_chain(p, noise, steps, MASK, REAL, net)
    other = noise.clone()
    other[:, 1:] += torch.randn_like(other[:, 1:])  # the same start, other draws
    second, _ = sample_chain(p, other, steps, MASK, REAL, net)
    padding = first.x[..., ~REAL]
    for i in range(p.num_steps + 1):
        torch.testing.assert_close(padding[:, i], noise[:, 0][..., ~REAL] * (1 - i / p.num_steps))
    assert torch.equal(padding, second.x[..., ~REAL]) and not padding[:, -1].any()
    assert (first.actions[:, 0, :3] != second.actions[:, 0, :3]).all()
    # One step in, the draws have not reached the actions that follow the ODE.
    assert torch.equal(first.x[:, 1, 1], second.x[:, 1, 1])


def test_a_chain_with_one_random_step_follows_the_ode_everywhere_else() -> None:
    p, net = process(stochastic="one"), Net()
    _, chain, _ = drawn(p, net, rows=8)
    assert chain.steps.shape == (8, 1) and len(set(chain.steps[:, 0].tolist())) > 1
    for row, step in enumerate(chain.steps[:, 0].tolist()):
        for i in range(p.num_steps):
            x = chain.x[row, i][None]
            euler = (x - net(x, p.time(torch.tensor([i]))) / p.num_steps)[0]
            close = torch.allclose(chain.x[row, i + 1, 0, :3], euler[0, :3], atol=1e-6)
            assert close == (i != step)


@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 4), steps=st.integers(1, 6), kind=st.sampled_from(["sde", "noise"]), seed=st.integers(0, 99))
def test_every_size_gives_a_finite_chain_whose_rows_are_independent(
    rows: int, steps: int, kind: str, seed: int
) -> None:
    torch.manual_seed(seed)
    p, net, std = process(kind, steps=steps), Net(), std_of(0.1)
    noise, drawn_steps = draw_noise(p, rows, Q, A, torch.Generator().manual_seed(seed))
    chain, log_prob = sample_chain(p, noise, drawn_steps, MASK, REAL, net, std)
    assert chain.x.shape == (rows, steps + 1, Q, A) and chain.x.isfinite().all() and log_prob.shape == (rows,)
    alone, its_log_prob = sample_chain(p, noise[-1:], drawn_steps[-1:], MASK, REAL, net, std)
    torch.testing.assert_close(alone.x[0], chain.x[-1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(its_log_prob[0], log_prob[-1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(chain.rows(slice(0, 1)).actions, chain.actions[:1])


# --- distance from another policy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sde", "noise"])
def test_the_kl_is_that_of_torch_between_the_steps_of_two_networks(kind: str) -> None:
    torch.manual_seed(0)
    p, net, other = process(kind, stochastic="one"), Net(), Net()
    stds = (std_of(0.2), std_of(0.3)) if kind == "noise" else (None, None)
    _, chain, _ = drawn(p, net, std=stds[0])
    moments, reference = (chain_moments(p, chain, n, s) for n, s in zip((net, other), stds, strict=True))
    expected = torch.zeros(len(chain.x))
    for (mean, std), (there, spread) in zip(moments, reference, strict=True):
        kl = torch.distributions.kl_divergence(
            torch.distributions.Normal(mean, std.expand_as(mean)), torch.distributions.Normal(there, spread)
        )
        expected += kl[:, MASK].sum(1)
        if kind == "sde":
            torch.testing.assert_close(kl, (mean - there).square() / (2 * std**2), rtol=1e-4, atol=1e-6)
    chain.reference = stacked(reference)
    torch.testing.assert_close(chain_kl(moments, chain.reference, MASK), expected, rtol=1e-4, atol=1e-6)
    assert float(chain_kl(moments, stacked(moments), MASK).abs().max()) < 1e-6
    half = chain.rows(torch.tensor([1, 3]))
    assert half.reference is not None and torch.equal(half.reference, chain.reference[[1, 3]])


def test_the_mean_kl_is_the_mean_log_ratio_of_chains_of_the_policy() -> None:
    """For whole chains the closed form, at each x that was passed through, estimates KL(policy || other)."""
    torch.manual_seed(1)
    p, net, other = process(), Net(), Net()
    _, chain, _ = drawn(p, net, rows=20000)
    closed = chain_kl(chain_moments(p, chain, net), stacked(chain_moments(p, chain, other)), MASK)
    ratio = chain_likelihood(p, chain, MASK, net)[0] - chain_likelihood(p, chain, MASK, other)[0]
    error = float(ratio.std()) / math.sqrt(len(ratio))
    assert float(closed.mean()) == pytest.approx(float(ratio.mean()), abs=4 * error)
    assert float(closed.mean()) > 20 * error and float(closed.std()) < float(ratio.std())
