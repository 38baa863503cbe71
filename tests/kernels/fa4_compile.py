"""Compiles what the fa4 adapter asks flash-attn-4 for, without a GPU: `python fa4_compile.py HEAD_SIZE ...`.

For sm_90. A process of its own: the target is read from the environment at import. Nothing runs, tensors have shapes
only.
"""

import os
import sys

os.environ |= {"FLASH_ATTENTION_ARCH": "sm_90", "CUTE_DSL_ARCH": "sm_90a", "FLASH_ATTENTION_NUM_SMS": "132"}

import flash_attn.cute
import torch
from flash_attn.cute import interface
from torch._subclasses.fake_tensor import FakeTensorMode

from kernels import BlockMask, fa4
from kernels.mask_tables import tile_lists

B, H, G = 2, 8, 1


class ShapesOnly:
    """Stands in for a mask on the GPU; everything derived was computed on the CPU before."""

    def __init__(self, mask: BlockMask) -> None:
        self.mask = mask

    def cached(self, key, _make):
        return self.on_gpu(self.mask._cache[key])

    def on_gpu(self, x):
        if isinstance(x, torch.Tensor):
            return torch.empty(x.shape, dtype=x.dtype, device="cuda")
        return type(x)(self.on_gpu(y) for y in x)

    def alive(self):
        raise StopIteration  # the kernels are compiled by now


def both(q, k, v, softmax_scale, mask_mod, aux_tensors, block_sparse_tensors, block_sparse_tensors_bwd):
    """What FlashAttnFunc calls, forward and backward."""
    shared = {"softmax_scale": softmax_scale, "mask_mod": mask_mod, "aux_tensors": aux_tensors}
    out, lse, *_ = interface._flash_attn_fwd(
        q, k, v, block_sparse_tensors=block_sparse_tensors, return_lse=True, **shared
    )
    grads = interface._flash_attn_bwd(
        q, k, v, out, torch.empty_like(out), lse, block_sparse_tensors=block_sparse_tensors_bwd, **shared
    )
    assert [g.shape for g in grads if g is not None] == [q.shape, k.shape, v.shape]
    return out, lse


def check(D: int) -> None:
    mask = BlockMask.next_scale(300, (1, 2, 3, 8), (1, 50))
    tile_lists(mask, B, fa4.tile_size(D))
    fa4.mask_tensors(mask, B)
    with FakeTensorMode():
        q, k, v = (torch.empty(B, mask.shape[0], h, D, dtype=torch.bfloat16, device="cuda") for h in (H, G, G))
        try:
            fa4.attention(q, k, v, ShapesOnly(mask), D**-0.5)
        except StopIteration:
            print("COMPILED", D, flush=True)


if __name__ == "__main__":
    flash_attn.cute.flash_attn_func = both
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    for size in sys.argv[1:]:
        check(int(size))
