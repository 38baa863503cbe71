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

PACKAGES = {"flash_attn.cute": "flash-attn-4", "cutlass": "nvidia-cutlass-dsl"}
BLOCK = (
    128,
    64,
)  # query tokens x keys of a tile: the one size valid for forward and backward at head size 256 on sm_90


def missing_packages() -> list[str]:
    """Names of the packages to install; empty when everything is here."""
    missing = []
    for module, package in PACKAGES.items():
        try:
            found = importlib.util.find_spec(module) is not None
        except ModuleNotFoundError:  # the parent package is absent
            found = False
        if not found:
            missing.append(package)
    return missing


def refusal(device: torch.device, dtype: torch.dtype, D: int, training: bool, capability: int | None) -> str | None:
    """Why FlashAttention 4 is not available for these inputs, or None. capability: 90 for 9.0, None off CUDA."""
    if missing := missing_packages():
        return f"FlashAttention 4 not available: package {' and '.join(missing)} is not installed"
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


def tile_lists(mask: BlockMask, B: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(forward, backward) lists: mask count, mask index, full count, full index; int32.

    forward: counts (B, 1, M), indices (B, 1, M, N), key tiles of every query tile; backward: counts (B, 1, N), indices
    (B, 1, N, M), query tiles of every key tile. Ascending. A tile is full if its queries all see all its keys.
    """

    def make() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        m, n = BLOCK
        Lq, Lk = mask.shape
        end, valid = mask.kv_end().expand(B, -1), mask.k_valid.expand(B, -1)
        # Rows past the end repeat the last one; keys past the end are invalid.
        end = torch.nn.functional.pad(end[:, None].float(), (0, -Lq % m), mode="replicate")[:, 0].long()
        ends = end.unflatten(1, (-1, m))
        keys = torch.nn.functional.pad(valid, (0, -Lk % n)).unflatten(1, (-1, n))
        start = torch.arange(keys.shape[1], device=end.device) * n
        some = (start[None, None] < ends[:, :, -1:]) & keys.any(-1)[:, None]
        full = (start[None, None] + n <= ends[:, :, :1]) & keys.all(-1)[:, None]
        forward = (*_listed(some & ~full), *_listed(full))
        backward = (*_listed((some & ~full).mT), *_listed(full.mT))
        return forward, backward

    return mask.cached(("fa4 lists", B), make)


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """bool (B, X, Y) -> counts (B, 1, X) and, first in each row, the chosen Y in ascending order (B, 1, X, Y)."""
    order = (~chosen).to(torch.int8).argsort(dim=-1, stable=True)
    return chosen.sum(-1)[:, None].to(torch.int32).contiguous(), order[:, None].to(torch.int32).contiguous()


def attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """q (B, Lq, H, D), k and v (B, Lk, G, D), bfloat16 or float16 on CUDA -> (B, Lq, H, D). Padded keys: finite."""
    from flash_attn.cute import flash_attn_func
    from flash_attn.cute.block_sparsity import BlockSparseTensorsTorch

    B = q.shape[0]

    def make() -> list[Tensor]:
        return [t.expand(B, -1).to(torch.int32).contiguous() for t in (mask.kv_end(), mask.k_valid)]

    sparse: dict[str, Any] = {}
    if torch.cuda.get_device_capability(q.device)[0] >= 9:  # older kernels accept the lists and ignore them
        for name, lists in zip(("block_sparse_tensors", "block_sparse_tensors_bwd"), tile_lists(mask, B), strict=True):
            sparse[name] = BlockSparseTensorsTorch(*lists, block_size=BLOCK)
    out, _ = flash_attn_func(
        *(t.contiguous() for t in (q, k, v)),
        softmax_scale=scale,
        mask_mod=_mask_function(),
        aux_tensors=mask.cached(("fa4 aux", B), make),
        **sparse,
    )
    return torch.where(mask.alive()[:, :, None, None], out, 0.0)
