"""torch.nn.functional.scaled_dot_product_attention with the mask made dense."""

import torch.nn.functional as F
from torch import Tensor

from kernels.block_mask import BlockMask


def attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """q (B, Lq, H, D), k and v (B, Lk, G, D) -> (B, Lq, H, D)."""
    # A finite additive bias: a boolean mask gives NaN in rows that see nothing.
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask.bias(q.dtype)[:, None],
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return out.transpose(1, 2) * mask.row_alive(out.dtype)[:, :, None, None]
