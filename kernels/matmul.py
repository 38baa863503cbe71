"""Matmul-softmax in one call a group of query blocks (pieces.py): the fastest on CPU in half precision, whose SDPA is
slow there, and for few queries. Grouped queries are folded into rows, so keys and values are never repeated.

Letters: B batch, n queries and K keys of a piece, H query heads, G key/value heads, D head size.
"""

import torch
from torch import Tensor

from kernels import pieces
from kernels.block_mask import BlockMask

MIN_ROWS = 256  # queries a call: below this what a call costs beside its products outweighs the keys it saves


def attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """q (B, Lq, H, D), k and v (B, Lk, G, D) -> (B, Lq, H, D)."""

    def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
        (B, n, H, D), K, G = q.shape, k.shape[1], k.shape[2]
        group = H // G
        # (B, G, n * group, D): a free view when G == 1.
        rows = (q * scale).view(B, n, G, group, D).transpose(1, 2).reshape(B, G, n * group, D)
        scores = torch.matmul(rows, k.permute(0, 2, 3, 1))
        if bias is not None:
            scores = (scores.view(B, G, n, group, K) + bias[:, :, :, None]).view(B, G, n * group, K)
        # The softmax kernels accumulate in float32 for half precision inputs.
        out = torch.matmul(torch.softmax(scores, dim=-1).to(v.dtype), v.transpose(1, 2))
        return out.view(B, G, n, group, D).transpose(1, 2).reshape(B, n, H, D)

    return pieces.attend_by_pieces(q, k, v, mask, MIN_ROWS, attend)
