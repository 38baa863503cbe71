"""The attention of the published model, as a baseline: keys and values repeated for every head, all scores, dense mask.

Not a backend; `kernels.benchmark` measures the others against it.
"""

import torch
from torch import Tensor

from kernels.block_mask import BlockMask


def attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """q (B, Lq, H, D), k and v (B, Lk, G, D) -> (B, Lq, H, D). Rows that see nothing get the mean of the values."""
    B, Lq, H, D = q.shape
    Lk, G = k.shape[1], k.shape[2]
    k = k[:, :, :, None].expand(B, Lk, G, H // G, D).reshape(B, Lk, H, D)
    v = v[:, :, :, None].expand(B, Lk, G, H // G, D).reshape(B, Lk, H, D)
    scores = torch.matmul(q.transpose(1, 2), k.transpose(1, 2).transpose(2, 3)) * scale
    scores = torch.where(mask.visible()[:, None], scores, torch.finfo(scores.dtype).min)
    weights = torch.softmax(scores, dim=-1).to(v.dtype)
    return torch.matmul(weights, v.permute(0, 2, 1, 3)).permute(0, 2, 1, 3).reshape(B, Lq, H, D)
