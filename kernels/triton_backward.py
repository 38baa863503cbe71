"""Backward attention in Triton without atomics: one kernel owns key tiles (dK, dV), one owns query tiles (dQ).

Seven matrix products instead of five, and the same bits every time. Letters and rows as in triton_forward; the kernel
of keys always packs the heads of a group into rows, because their gradients add up there.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.mask_tables import KeyTables, RowTables
from kernels.triton_forward import key_tile, load_keys, visits
from kernels.triton_tiles import Options, Tile


@triton.jit
def _delta_kernel(out_ptr, dout_ptr, lse_ptr, delta_ptr, rows, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr):
    """delta[r] = sum over D of out * dout, in float32; 0 in dead rows. All contiguous."""
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    d = tl.arange(0, DP)
    alive = tl.load(lse_ptr + row, mask=row < rows, other=float("inf")) < float("inf")
    at = row[:, None].to(tl.int64) * D + d[None, :]
    ok = alive[:, None] & (d[None, :] < D)
    o = tl.load(out_ptr + at, mask=ok, other=0.0).to(tl.float32)
    do = tl.load(dout_ptr + at, mask=ok, other=0.0).to(tl.float32)
    tl.store(delta_ptr + row, tl.sum(o * do, 1), mask=row < rows)


@triton.jit
def _dkdv_rows(
    dk, dv, k, v, n, q_base, do_base, lse_base, delta_base, end_base, q_l, q_h, lo, hi, Lq, H, scale_log2,
    P: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, MASKED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds row tiles lo..hi to dk (without the scale) and dv."""
    d = tl.arange(0, DP)
    for j in range(lo, hi):
        row = j * BM + tl.arange(0, BM)
        token = row // P
        head = row % P
        at = token * H + head
        lse = tl.load(lse_base + at, mask=token < Lq, other=float("inf"))
        alive = lse < float("inf")  # what dead rows hold must not matter
        delta = tl.load(delta_base + at, mask=alive, other=0.0)
        ok = alive[:, None] & (d[None, :] < D)
        q_at = q_base + token[:, None] * q_l + head[:, None] * q_h + d[None, :]
        q = tl.load(q_at, mask=ok, other=0.0)
        do = tl.load(do_base + at[:, None] * D + d[None, :], mask=ok, other=0.0)
        p = tl.exp2(tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale_log2 - lse[None, :])
        if MASKED:
            end = tl.load(end_base + token, mask=token < Lq, other=0)
            p = tl.where(n[:, None] < end[None, :], p, 0.0)
        dv = tl.dot(p.to(do.dtype), do, dv, input_precision=PRECISION)
        dp = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        ds = p * (dp - delta[None, :])
        dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def _dkdv_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dk_ptr, dv_ptr, end_ptr, valid_ptr, first_ptr, full_ptr,
    q_b, q_l, q_h, k_b, k_l, k_h, v_b, v_l, v_h, end_b, valid_b, first_b, full_b,
    Lq, Lk, H, G, B, scale, scale_log2,
    P: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, SPLITS: tl.constexpr,
    PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (key tiles, SPLITS, B * G); a split takes a contiguous share of the row tiles and its own output."""
    tile = tl.program_id(0)
    split = tl.program_id(1)
    b = (tl.program_id(2) // G).to(tl.int64)
    g = tl.program_id(2) % G
    n = tile * BN + tl.arange(0, BN)
    d = tl.arange(0, DP)
    key_ok = n < Lk
    if PADDED:
        key_ok = tl.load(valid_ptr + b * valid_b + n, mask=key_ok, other=0) != 0
    k = load_keys(k_ptr + b * k_b + g * k_h, n, k_l, d, Lk, key_ok, D, DP, True)
    v = load_keys(v_ptr + b * v_b + g * v_h, n, v_l, d, Lk, key_ok, D, DP, True)
    stop = tl.cdiv(Lq * P, BM)
    lo = tl.minimum(tl.load(first_ptr + b * first_b + tile) * P // BM, stop)
    full = tl.minimum(tl.cdiv(tl.load(full_ptr + b * full_b + tile) * P, BM), stop)
    if SPLITS > 1:
        share = tl.cdiv(stop - lo, SPLITS)
        lo = tl.minimum(lo + split * share, stop)
        stop = tl.minimum(lo + share, stop)
    middle = tl.minimum(tl.maximum(full, lo), stop)
    dk = tl.zeros([BN, DP], tl.float32)
    dv = tl.zeros([BN, DP], tl.float32)
    row0 = b * Lq * H + g * P
    qb = q_ptr + b * q_b + g * P * q_h
    dk, dv = _dkdv_rows(dk, dv, k, v, n, qb, do_ptr + row0 * D, lse_ptr + row0, delta_ptr + row0,
                        end_ptr + b * end_b, q_l, q_h, lo, middle, Lq, H, scale_log2,
                        P, D, DP, BM, True, PRECISION)  # fmt: skip
    dk, dv = _dkdv_rows(dk, dv, k, v, n, qb, do_ptr + row0 * D, lse_ptr + row0, delta_ptr + row0,
                        end_ptr + b * end_b, q_l, q_h, middle, stop, Lq, H, scale_log2,
                        P, D, DP, BM, False, PRECISION)  # fmt: skip
    if PADDED:  # a key's gradient depends on no other key, so the invalid ones can be cleared at the end
        dk = tl.where(key_ok[:, None], dk, 0.0)
        dv = tl.where(key_ok[:, None], dv, 0.0)
    base = ((split * B + b) * Lk * G + g) * D
    at = n[:, None] * (G * D) + d[None, :]
    ok = (n < Lk)[:, None] & (d[None, :] < D)
    tl.store(dk_ptr + base + at, (dk * scale).to(dk_ptr.dtype.element_ty), mask=ok)
    tl.store(dv_ptr + base + at, dv.to(dv_ptr.dtype.element_ty), mask=ok)


@triton.jit
def _dq_tiles(
    dq, q, do, lse, delta, k_base, v_base, k_l, v_l, end, valid_ptr, tile_ptr, lo, hi, Lk, scale_log2,
    D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, MASKED: tl.constexpr, PADDED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Adds key tiles lo..hi to dq (without the scale)."""
    d = tl.arange(0, DP)
    for j in range(lo, hi):
        n, key_ok = key_tile(j, tile_ptr, valid_ptr, Lk, BN, PADDED)
        k = load_keys(k_base, n, k_l, d, Lk, key_ok, D, DP, MASKED or PADDED)
        v = load_keys(v_base, n, v_l, d, Lk, key_ok, D, DP, MASKED or PADDED)
        p = tl.exp2(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2 - lse[:, None])
        if MASKED:
            p = tl.where((n[None, :] < end[:, None]) & key_ok[None, :], p, 0.0)
        elif PADDED:
            p = tl.where(key_ok[None, :], p, 0.0)
        dp = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        ds = p * (dp - delta[:, None])
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
    return dq


@triton.jit
def _dq_kernel(
    q_ptr, k_ptr, v_ptr, do_ptr, lse_ptr, delta_ptr, dq_ptr, end_ptr, valid_ptr, tile_ptr, rank_ptr,
    q_b, q_l, q_h, k_b, k_l, k_h, v_b, v_l, v_h, end_b, valid_b, tile_b, rank_b,
    Lq, Lk, H, scale, scale_log2,
    P: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PADDED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Grid (row tiles, B * H // P)."""
    first_row = tl.program_id(0) * BM
    b = (tl.program_id(1) // (H // P)).to(tl.int64)
    head0 = (tl.program_id(1) % (H // P)) * P
    row = first_row + tl.arange(0, BM)
    token = row // P
    head = head0 + row % P
    d = tl.arange(0, DP)
    row_ok = token < Lq
    base = b * Lq * H
    at = token * H + head
    lse = tl.load(lse_ptr + base + at, mask=row_ok, other=float("inf"))
    alive = lse < float("inf")
    delta = tl.load(delta_ptr + base + at, mask=alive, other=0.0)
    ok = alive[:, None] & (d[None, :] < D)
    q_at = q_ptr + b * q_b + token[:, None] * q_l + head[:, None] * q_h + d[None, :]
    q = tl.load(q_at, mask=ok, other=0.0)
    do = tl.load(do_ptr + base * D + at[:, None] * D + d[None, :], mask=ok, other=0.0)
    end = tl.load(end_ptr + b * end_b + token, mask=row_ok, other=0)
    full, stop = visits(end_ptr + b * end_b, rank_ptr + b * rank_b, first_row, Lq, P, BM, BN, PADDED)
    dq = tl.zeros([BM, DP], tl.float32)
    kb = k_ptr + b * k_b + (head0 // GROUP) * k_h
    vb = v_ptr + b * v_b + (head0 // GROUP) * v_h
    val = valid_ptr + b * valid_b
    til = tile_ptr + b * tile_b
    dq = _dq_tiles(dq, q, do, lse, delta, kb, vb, k_l, v_l, end, val, til, 0, full, Lk, scale_log2,
                   D, DP, BN, False, PADDED, PRECISION)  # fmt: skip
    dq = _dq_tiles(dq, q, do, lse, delta, kb, vb, k_l, v_l, end, val, til, full, stop, Lk, scale_log2,
                   D, DP, BN, True, PADDED, PRECISION)  # fmt: skip
    tl.store(dq_ptr + base * D + at[:, None] * D + d[None, :], (dq * scale).to(dq_ptr.dtype.element_ty),
             mask=row_ok[:, None] & (d[None, :] < D))  # fmt: skip


def row_splits(key_tiles: int, groups: int, processors: int) -> int:
    """Shares of the rows so that short batches still fill the processors; 1 when the key tiles alone do."""
    return max(1, min(8, processors // (key_tiles * groups)))


def backward(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, dout: Tensor, keys: KeyTables, rows: RowTables,
    scale: float, dkdv: Tile, dq: Tile, splits: int, options: Options,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients (dq, dk, dv), shaped like q, k, v and contiguous. `keys` is for dq.n keys a tile, `rows` for dkdv.n."""
    B, Lq, H, D = q.shape
    Lk, G = k.shape[1], k.shape[2]
    group, DP = H // G, max(16, triton.next_power_of_2(D))
    dout = dout.contiguous()
    log2 = scale * 1.4426950408889634
    delta = torch.empty_like(lse)
    part = torch.float32 if splits > 1 else k.dtype
    grad_k = torch.empty((splits, B, Lk, G, D), dtype=part, device=k.device)
    grad_v = torch.empty((splits, B, Lk, G, D), dtype=part, device=k.device)
    grad_q = torch.empty((B, Lq, H, D), dtype=q.dtype, device=q.device)
    if options.poison:
        for t in (delta, grad_k, grad_v, grad_q):
            t.fill_(float("nan"))
    _delta_kernel[(triton.cdiv(lse.numel(), 32),)](out, dout, lse, delta, lse.numel(), D=D, DP=DP, BM=32)
    end_b, _, valid_b, tile_b, rank_b = keys.batch_strides()
    _dkdv_kernel[(triton.cdiv(Lk, dkdv.n), splits, B * G)](
        q, k, v, dout, lse, delta, grad_k, grad_v, keys.end, keys.valid, rows.first, rows.full,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], end_b, valid_b, *rows.batch_strides(),
        Lq, Lk, H, G, B, scale, log2, P=group, D=D, DP=DP, BM=dkdv.m, BN=dkdv.n, SPLITS=splits, PADDED=keys.padded,
        PRECISION="ieee", num_warps=dkdv.warps, num_stages=dkdv.stages,
    )  # fmt: skip
    P = group if options.pack else 1
    _dq_kernel[(triton.cdiv(Lq * P, dq.m), B * (H // P))](
        q, k, v, dout, lse, delta, grad_q, keys.end, keys.valid, keys.tiles, keys.rank,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], end_b, valid_b, tile_b, rank_b,
        Lq, Lk, H, scale, log2, P=P, GROUP=group, D=D, DP=DP, BM=dq.m, BN=dq.n, PADDED=keys.padded,
        PRECISION="ieee", num_warps=dq.warps, num_stages=dq.stages,
    )  # fmt: skip
    if splits == 1:
        return grad_q, grad_k[0], grad_v[0]
    return grad_q, grad_k.sum(0).to(k.dtype), grad_v.sum(0).to(v.dtype)  # a fixed order: the same bits every time
