"""Squashed Gaussian policy: actions tanh(u) in [-1, 1], u normal. Haarnoja et al. 2018, appendix C.

Letters: B batch, A action dims.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rl.models.fused_mlp import FusedMLP
from rl.models.linear import Linear
from rl.models.mlp import mlp

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


class Gaussian(NamedTuple):
    """Of u, before tanh."""

    mean: Tensor  # (B, A)
    log_std: Tensor  # (B, A)


def sample(policy: Gaussian, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Reparametrised actions tanh(mean + std * noise) (B, A) and their log-density in the space of actions (B,)."""
    if torch.compiler.is_compiling():
        return _sample(policy.mean, policy.log_std, noise)[:2]
    actions, log_density = _Sample.apply(policy.mean, policy.log_std, noise)
    return actions, log_density


def _sample(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As `sample`, and std * noise."""
    away = log_std.exp() * noise
    u = mean + away
    log_normal = -0.5 * noise.square() - log_std - LOG_SQRT_2PI
    return torch.tanh(u), (log_normal - log_tanh_slope(u)).sum(-1), away


class _Sample(torch.autograd.Function):
    """`_sample` with its short derivative, d log(1 - tanh(u)^2) / du = -2 tanh(u), as one node of the graph."""

    @staticmethod
    def forward(ctx: Any, mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        actions, log_density, away = _sample(mean, log_std, noise)
        ctx.save_for_backward(actions, away)
        return actions, log_density

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        actions, away = ctx.saved_tensors
        of_actions, of_density = grads[0], grads[1][..., None]
        of_u = of_actions * (1 - actions.square()) + 2 * of_density * actions
        return of_u, of_u * away - of_density, None


def log_prob(policy: Gaussian, u: Tensor) -> Tensor:
    """Log-density (B,) of the actions tanh(u), u (B, A)."""
    z = (u - policy.mean) * torch.exp(-policy.log_std)
    return (-0.5 * z.square() - policy.log_std - LOG_SQRT_2PI - log_tanh_slope(u)).sum(-1)


def log_tanh_slope(u: Tensor) -> Tensor:
    """log(1 - tanh(u)^2) without cancellation where tanh saturates."""
    return 2 * (math.log(2) - u - F.softplus(-2 * u))


class TanhGaussianActor(nn.Module):
    """Features (B, O) -> Gaussian of u."""

    def __init__(
        self, features: int, action_dim: int, hidden: list[int], activation: str, layernorm: bool,
        log_std_range: tuple[float, float], squash_log_std: bool, zero_init_heads: bool,
    ) -> None:  # fmt: skip
        """squash_log_std: tanh into the range, else cut to it. ValueError for the activation."""
        super().__init__()
        self.low, self.high = log_std_range
        self.squash_log_std = squash_log_std
        self.body = mlp([features, *hidden], activation, activate_last=True, layernorm=layernorm)
        self.head = Linear(hidden[-1], 2 * action_dim)  # mean, log_std
        self.fused = FusedMLP([*self.parameters()], activation, layernorm, ensemble=False)
        if zero_init_heads:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, features: Tensor) -> Gaussian:
        out = self.fused(features) if self.fused.fits(features) else self.head(self.body(features))
        mean, raw = out.float().chunk(2, -1)
        if self.squash_log_std:
            return Gaussian(mean, self.low + 0.5 * (self.high - self.low) * (torch.tanh(raw) + 1))
        return Gaussian(mean, raw.clamp(self.low, self.high))
