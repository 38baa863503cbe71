"""Matmul-softmax attention: the definition the other backends are compared with (any float dtype, double backward)
and the fastest one on CPU for few heads. Grouped queries are folded into rows, so keys and values are never repeated.

Letters: B batch, Lq queries, Lk keys, H query heads, G key/value heads, D head size.
"""

import torch
from torch import Tensor

from kernels.block_mask import BlockMask


def attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """q (B, Lq, H, D), k and v (B, Lk, G, D) -> (B, Lq, H, D)."""
    B, Lq, H, D = q.shape
    Lk, G = k.shape[1], k.shape[2]
    group = H // G
    # (B, G, Lq * group, D): a free view when G == 1.
    q_rows = (q * scale).view(B, Lq, G, group, D).transpose(1, 2).reshape(B, G, Lq * group, D)
    scores = torch.matmul(q_rows, k.permute(0, 2, 3, 1)).view(B, G, Lq, group, Lk)
    scores = scores + mask.bias(scores.dtype)[:, None, :, None, :]
    # The softmax kernels accumulate in float32 for half precision inputs.
    weights = torch.softmax(scores, dim=-1).to(v.dtype)
    out = torch.matmul(weights.view(B, G, Lq * group, Lk), v.transpose(1, 2))
    out = out.view(B, G, Lq, group, D).transpose(1, 2).reshape(B, Lq, H, D)
    return out * mask.row_alive(out.dtype)[:, :, None, None]
