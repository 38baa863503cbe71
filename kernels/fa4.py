"""Adapter for the official FlashAttention-4 (package flash-attn-4): mask function plus lists of tiles to visit.

The package and CUDA are touched only when the backend is asked for. Requirements by architecture are those of
flash-attn-4 4.0.0b36; its combination of head size 256, one key/value head, mask function, tile lists and backward has
no test upstream, so `python -m kernels.selftest` checks it against float64 before it may be chosen by `auto`.
"""

import importlib.util
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from kernels.block_mask import BlockMask
from kernels.mask_tables import tile_lists

PACKAGES = {
    "flash_attn.cute": "flash-attn-4", "cutlass": "nvidia-cutlass-dsl", "quack": "quack-kernels",
    "tvm_ffi": "apache-tvm-ffi", "einops": "einops",
}  # fmt: skip


def tile_size(D: int, generation: int = 9) -> tuple[int, int]:
    """(query tokens, keys) of a tile in the lists: what the kernels for head size D take, forward and backward.

    generation: 9 for sm_90, 10 for sm_100, whose forward kernel takes two tiles of queries at a time.
    """
    return 256 if generation in (10, 11) else 128, 128 if D <= 128 else 96 if D <= 192 else 64


def missing_packages() -> list[str]:
    """Names of the packages to install; empty when everything is here."""
    missing = []
    for module, package in PACKAGES.items():
        try:
            found = importlib.util.find_spec(module) is not None
        except ImportError:  # the parent package is absent, or an older one that does not load here
            found = False
        if not found:
            missing.append(package)
    return missing


def refusal(device: torch.device, dtype: torch.dtype, D: int, training: bool, capability: int | None) -> str | None:
    """Why FlashAttention 4 is not available for these inputs, or None. capability: 90 for 9.0, None off CUDA."""
    if missing := missing_packages():
        named = f"package {missing[0]} is" if len(missing) == 1 else f"packages {', '.join(missing)} are"
        return f"FlashAttention 4 not available: {named} not installed"
    if device.type != "cuda" or capability is None:
        return f"FlashAttention 4 not available: it needs a CUDA device, the tensors are on {device.type}"
    sm = f"sm_{capability}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"FlashAttention 4 not available: dtype {str(dtype)[6:]}, it takes bfloat16 or float16"
    if capability < 80:
        return f"FlashAttention 4 not available: architecture {sm}, it needs sm_80 or newer"
    if D % 8 or D > 256:
        return f"FlashAttention 4 not available: head size {D}, it takes multiples of 8 up to 256"
    if capability // 10 in (8, 12):
        if training:
            return f"FlashAttention 4 not available: architecture {sm} has no backward with a mask, it needs sm_90"
        if D > 128 and capability != 80:
            return f"FlashAttention 4 not available: head size {D} does not fit the shared memory of {sm}"
    if capability // 10 in (10, 11) and D > 128:
        return f"FlashAttention 4 not available: head size {D} with tile lists has no backward on {sm}"
    return None


@lru_cache(maxsize=1)
def _mask_function() -> Any:
    """The mask per element in CuTe: key before the query's key end, and key valid."""
    import cutlass
    import cutlass.cute as cute
    from flash_attn.cute import utils

    @cute.jit
    def block_causal(b, h, q_idx, kv_idx, seqlen_info, aux):
        end = utils.scalar_to_ssa(aux[0][b[0], q_idx[0]], cutlass.Int32)
        ok = utils.scalar_to_ssa(aux[1][b[0], kv_idx[0]], cutlass.Int32)
        return (kv_idx < end) & (ok > utils.scalar_to_ssa(0, cutlass.Int32))

    return block_causal


def mask_tensors(mask: BlockMask, B: int) -> list[Tensor]:
    """What the mask function reads: key ends (B, Lq) and key validity (B, Lk), int32, contiguous."""

    def make() -> list[Tensor]:
        return [t.expand(B, -1).to(torch.int32).contiguous() for t in (mask.kv_end(), mask.k_valid)]

    return mask.cached(("fa4 aux", B), make)


@torch.compiler.disable  # no operators of the package are known to torch.compile: its graph ends here
def attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """q (B, Lq, H, D), k and v (B, Lk, G, D), bfloat16 or float16 on CUDA -> (B, Lq, H, D). Padded keys: finite."""
    from flash_attn.cute import flash_attn_func
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    B = q.shape[0]
    sparse: dict[str, Any] = {}
    generation = torch.cuda.get_device_capability(q.device)[0]
    if generation in (9, 10, 11):  # the others take no lists, or accept them and ignore them
        size = tile_size(q.shape[3], generation)
        both = tile_lists(mask, B, size)
        for name, lists in zip(("block_sparse_tensors", "block_sparse_tensors_bwd"), both, strict=True):
            sparse[name] = BlockSparseTensorsTorch(*lists, block_size=size)
    out, _ = flash_attn_func(
        *(t.contiguous() for t in (q, k, v)),
        softmax_scale=scale,
        mask_mod=_mask_function(),
        aux_tensors=mask_tensors(mask, B),
        **sparse,
    )
    return torch.where(mask.alive()[:, :, None, None], out, 0.0)
