"""The `triton` backend: our kernels as torch operators, so that autograd, torch.compile and CUDA graphs keep working.

Imports Triton; `dispatch` imports this file only when the backend is asked for.
"""

import os
from dataclasses import astuple

import torch
import triton
from torch import Tensor

from kernels import mask_tables, triton_backward, triton_decode, triton_forward
from kernels.block_mask import BlockMask
from kernels.mask_tables import KeyTables, RowTables
from kernels.triton_tiles import Options, Tile, tile_for

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
DECODE_ROWS = 64  # without gradients, up to this many queries take the split-KV kernel


def device_capability(device: torch.device) -> int:
    """90 for 9.0."""
    if device.type != "cuda":
        return 80  # the interpreter knows no limits; any row of the table will do
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def processors(device: torch.device) -> int:
    """What runs at the same time: multiprocessors of a GPU."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


@torch.compiler.assume_constant_result
def _launch(device: str, D: int, element_size: int) -> tuple[int, ...]:
    """Processors, then m, n, warps and stages of the tiles of forward, dkdv, dq and decode."""
    capability = device_capability(torch.device(device))
    tiles = [tile_for(kind, capability, D, element_size) for kind in ("forward", "dkdv", "dq", "decode")]
    return processors(torch.device(device)), *(n for tile in tiles for n in astuple(tile))


def refusal(device: torch.device, capability: int | None, dtype: torch.dtype, D: int) -> str | None:
    """Why the backend cannot run these inputs, or None. capability: 90 for 9.0, None off CUDA."""
    if capability is None and not INTERPRETED:
        return f"Triton kernels need a CUDA device, the tensors are on {device.type} (TRITON_INTERPRET=1 simulates one)"
    if capability is not None and capability < 80:
        return f"architecture sm_{capability} is older than sm_80"
    # The interpreter multiplies the raw bits of bfloat16.
    allowed = (torch.float16, torch.float32) if INTERPRETED else (torch.bfloat16, torch.float16, torch.float32)
    if dtype not in allowed:
        names = ", ".join(str(t)[6:] for t in allowed)
        return f"dtype {str(dtype)[6:]} is not supported, use {names}"
    return None if D <= 256 else f"head size {D} is above 256"


def _key_tables(tables: list[Tensor], padded: bool) -> KeyTables:
    end, alive, valid, tiles, rank = tables
    return KeyTables(end, alive, valid, tiles, rank, padded)


@torch.library.custom_op("f1_kernels::attention_forward", mutates_args=())
def _forward(
    q: Tensor, k: Tensor, v: Tensor, tables: list[Tensor], padded: bool, scale: float, tiles: list[int],
    poly_exp2: bool, rescale_threshold: float, pack: bool, poison: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """tables: KeyTables for the forward tile (5), KeyTables tiles and rank for the dq tile (2), RowTables (2).
    tiles: forward, dkdv and dq as m, n, warps, stages each."""
    options = Options(poly_exp2, rescale_threshold, pack, poison)
    keys = _key_tables(tables[:5], padded)
    return triton_forward.forward(q, k, v, keys, scale, Tile(*tiles[:4]), options)


@_forward.register_fake
def _(q, k, v, tables, padded, scale, tiles, poly_exp2, rescale_threshold, pack, poison):
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), torch.empty(
        q.shape[:3], dtype=torch.float32, device=q.device
    )


@torch.library.custom_op("f1_kernels::attention_backward", mutates_args=())
def _backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dout: Tensor, tables: list[Tensor], padded: bool,
    scale: float, tiles: list[int], pack: bool, poison: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    end, alive, valid = tables[:3]
    keys = KeyTables(end, alive, valid, tables[5], tables[6], padded)
    dkdv = Tile(*tiles[4:8])
    splits = triton_backward.row_splits(triton.cdiv(k.shape[1], dkdv.n), k.shape[0] * k.shape[2], processors(q.device))
    return triton_backward.backward(
        q, k, v, out, lse, dout, keys, RowTables(tables[7], tables[8]), scale, dkdv, Tile(*tiles[8:]), splits,
        Options(pack=pack, poison=poison),
    )  # fmt: skip


@_backward.register_fake
def _(q, k, v, out, lse, dout, tables, padded, scale, tiles, pack, poison):
    return tuple(torch.empty(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))


def _setup_context(ctx, inputs, output):
    q, k, v, tables, padded, scale, tiles, _, _, pack, poison = inputs
    ctx.save_for_backward(q, k, v, *output, *tables)
    ctx.settings = (padded, scale, tiles, pack, poison)
    ctx.set_materialize_grads(False)


def _autograd(ctx, dout, dlse):
    assert dlse is None, "nobody differentiates the LSE"
    q, k, v, out, lse, *tables = ctx.saved_tensors
    grads = _backward(q, k, v, out, lse, dout, tables, *ctx.settings)
    return *grads, [None] * len(tables), *[None] * 7


_forward.register_autograd(_autograd, setup_context=_setup_context)


@torch.library.custom_op("f1_kernels::attention_decode", mutates_args=())
def _decode(
    q: Tensor, k: Tensor, v: Tensor, tables: list[Tensor], padded: bool, scale: float, tile: list[int],
    poly_exp2: bool, rescale_threshold: float, pack: bool, poison: bool, splits: int,
) -> Tensor:  # fmt: skip
    options = Options(poly_exp2, rescale_threshold, pack, poison)
    return triton_decode.decode(q, k, v, _key_tables(tables, padded), scale, Tile(*tile), splits, options)


@_decode.register_fake
def _(q, k, v, tables, padded, scale, tile, poly_exp2, rescale_threshold, pack, poison, splits):
    return torch.empty(q.shape, dtype=q.dtype, device=q.device)


def _contiguous_heads(t: Tensor) -> Tensor:
    return t if t.stride(-1) == 1 else t.contiguous()


def attention(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float, options: Options | None = None) -> Tensor:
    """q (B, Lq, H, D), k and v (B, Lk, G, D) -> (B, Lq, H, D). What padded keys and dead queries hold is never read."""
    options = options or Options()
    q, k, v = map(_contiguous_heads, (q, k, v))
    B, Lq, H, D = q.shape
    if B * Lq * k.shape[1] == 0:
        return torch.zeros_like(q)
    count, *sizes = _launch(str(q.device), D, q.element_size())
    *tiles, decode = (Tile(*sizes[i : i + 4]) for i in range(0, 16, 4))
    training = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
    if not training and Lq <= DECODE_ROWS:
        keys = mask_tables.key_tables(mask, decode.n)
        P = H // k.shape[2] if options.pack else 1
        programs = (triton.cdiv(Lq * P, decode.m), B * (H // P))
        splits = triton_decode.key_splits(*programs, triton.cdiv(k.shape[1], decode.n), count)
        return _decode(q, k, v, list(keys.tensors()), keys.padded, scale, sizes[12:], *astuple(options), splits)
    keys = mask_tables.key_tables(mask, tiles[0].n)
    dq_keys = mask_tables.key_tables(mask, tiles[2].n)
    rows = mask_tables.row_tables(mask, tiles[1].n)
    tables = [*keys.tensors(), dq_keys.tiles, dq_keys.rank, rows.first, rows.full]
    return _forward(q, k, v, tables, keys.padded, scale, sizes[:12], *astuple(options))[0]
