"""PyTorch's FlexAttention with the block mask as a mask function over key ends and key validity.

On CPU there is no backward, so gradients are refused there.
"""

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from kernels.block_mask import BlockMask


def refusal(device: torch.device, training: bool) -> str | None:
    """Why the backend cannot run, or None."""
    if device.type == "cpu" and training:
        return "FlexAttention has no backward on CPU"
    return None


@lru_cache(maxsize=1)
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False)


def _flex_mask(mask: BlockMask, B: int) -> Any:
    def make() -> Any:
        Lq, Lk = mask.shape
        end, valid = mask.kv_end().expand(B, -1).contiguous(), mask.k_valid.expand(B, -1).contiguous()

        def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (j < end[b, i]) & valid[b, j]

        return create_block_mask(visible, B, None, Lq, Lk, device=str(end.device))

    return mask.cached(("flex mask", B), make)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """q (B, Lq, H, D), k and v (B, Lk, G, D) -> (B, Lq, H, D). Compiles at the first call of a shape."""
    # Uncompiled FlexAttention computes the dense formula; on CPU that is all a check needs, and starts at once.
    run = _compiled() if q.is_cuda else flex_attention
    out = run(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        block_mask=_flex_mask(mask, q.shape[0]),
        scale=scale,
        enable_gqa=q.shape[2] != k.shape[2],
    )
    return torch.where(mask.alive()[:, :, None, None], out.transpose(1, 2), 0.0)
