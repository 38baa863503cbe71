"""The sampler against a float64 reference of the DDPM equations."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl.models.ddpm import MAX_BETA, Diffusion, cosine_betas


def reference(steps: int, noises: torch.Tensor, predict: object) -> torch.Tensor:
    """Algorithm 2 of Ho et al. 2020 in float64 with x_0 cut to [-1, 1], posterior written as in their equation 7."""

    def f(t: float) -> float:
        return math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f(t + 1) / f(t), 0.999) for t in range(steps)]
    bars = [math.prod(1 - b for b in betas[: t + 1]) for t in range(steps)]
    x = noises[0].double()
    for i, t in enumerate(range(steps - 1, -1, -1)):
        x0 = predict(x.float(), t).double().clamp(-1, 1)  # type: ignore[operator]
        if t == 0:
            return x0
        previous = bars[t - 1]
        mean = (
            math.sqrt(previous) * betas[t] / (1 - bars[t]) * x0
            + math.sqrt(1 - betas[t]) * (1 - previous) / (1 - bars[t]) * x
        )
        variance = betas[t] * (1 - previous) / (1 - bars[t])
        x = mean + math.sqrt(variance) * noises[i + 1].double()
    raise AssertionError


@pytest.mark.parametrize("steps", [2, 10, 50])
def test_samples_are_those_of_the_float64_reference(steps: int) -> None:
    noises = torch.randn(steps, 64, 3)
    weights = torch.randn(3, 3) / 3

    def predict(x: torch.Tensor, t: int) -> torch.Tensor:
        return torch.tanh(x @ weights) * (0.5 + t / steps)

    ours = Diffusion(steps).denoise(predict, noises)
    torch.testing.assert_close(ours.double(), reference(steps, noises, predict), atol=2e-4, rtol=1e-3)
    assert ours.abs().max() <= 1


@given(st.integers(2, 60), st.data())
def test_a_sampler_with_strides_visits_as_many_steps_as_it_has_noises_from_the_noisiest_down(
    steps: int, data: st.DataObject
) -> None:
    d, passes = Diffusion(steps), data.draw(st.integers(1, steps))
    visited = d.visited(passes)
    assert len(set(visited)) == passes and visited == sorted(visited, reverse=True) and visited[0] == steps - 1
    gaps = [a - b for a, b in pairwise(visited)]
    assert not gaps or max(gaps) - min(gaps) <= 1
    asked: list[int] = []
    d.denoise(lambda x, t: asked.append(t) or x, torch.zeros(passes, 1, 1))  # type: ignore[func-returns-value]
    assert asked == visited


def test_strides_pass_through_the_same_distributions_as_single_steps() -> None:
    """Where x_0 is known, x_4 drawn from x_9 at once has the forward process's mean and variance."""
    d, clean = Diffusion(10), 0.6
    x9 = d.add_noise(torch.full((200_000, 1), clean), torch.full((200_000,), 9), torch.randn(200_000, 1))
    of_clean, of_x, std = d.posterior(9, 4)
    x4 = of_clean * clean + of_x * x9 + std * torch.randn_like(x9)
    bar = d.alpha_bar[4].item()
    assert x4.mean().item() == pytest.approx(math.sqrt(bar) * clean, abs=0.01)
    assert x4.var().item() == pytest.approx(1 - bar, abs=0.01)


def test_ten_steps_end_in_almost_pure_noise() -> None:
    d = Diffusion(10)
    betas = cosine_betas(10)
    assert betas[-1] == MAX_BETA and (betas[1:] > betas[:-1]).all()
    assert d.alpha_bar[-1] < 1e-4 and d.alpha_bar[0] > 0.95
    assert all(d.posterior(t, t - 1)[2] > 0 for t in range(1, 10))


def test_noised_values_have_the_mean_and_variance_of_the_forward_process() -> None:
    d = Diffusion(10)
    clean = torch.full((100_000, 1), 0.7)
    for t in (0, 4, 9):
        noisy = d.add_noise(clean, torch.full((100_000,), t), torch.randn(100_000, 1))
        bar = d.alpha_bar[t].item()
        assert noisy.mean().item() == pytest.approx(math.sqrt(bar) * 0.7, abs=0.02)
        assert noisy.var().item() == pytest.approx(1 - bar, abs=0.02)


def test_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match="denoising_steps is 1; use at least 2"):
        Diffusion(1)
