"""One optimizer step that changes nothing where a gradient is not finite, without waiting for the device."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Total = Callable[[Tensor], Tensor]  # collective: a vector -> its sum over all ranks


class Stepped(NamedTuple):
    norm: Tensor  # of all gradients before clipping
    finite: Tensor  # 1.0, or 0.0 when nothing was changed; the same on all ranks


def guarded_step(
    optimizer: torch.optim.Optimizer, loss: Tensor, max_norm: float = 0.0, total: Total | None = None,
    world_size: int = 1,
) -> Stepped:  # fmt: skip
    """Gradients of `loss` for the parameters of a fused `optimizer`, mean over ranks, clipping (0: none), step."""
    gradients = torch.autograd.grad(loss, parameters_of(optimizer))
    return step_with(optimizer, gradients, max_norm, total, world_size)


def step_with(
    optimizer: torch.optim.Optimizer, gradients: tuple[Tensor, ...], max_norm: float = 0.0,
    total: Total | None = None, world_size: int = 1,
) -> Stepped:  # fmt: skip
    """As `guarded_step`, with the gradients known."""
    if total is not None:
        flat = total(torch.cat([g.flatten() for g in gradients])) / world_size
        parts = flat.split([g.numel() for g in gradients])
        gradients = tuple(part.view_as(g) for part, g in zip(parts, gradients, strict=True))
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    finite = (norm < math.inf).float()  # 0 for NaN, too
    if max_norm > 0:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    for p, g in zip(parameters_of(optimizer), gradients, strict=True):
        p.grad = g
    # What torch's gradient scaler tells fused optimizers: a step with found_inf 1 leaves everything as it is.
    optimizer.found_inf = 1 - finite  # type: ignore[attr-defined]
    optimizer.step()
    return Stepped(norm, finite)


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
