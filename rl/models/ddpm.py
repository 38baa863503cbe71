"""Denoising diffusion (Ho et al. 2020) with few steps and the cosine schedule (Nichol and Dhariwal 2021).

The network predicts the clean value, not the noise: with few steps the first ones are almost only noise, where an error
of the predicted noise would be multiplied by 1 / sqrt(alpha_bar), a hundred and more (Salimans and Ho 2022, section 4).

Letters: B batch, A action dims, T steps. Step t runs from 0 (almost clean) to T - 1 (almost only noise).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

MAX_BETA = 0.999


def cosine_betas(steps: int) -> Tensor:
    """(T,) float64 noise variances, recomputed for this number of steps, so that the last step is almost only noise."""

    def signal(t: float) -> float:
        return math.cos((t / steps + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - signal(t + 1) / signal(t), MAX_BETA) for t in range(steps)]
    return torch.tensor(betas, dtype=torch.float64)


class Diffusion(nn.Module):
    """Noising, and sampling with a network that predicts the clean value, which lies in [-1, 1]."""

    alpha_bar: Tensor

    def __init__(self, steps: int) -> None:
        """Raises ValueError for fewer than two steps."""
        super().__init__()
        if steps < 2:
            raise ValueError(f"denoising_steps is {steps}; use at least 2")
        self.steps = steps
        alpha_bar = torch.cumprod(1 - cosine_betas(steps), 0)
        self._alpha_bar: list[float] = alpha_bar.tolist()  # constants of an exported sampler
        self.register_buffer("alpha_bar", alpha_bar.float(), persistent=False)

    def add_noise(self, clean: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """q(x_t | x_0): clean (B, A), t (B,) int64, noise (B, A)."""
        bar = self.alpha_bar[t][:, None]
        return bar.sqrt() * clean + (1 - bar).sqrt() * noise

    def visited(self, passes: int) -> list[int]:
        """The steps of a sampler that visits `passes` of them, evenly spaced, the noisiest first."""
        return [-(-self.steps * (passes - i) // passes) - 1 for i in range(passes)]

    def posterior(self, t: int, earlier: int) -> tuple[float, float, float]:
        """Of x_earlier given x_0 and x_t: share of x_0, share of x_t, standard deviation.

        Equations 6 and 7 of Ho et al., for the step from t to any earlier one.
        """
        after, before = self._alpha_bar[t], self._alpha_bar[earlier]
        kept = after / before
        return (
            math.sqrt(before) * (1 - kept) / (1 - after),
            math.sqrt(kept) * (1 - before) / (1 - after),
            math.sqrt((1 - kept) * (1 - before) / (1 - after)),
        )

    def denoise(self, predict: Callable[[Tensor, int], Tensor], noises: Tensor) -> Tensor:
        """Samples (B, A) from `predict(x, t)` -> clean (B, A); noises (P, B, A): the start, then one for each of the
        P - 1 steps to an earlier one. P = T is the sampler of Ho et al., fewer one with strides."""
        steps = self.visited(len(noises))
        x, clean = noises[0], noises[0]
        for i, t in enumerate(steps):
            clean = predict(x, t).clamp(-1, 1)
            if i + 1 < len(steps):
                of_clean, of_x, std = self.posterior(t, steps[i + 1])
                x = of_clean * clean + of_x * x + std * noises[i + 1]
        return clean
