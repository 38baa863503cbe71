"""PyTorch's scaled_dot_product_attention, one call a group of query blocks where the ids allow (pieces.py)."""

import torch.nn.functional as F
from torch import Tensor

from kernels import pieces
from kernels.block_mask import BlockMask

MIN_ROWS = 128  # queries a call: below this the call itself costs more than the keys it saves


def describe(mask: BlockMask) -> str:
    """How a mask is split, in words."""
    return pieces.describe(mask, MIN_ROWS)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """q (B, Lq, H, D), k and v (B, Lk, G, D) -> (B, Lq, H, D)."""
    gqa = q.shape[2] != k.shape[2]

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        qt, kt, vt = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        out = F.scaled_dot_product_attention(qt, kt, vt, attn_mask=bias, scale=scale, enable_gqa=gqa)
        return out.transpose(1, 2)

    return pieces.attend_by_pieces(q, k, v, mask, MIN_ROWS, attend)
