"""PyTorch's FlexAttention with the block mask as a mask function over key ends and key validity, and lists of tiles.

On CPU there is no backward, so gradients are refused there.
"""

from contextlib import nullcontext
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask as FlexMask
from torch.nn.attention.flex_attention import flex_attention

from kernels.block_mask import BlockMask
from kernels.mask_tables import tile_lists

MIN_HEAD = 16  # head size that FlexAttention's kernels need at least
TILE = (128, 128)  # queries, keys; what FlexAttention's kernels can split further


def refusal(device: torch.device, dtype: torch.dtype, training: bool) -> str | None:
    """Why the backend cannot run, or None."""
    if device.type == "cpu":
        return "FlexAttention has no backward on CPU" if training else None
    if dtype == torch.float64:
        return "dtype float64, FlexAttention's kernels take bfloat16, float16 or float32"
    return None


@lru_cache(maxsize=1)
def _compiled() -> Any:
    return torch.compile(flex_attention, dynamic=False)


_shapes: set[tuple[Any, ...]] = set()  # compiled so far


def _more_compilations(q: Tensor, k: Tensor) -> Any:
    """Each shape is compiled once. Past a handful torch.compile would give up and run the dense formula, silently."""
    shape = (q.shape, k.shape, q.dtype, q.device, torch.is_grad_enabled(), q.requires_grad, k.requires_grad)
    if shape in _shapes:
        return nullcontext()
    _shapes.add(shape)
    return torch._dynamo.config.patch(recompile_limit=4096, accumulated_recompile_limit=4096)


def _flex_mask(mask: BlockMask, B: int) -> FlexMask:
    def make() -> FlexMask:
        end, valid = mask.kv_end().expand(B, -1).contiguous(), mask.k_valid.expand(B, -1).contiguous()

        def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (j < end[b, i]) & valid[b, j]

        count, index, full_count, full_index = tile_lists(mask, B, TILE)[0]
        return FlexMask.from_kv_blocks(
            count, index, full_count, full_index, BLOCK_SIZE=TILE, mask_mod=visible, seq_lengths=mask.shape
        )

    return mask.cached(("flex mask", B), make)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """q (B, Lq, H, D), k and v (B, Lk, G, D) -> (B, Lq, H, D). Compiles at the first call of a shape."""
    gqa, plain = q.shape[2] != k.shape[2], not q.is_cuda or torch.compiler.is_compiling()
    # Uncompiled FlexAttention computes the dense formula; on CPU that is all a check needs, and starts at once.
    D = q.shape[3]
    if q.is_cuda and D < MIN_HEAD:  # more features of zeros change no score
        q, k, v = (F.pad(t, (0, MIN_HEAD - D)) for t in (q, k, v))
    run = flex_attention if plain else _compiled()
    with nullcontext() if plain else _more_compilations(q, k):
        out = run(
            q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
            block_mask=_flex_mask(mask, q.shape[0]), scale=scale, enable_gqa=gqa,
        )  # fmt: skip
    return torch.where(mask.alive()[:, :, None, None], out.transpose(1, 2)[..., :D], 0.0)
