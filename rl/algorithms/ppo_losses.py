"""Losses and diagnostics of PPO as functions of tensors, for every policy that has log-probs (Gaussian or flow).

All tensors have one shape, say (B,). `weights` of that shape says how much a row counts (0: not trained on, None: all
count 1); a row of weight 0 may hold anything that is not a gradient's way. `Total` sums over ranks, so that a mean over
several processes is the mean over all their rows and not of their means.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Total = Callable[[Tensor], Tensor]  # sum over ranks of a float64 vector; collective


def own(vector: Tensor) -> Tensor:
    """`Total` of a single process."""
    return vector


def weighted_mean(x: Tensor, weights: Tensor | None = None, denominator: Tensor | float | None = None) -> Tensor:
    """Mean of the rows that count, a scalar; 0 when none does.

    `denominator` replaces the sum of the weights: the mean over ranks of that sum makes the average of all ranks'
    gradients the gradient of the mean over all rows.
    """
    if weights is None:
        return x.mean() if denominator is None else x.sum() / denominator
    weighted = torch.where(weights > 0, x * weights, torch.zeros_like(x)).sum()
    return weighted / (weights.sum().clamp_min(1e-8) if denominator is None else denominator)


def normalize_advantages(
    advantages: Tensor, weights: Tensor | None = None, total: Total = own, eps: float = 1e-8
) -> Tensor:
    """(A - mean) / (std + eps) with the unbiased std of the rows that count, over all ranks (collective).

    Rows of weight 0 become 0. A single row is left as it is: it has no spread.
    """
    if total is own and weights is None:
        return advantages if advantages.numel() < 2 else (advantages - advantages.mean()) / (advantages.std() + eps)
    counted = torch.ones_like(advantages) if weights is None else (weights > 0).to(advantages.dtype)
    x = torch.where(counted > 0, advantages, torch.zeros_like(advantages)).double()
    n, first = total(torch.stack([counted.double().sum(), x.sum()]))
    mean = first / n.clamp_min(1)
    second = total(((x - mean).square() * counted).sum()[None])[0]
    std = (second / (n - 1).clamp_min(1)).sqrt()
    scaled = ((x - mean) / (std + eps) * counted).to(advantages.dtype)
    return torch.where(n < 2, x.to(advantages.dtype), scaled)


def clipped_surrogate(
    logp_new: Tensor, logp_old: Tensor, advantages: Tensor, clip: float | Tensor, weights: Tensor | None = None,
    denominator: Tensor | float | None = None, clip_high: float | Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Policy loss -mean(min(r A, clip(r, 1 - clip, 1 + clip_high) A)) (Schulman et al. 2017, equation 7).

    `clip_high` defaults to `clip`; both are numbers or both scalar tensors. At r = 1 the gradient is that of -A log pi.
    """
    ratio = (logp_new - logp_old).exp()
    low, high = 1 - clip, 1 + (clip if clip_high is None else clip_high)
    clipped = ratio.clamp(low, high)  # type: ignore[arg-type]
    return weighted_mean(-torch.minimum(ratio * advantages, clipped * advantages), weights, denominator)


def value_loss(
    values_new: Tensor, returns: Tensor, values_old: Tensor | None = None, clip: float | None = None,
    weights: Tensor | None = None, denominator: Tensor | float | None = None,
) -> Tensor:  # fmt: skip
    """Mean squared error, without any factor: peers multiply by 0.5 (37 details; times a coefficient of 0.5), by
    0.5 (Stable-Baselines3's coefficient) or by 1 (rsl_rl).

    With `clip` the larger of the errors of V and of V_old + clamp(V - V_old, -clip, clip) counts (detail 9).
    """
    error = (values_new - returns).square()
    if clip is not None:
        assert values_old is not None
        near = values_old + (values_new - values_old).clamp(-clip, clip)
        error = torch.maximum(error, (near - returns).square())
    return weighted_mean(error, weights, denominator)


def entropy_bonus(entropy: Tensor, weights: Tensor | None = None, denominator: Tensor | float | None = None) -> Tensor:
    """Mean entropy; subtract coefficient times this."""
    return weighted_mean(entropy, weights, denominator)


@torch.no_grad()
def approx_kl(logp_new: Tensor, logp_old: Tensor, weights: Tensor | None = None) -> Tensor:
    """mean((r - 1) - log r), an unbiased, never negative estimate of KL(old || new) (Schulman, "Approximating KL")."""
    log_ratio = logp_new - logp_old
    return weighted_mean(torch.expm1(log_ratio) - log_ratio, weights)


@torch.no_grad()
def clip_fraction(
    logp_new: Tensor,
    logp_old: Tensor,
    clip: float | Tensor,
    weights: Tensor | None = None,
    clip_high: float | Tensor | None = None,
) -> Tensor:
    """Share of rows whose ratio lies outside [1 - clip, 1 + clip_high]."""
    ratio = (logp_new - logp_old).exp()
    outside = (ratio < 1 - clip) | (ratio > 1 + (clip if clip_high is None else clip_high))
    return weighted_mean(outside.to(ratio.dtype), weights)


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, weights: Tensor | None = None) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over rows that count; NaN when the returns do not vary."""
    counted = torch.ones_like(returns, dtype=torch.bool) if weights is None else weights > 0
    spread = returns[counted].var(correction=0)
    unexplained = (returns - values)[counted].var(correction=0)
    return torch.where(spread > 0, 1 - unexplained / spread, torch.nan)
