"""One optimizer step that changes nothing where a gradient is not finite, without waiting for the device."""

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
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    gradients = list(torch.autograd.grad(loss, parameters))
    if total is not None:
        flat = total(torch.cat([g.flatten() for g in gradients])) / world_size
        parts = flat.split([g.numel() for g in gradients])
        gradients = [part.view_as(g) for part, g in zip(parts, gradients, strict=True)]
    norm = torch.nn.utils.get_total_norm(gradients)
    finite = torch.isfinite(norm)
    if max_norm > 0:
        torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    for p, g in zip(parameters, gradients, strict=True):
        p.grad = g
    # What torch's gradient scaler tells fused optimizers: a step with found_inf 1 leaves everything as it is.
    optimizer.found_inf = (~finite).float()  # type: ignore[attr-defined]
    optimizer.step()
    return Stepped(norm, finite.float())
