"""A linear layer that is fast on every CPU: oneDNN's float32 matmul in place of MKL's.

torch sends float32 matmuls to MKL, which runs at half its speed or less on CPUs that are not Intel's (measured on an
AMD EPYC core, 6144 x 128 x 128: 95 against 220 GFLOP/s). oneDNN's linear, the one that torch.compile uses for frozen
models, is as exact. Anything but float32 on a CPU (GPU, autocast, export) takes the usual path.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Products of fewer multiplications start sooner in MKL: of 256 rows, 64 x 64 takes 141 us there both ways and 218 here,
# 256 x 256 takes 1,351 and 769.
SMALL = 2**21
AVAILABLE = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
_linear: Any = torch.ops.mkldnn._linear_pointwise.default if AVAILABLE else None


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if x.shape[0] == 1 or weight.shape[0] == 1:  # matrix times vector: limited by memory, and MKL starts sooner
        return F.linear(x, weight, bias)
    result: Tensor = _linear(x, weight, bias, "none", [], "")
    return result


# torch.compile takes oneDNN's linear for frozen weights only; as an operator of our own it stays one call.
_compiled_product = torch.library.custom_op("f1_trainer::linear", _onednn, mutates_args=())


@_compiled_product.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (N, K) times the transpose of weight (M, K), plus bias (M,), where `usable`; without gradient."""
    return _compiled_product(x, weight, bias) if torch.compiler.is_compiling() else _onednn(x, weight, bias)


def usable(x: Tensor) -> bool:
    """Whether the operands, of which x (..., K) is one, are what oneDNN's product is for."""
    return (
        not torch.jit.is_tracing() and not torch.jit.is_scripting() and not torch.compiler.is_exporting()
        and AVAILABLE and x.device.type == "cpu" and x.dtype is torch.float32 and x.numel() > 0
        and not torch.is_autocast_enabled("cpu")
    )  # fmt: skip


def weight_gradient(x: Tensor, g: Tensor) -> Tensor:
    """x (N, K) transposed times g (N, M): (K, M), in either memory order; where `usable`, without gradient."""
    # Measured: oneDNN wants the smaller side first.
    return product(x.t(), g.t()) if x.shape[1] < g.shape[1] else product(g.t(), x.t()).t()


class _OneDNNLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (g,) = grads
        x, weight = ctx.saved_tensors
        grad_x = product(g, weight.t()) if ctx.needs_input_grad[0] else None
        return grad_x, weight_gradient(x, g).t().contiguous(), g.sum(0)


class Linear(nn.Linear):
    """`nn.Linear` (the same parameters and result) over (N, in) rows."""

    def forward(self, x: Tensor) -> Tensor:
        if self.bias is None or x.dim() != 2 or not usable(x) or x.shape[0] * self.weight.numel() < SMALL:
            return F.linear(x, self.weight, self.bias)
        if not torch.is_grad_enabled():  # an autograd function of our own costs as much as a small layer
            return product(x, self.weight, self.bias)
        result: Tensor = _OneDNNLinear.apply(x, self.weight, self.bias)
        return result
