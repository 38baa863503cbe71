"""The sampler against a float64 reference of the DDPM equations."""

import math

import pytest
import torch

from rl.models.ddpm import MAX_BETA, Diffusion, cosine_betas


def reference(steps: int, noises: torch.Tensor, predict: object) -> torch.Tensor:
    """Algorithm 2 of Ho et al. 2020 in float64 with x_0 cut to [-1, 1], posterior written as in their equation 7."""

    def f(t: float) -> float:
        return math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f(t + 1) / f(t), 0.999) for t in range(steps)]
    bars = [math.prod(1 - b for b in betas[: t + 1]) for t in range(steps)]
    x = noises[0].double()
    for i, t in enumerate(range(steps - 1, -1, -1)):
        eps = predict(x.float(), t).double()  # type: ignore[operator]
        x0 = ((x - math.sqrt(1 - bars[t]) * eps) / math.sqrt(bars[t])).clamp(-1, 1)
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
    noises = torch.randn(steps + 1, 64, 3)
    weights = torch.randn(3, 3) / 3

    def predict(x: torch.Tensor, t: int) -> torch.Tensor:
        return torch.tanh(x @ weights) * (0.5 + 0.5 * t / steps)

    ours = Diffusion(steps).denoise(predict, noises)
    torch.testing.assert_close(ours.double(), reference(steps, noises, predict), atol=2e-4, rtol=1e-3)
    assert ours.abs().max() <= 1


def test_ten_steps_end_in_almost_pure_noise_and_the_last_step_adds_none() -> None:
    d = Diffusion(10)
    betas = cosine_betas(10)
    assert betas[-1] == MAX_BETA and (betas[1:] > betas[:-1]).all()
    assert d.alpha_bar[-1] < 1e-4 and d.alpha_bar[0] > 0.95
    assert d.std[0] == 0 and (d.std[1:] > 0).all()


def test_noised_values_have_the_mean_and_variance_of_the_forward_process() -> None:
    d = Diffusion(10)
    clean = torch.full((100_000, 1), 0.7)
    for t in (0, 4, 9):
        noisy = d.add_noise(clean, torch.full((100_000,), t), torch.randn(100_000, 1))
        bar = d.alpha_bar[t].item()
        assert noisy.mean().item() == pytest.approx(math.sqrt(bar) * 0.7, abs=0.02)
        assert noisy.var().item() == pytest.approx(1 - bar, abs=0.02)


def test_a_perfect_prediction_of_the_noise_gives_back_the_clean_value() -> None:
    d = Diffusion(10)
    clean = torch.rand(200, 4) * 2 - 1

    def predict(x: torch.Tensor, t: int) -> torch.Tensor:
        return (x - d.alpha_bar[t].sqrt() * clean) / (1 - d.alpha_bar[t]).sqrt()

    torch.testing.assert_close(d.denoise(predict, torch.randn(11, 200, 4)), clean, atol=1e-3, rtol=0)


def test_one_step_is_refused() -> None:
    with pytest.raises(ValueError, match="denoising_steps is 1; use at least 2"):
        Diffusion(1)
