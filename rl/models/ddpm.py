"""Denoising diffusion (Ho et al. 2020) with few steps and the cosine schedule (Nichol and Dhariwal 2021).

Letters: B batch, A action dims. Step t runs from 0 (almost clean) to T - 1 (almost only noise).
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
    """Noising, and sampling with a network that predicts the noise; clean values lie in [-1, 1]."""

    alpha_bar: Tensor
    clean_share: Tensor
    noisy_share: Tensor
    std: Tensor

    def __init__(self, steps: int) -> None:
        """Raises ValueError for fewer than two steps."""
        super().__init__()
        if steps < 2:
            raise ValueError(f"denoising_steps is {steps}; use at least 2")
        self.steps = steps
        betas = cosine_betas(steps)
        after = torch.cumprod(1 - betas, 0)
        before = torch.cat([after.new_ones(1), after[:-1]])
        # Mean and standard deviation of the posterior, equations 6 and 7 of Ho et al.
        constants = {
            "alpha_bar": after,
            "clean_share": betas * before.sqrt() / (1 - after),
            "noisy_share": (1 - before) * (1 - betas).sqrt() / (1 - after),
            "std": (betas * (1 - before) / (1 - after)).sqrt(),  # 0 at t = 0: the last step adds no noise
        }
        for name, value in constants.items():
            self.register_buffer(name, value.float(), persistent=False)

    def add_noise(self, clean: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """q(x_t | x_0): clean (B, A), t (B,) int64, noise (B, A)."""
        bar = self.alpha_bar[t][:, None]
        return bar.sqrt() * clean + (1 - bar).sqrt() * noise

    def denoise(self, predict: Callable[[Tensor, int], Tensor], noises: Tensor) -> Tensor:
        """Samples (B, A) from `predict(x, t)` -> noise (B, A); noises (T + 1, B, A): the start, then one a step."""
        x = noises[0]
        for t in reversed(range(self.steps)):
            bar = self.alpha_bar[t]
            clean = ((x - (1 - bar).sqrt() * predict(x, t)) * bar.rsqrt()).clamp(-1, 1)
            x = self.clean_share[t] * clean + self.noisy_share[t] * x + self.std[t] * noises[self.steps - t]
        return x
