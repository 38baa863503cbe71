"""Attention of few queries against many keys: the keys are split over programs, a second kernel joins the parts.

A single-split kernel runs as many programs as there are query tiles (four for 51 packed queries), which leaves a GPU
empty. No backward: dispatch takes the training kernels when gradients are wanted.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.mask_tables import KeyTables
from kernels.triton_forward import attend, visits
from kernels.triton_tiles import Options, Tile


@triton.jit
def _split_kernel(
    q_ptr, k_ptr, v_ptr, part_ptr, lse_ptr, end_ptr, valid_ptr, tile_ptr, rank_ptr,
    q_b, q_l, q_h, k_b, k_l, k_h, v_b, v_l, v_h, end_b, valid_b, tile_b, rank_b,
    Lq, Lk, H, B, scale_log2,
    P: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    SPLITS: tl.constexpr, PADDED: tl.constexpr, POLY: tl.constexpr, THRESHOLD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (row tiles, SPLITS, B * H // P). Writes normalised float32 parts and their LSE (-inf: saw nothing)."""
    first_row = tl.program_id(0) * BM
    split = tl.program_id(1)
    b = (tl.program_id(2) // (H // P)).to(tl.int64)
    head0 = (tl.program_id(2) % (H // P)) * P
    row = first_row + tl.arange(0, BM)
    token = row // P
    head = head0 + row % P
    d = tl.arange(0, DP)
    row_ok = token < Lq
    q_at = q_ptr + b * q_b + token[:, None] * q_l + head[:, None] * q_h + d[None, :]
    q = tl.load(q_at, mask=row_ok[:, None] & (d[None, :] < D), other=0.0)
    end = tl.load(end_ptr + b * end_b + token, mask=row_ok, other=0)
    full, stop = visits(end_ptr + b * end_b, rank_ptr + b * rank_b, first_row, Lq, P, BM, BN, PADDED)
    share = tl.cdiv(stop, SPLITS)
    lo = tl.minimum(split * share, stop)
    hi = tl.minimum(lo + share, stop)
    middle = tl.minimum(tl.maximum(full, lo), hi)
    acc = tl.zeros([BM, DP], tl.float32)
    m = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    kb = k_ptr + b * k_b + (head0 // GROUP) * k_h
    vb = v_ptr + b * v_b + (head0 // GROUP) * v_h
    val = valid_ptr + b * valid_b
    til = tile_ptr + b * tile_b
    acc, m, total = attend(acc, m, total, q, kb, vb, k_l, v_l, end, val, til, lo, middle, Lk, scale_log2,
                       D, DP, BN, False, PADDED, POLY, THRESHOLD, PRECISION)  # fmt: skip
    acc, m, total = attend(acc, m, total, q, kb, vb, k_l, v_l, end, val, til, middle, hi, Lk, scale_log2,
                       D, DP, BN, True, PADDED, POLY, THRESHOLD, PRECISION)  # fmt: skip
    some = total > 0
    safe = tl.where(some, total, 1.0)
    base = (split * B + b) * Lq * H
    at = token * H + head
    tl.store(lse_ptr + base + at, tl.where(some, m + tl.log2(safe), float("-inf")), mask=row_ok)
    tl.store(
        part_ptr + base * D + at[:, None] * D + d[None, :], acc / safe[:, None], mask=row_ok[:, None] & (d[None, :] < D)
    )


@triton.jit
def _join_kernel(
    part_ptr, lse_ptr, alive_ptr, out_ptr, alive_b, rows, Lq, H,
    D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """out = sum over splits of 2^(lse_s - lse) part_s, in split order; 0 in dead rows. rows = B * Lq * H."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    d = tl.arange(0, DP)
    row_ok = row < rows
    top = tl.full([BM], float("-inf"), tl.float32)
    for s in tl.static_range(SPLITS):
        top = tl.maximum(top, tl.load(lse_ptr + s * rows + row, mask=row_ok, other=float("-inf")))
    top = tl.where(top == float("-inf"), 0.0, top)
    total = tl.zeros([BM], tl.float32)
    acc = tl.zeros([BM, DP], tl.float32)
    ok = row_ok[:, None] & (d[None, :] < D)
    for s in tl.static_range(SPLITS):
        w = tl.exp2(tl.load(lse_ptr + s * rows + row, mask=row_ok, other=float("-inf")) - top)
        at = (s * rows + row)[:, None].to(tl.int64) * D + d[None, :]
        acc += w[:, None] * tl.load(part_ptr + at, mask=ok, other=0.0)
        total += w
    b = row // (Lq * H)
    alive = tl.load(alive_ptr + b * alive_b + row // H % Lq, mask=row_ok, other=0) != 0
    out = tl.where(alive[:, None], acc / tl.where(total > 0, total, 1.0)[:, None], 0.0)
    tl.store(out_ptr + row[:, None].to(tl.int64) * D + d[None, :], out.to(out_ptr.dtype.element_ty), mask=ok)


def key_splits(row_tiles: int, groups: int, key_tiles: int, processors: int) -> int:
    """Parts of the keys: fill the processors once, at most 8 parts, at least one key tile each."""
    return max(1, min(8, key_tiles, processors // max(1, row_tiles * groups)))


def decode(
    q: Tensor, k: Tensor, v: Tensor, keys: KeyTables, scale: float, tile: Tile, splits: int, options: Options
) -> Tensor:
    """q (B, Lq, H, D), k and v (B, Lk, G, D) -> (B, Lq, H, D), without what a backward pass needs."""
    B, Lq, H, D = q.shape
    Lk, G = k.shape[1], k.shape[2]
    group, DP = H // G, max(16, triton.next_power_of_2(D))
    P = group if options.pack else 1
    part = torch.empty((splits, B, Lq, H, D), dtype=torch.float32, device=q.device)
    lse = torch.empty((splits, B, Lq, H), dtype=torch.float32, device=q.device)
    out = torch.empty((B, Lq, H, D), dtype=q.dtype, device=q.device)
    if options.poison:
        for t in (part, lse, out):
            t.fill_(float("nan"))
    end_b, alive_b, valid_b, tile_b, rank_b = keys.batch_strides()
    _split_kernel[(triton.cdiv(Lq * P, tile.m), splits, B * (H // P))](
        q, k, v, part, lse, keys.end, keys.valid, keys.tiles, keys.rank,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], end_b, valid_b, tile_b, rank_b,
        Lq, Lk, H, B, scale * 1.4426950408889634, P=P, GROUP=group, D=D, DP=DP, BM=tile.m, BN=tile.n, SPLITS=splits,
        PADDED=keys.padded, POLY=options.poly_exp2, THRESHOLD=options.rescale_threshold, PRECISION="ieee",
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    rows = B * Lq * H
    _join_kernel[(triton.cdiv(rows, 16),)](
        part, lse, keys.alive, out, alive_b, rows, Lq, H, D=D, DP=DP, BM=16, SPLITS=splits
    )
    return out
