"""Layers of N independent networks side by side, with stacked parameters.

Letters: N members, B batch, I inputs, O outputs.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rl.models.linear import product, usable


class _EnsembleProduct(torch.autograd.Function):
    """baddbmm as one oneDNN product a member (on a CPU up to twice as fast as MKL's batched one)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight_NIO: Tensor, bias_N1O: Tensor) -> Tensor:
        """x (B, I), shared, or (N, B, I)."""
        ctx.save_for_backward(x, weight_NIO)
        members = zip(rows(x, len(weight_NIO)), weight_NIO.mT.unbind(), bias_N1O.squeeze(1).unbind(), strict=True)
        return torch.stack([product(*m) for m in members])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (g,) = grads
        x, weight = ctx.saved_tensors
        grad_x = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.stack([product(*m) for m in zip(g.unbind(), weight.unbind(), strict=True)])
            if x.dim() == 2:
                grad_x = grad_x.sum(0)
        if ctx.needs_input_grad[1]:
            sides = rows(x.mT, len(weight)), g.mT.unbind()
            if x.shape[-1] <= g.shape[-1]:  # oneDNN splits its work over the rows of the first
                grad_weight = torch.stack([product(*m) for m in zip(*sides, strict=True)])
            else:
                grad_weight = torch.stack([product(*m) for m in zip(*reversed(sides), strict=True)]).mT.contiguous()
        if ctx.needs_input_grad[2]:
            grad_bias = g.sum(1, keepdim=True)
        return grad_x, grad_weight, grad_bias


def rows(x: Tensor, members: int) -> tuple[Tensor, ...]:
    """What each member sees of a shared matrix or of N."""
    return (x,) * members if x.dim() == 2 else x.unbind()


class EnsembleLinear(nn.Module):
    """N linear layers; input (B, I), shared, or (N, B, I); output (N, B, O). Initialised as nn.Linear."""

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        weight, bias = (self.weight.detach(), self.bias.detach()) if frozen else (self.weight, self.bias)
        if usable(x):
            result: Tensor = _EnsembleProduct.apply(x, weight, bias)
            return result
        return torch.baddbmm(bias, x.expand(weight.shape[0], *x.shape[-2:]), weight)


class EnsembleLayerNorm(nn.Module):
    """Layer normalisation of (N, B, width) with parameters of each member's own."""

    def __init__(self, members: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(members, 1, width))
        self.bias = nn.Parameter(torch.zeros(members, 1, width))

    def forward(self, x: Tensor, frozen: bool = False) -> Tensor:
        weight, bias = (self.weight.detach(), self.bias.detach()) if frozen else (self.weight, self.bias)
        return torch.addcmul(bias, F.layer_norm(x, x.shape[-1:]), weight)
