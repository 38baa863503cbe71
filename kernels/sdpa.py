"""PyTorch's scaled_dot_product_attention, one call a group of query blocks where the ids allow (pieces.py)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend

from kernels import pieces
from kernels.block_mask import BlockMask

MIN_ROWS = 128  # queries a call: below this the call itself costs more than the keys it saves


def describe(mask: BlockMask) -> str:
    """How a mask is split, in words."""
    return pieces.describe(mask, MIN_ROWS)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """q (B, Lq, H, D), k and v (B, Lk, G, D) -> (B, Lq, H, D)."""

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        return call(q, k, v, bias, scale)

    return pieces.attend_by_pieces(q, k, v, mask, MIN_ROWS, attend)


def call(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """One call of PyTorch's function. q (B, Lq, H, D), k and v (B, Lk, G, D), bias (B, 1, Lq or 1, Lk), added or bool.

    On CUDA grouped heads have a fused kernel without a mask and in half precision only, else PyTorch falls back to all
    scores at once. Heads repeated by a stride of zero are not grouped, and cost no memory forward.
    """
    q, k, v, options = _arguments(q, k, v, bias, scale)
    return F.scaled_dot_product_attention(q, k, v, **options).transpose(1, 2)


def kernel_of(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> str:
    """Name of the kernel that `call` gets from PyTorch for these inputs: MATH, FLASH_ATTENTION, EFFICIENT_ATTENTION or
    CUDNN_ATTENTION."""
    q, k, v, options = _arguments(q, k, v, bias, scale)
    return SDPBackend(torch._fused_sdp_choice(q, k, v, **options)).name


def _arguments(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
    H, G = q.shape[2], k.shape[2]
    if H != G and q.is_cuda and (bias is not None or q.dtype == torch.float32):
        k, v = (repeat_heads(t, H // G) for t in (k, v))
    options = {"attn_mask": bias, "scale": scale, "enable_gqa": q.shape[2] != k.shape[2]}
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), options


def repeat_heads(t: Tensor, times: int) -> Tensor:
    """(B, L, G, D) -> (B, L, G * times, D), each head `times` in a row; a view when G is 1."""
    return t.expand(-1, -1, times, -1) if t.shape[2] == 1 else t.repeat_interleave(times, dim=2)
