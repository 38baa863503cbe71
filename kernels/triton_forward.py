"""Forward attention in Triton: one program a tile of query rows, online softmax over the key tiles it can see.

Letters: B batch, Lq queries, Lk keys, H query heads, G key/value heads, P query heads packed into rows (H // G or 1),
D head size. Row r of a program's head set is token r // P, head r % P: with P = H // G the keys and values of a group
are read once for all its heads. Everything is in base 2: scores are multiplied by log2(e), LSE is a log2.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.exp2_coefficients import COEFFICIENTS
from kernels.mask_tables import KeyTables
from kernels.triton_tiles import Options, Tile

C0, C1, C2, C3 = (tl.constexpr(c) for c in COEFFICIENTS)


@triton.jit
def exp2(x, POLY: tl.constexpr):
    """2^x for x <= 8. POLY: cubic on the ordinary units (relative error 7.5e-5), else the hardware's."""
    if POLY:
        # Adding 1.5 * 2^23 rounds to an integer and leaves it in the low mantissa bits.
        shifted = tl.maximum(x, -127.0) + 12582912.0
        f = tl.maximum(x, -127.0) - (shifted - 12582912.0)
        p = ((C3 * f + C2) * f + C1) * f + C0
        bits = p.to(tl.int32, bitcast=True) + (shifted.to(tl.int32, bitcast=True) << 23)
        return tl.where(x < -125.0, 0.0, bits.to(tl.float32, bitcast=True))
    else:
        return tl.exp2(x)


@triton.jit
def load_keys(base, n, stride, d, Lk, key_ok, D: tl.constexpr, DP: tl.constexpr, GUARD: tl.constexpr):
    """(BN, DP) rows n of keys or values. GUARD: rows that are padded or past the end are zero, whatever they hold."""
    pointers = base + n[:, None] * stride + d[None, :]
    if GUARD:
        return tl.load(pointers, mask=key_ok[:, None] & (d[None, :] < D), other=0.0)
    elif D < DP:
        return tl.load(pointers, mask=d[None, :] < D, other=0.0)
    else:
        return tl.load(pointers)


@triton.jit
def key_tile(j, tile_ptr, valid_ptr, Lk, BN: tl.constexpr, PADDED: tl.constexpr):
    """Keys (BN,) of visit j and which of them count: inside the sequence, and valid. PADDED: some keys of the batch are
    invalid; tiles of nothing but padding are not in the list then."""
    t = j
    if PADDED:
        t = tl.load(tile_ptr + j)
    n = t * BN + tl.arange(0, BN)
    key_ok = n < Lk
    if PADDED:
        key_ok = tl.load(valid_ptr + n, mask=key_ok, other=0) != 0
    return n, key_ok


@triton.jit
def visits(
    end_ptr, rank_ptr, first_row, Lq, P: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, PADDED: tl.constexpr
):  # fmt: skip
    """(full, stop): of the key tiles in visiting order, rows first_row.. see all of 0..full and some of full..stop.

    Key ends rise along the rows, so two of them classify every tile: seen by all rows, by some, by none.
    """
    last = tl.minimum((first_row + BM - 1) // P, Lq - 1)
    full = tl.load(end_ptr + first_row // P) // BN
    stop = tl.cdiv(tl.load(end_ptr + last), BN)
    if PADDED:
        full = tl.load(rank_ptr + full)
        stop = tl.load(rank_ptr + stop)
    return full, stop


@triton.jit
def attend(
    acc, m, total, q, k_base, v_base, k_stride, v_stride, end, valid_ptr, tile_ptr, lo, hi, Lk, scale_log2,
    D: tl.constexpr, DP: tl.constexpr, BN: tl.constexpr, MASKED: tl.constexpr, PADDED: tl.constexpr,
    POLY: tl.constexpr, THRESHOLD: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Key tiles lo..hi. MASKED: the tile crosses some row's key end; PADDED: some keys of the batch are invalid."""
    d = tl.arange(0, DP)
    for j in range(lo, hi):
        n, key_ok = key_tile(j, tile_ptr, valid_ptr, Lk, BN, PADDED)
        k = load_keys(k_base, n, k_stride, d, Lk, key_ok, D, DP, MASKED or PADDED)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale_log2
        if MASKED:
            s = tl.where((n[None, :] < end[:, None]) & key_ok[None, :], s, float("-inf"))
        elif PADDED:
            s = tl.where(key_ok[None, :], s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        if THRESHOLD > 0:
            # A stale maximum is exact as long as it is used everywhere; only overflow must be kept away.
            m_new = tl.where(m_new - m <= THRESHOLD, m, m_new)
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        alpha = tl.exp2(m - m_safe)
        p = exp2(s - m_safe[:, None], POLY)
        total = total * alpha + tl.sum(p, 1)
        if THRESHOLD > 0:
            if tl.min(alpha, 0) < 1.0:
                acc = acc * alpha[:, None]
        else:
            acc = acc * alpha[:, None]
        v = load_keys(v_base, n, v_stride, d, Lk, key_ok, D, DP, MASKED or PADDED)
        acc = tl.dot(p.to(v.dtype), v, acc, input_precision=PRECISION)
        m = m_new
    return acc, m, total


@triton.jit
def _forward_kernel(
    q_ptr, k_ptr, v_ptr, out_ptr, lse_ptr, end_ptr, alive_ptr, valid_ptr, tile_ptr, rank_ptr,
    q_b, q_l, q_h, k_b, k_l, k_h, v_b, v_l, v_h, end_b, alive_b, valid_b, tile_b, rank_b,
    Lq, Lk, H, scale_log2,
    P: tl.constexpr, GROUP: tl.constexpr, D: tl.constexpr, DP: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PADDED: tl.constexpr, POLY: tl.constexpr, THRESHOLD: tl.constexpr, PRECISION: tl.constexpr,
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
    q_at = q_ptr + b * q_b + token[:, None] * q_l + head[:, None] * q_h + d[None, :]
    q = tl.load(q_at, mask=row_ok[:, None] & (d[None, :] < D), other=0.0)
    end = tl.load(end_ptr + b * end_b + token, mask=row_ok, other=0)
    alive = tl.load(alive_ptr + b * alive_b + token, mask=row_ok, other=0) != 0
    full, stop = visits(end_ptr + b * end_b, rank_ptr + b * rank_b, first_row, Lq, P, BM, BN, PADDED)
    acc = tl.zeros([BM, DP], tl.float32)
    m = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    kb = k_ptr + b * k_b + (head0 // GROUP) * k_h
    vb = v_ptr + b * v_b + (head0 // GROUP) * v_h
    val = valid_ptr + b * valid_b
    til = tile_ptr + b * tile_b
    acc, m, total = attend(acc, m, total, q, kb, vb, k_l, v_l, end, val, til, 0, full, Lk, scale_log2,
                       D, DP, BN, False, PADDED, POLY, THRESHOLD, PRECISION)  # fmt: skip
    acc, m, total = attend(acc, m, total, q, kb, vb, k_l, v_l, end, val, til, full, stop, Lk, scale_log2,
                       D, DP, BN, True, PADDED, POLY, THRESHOLD, PRECISION)  # fmt: skip
    out = tl.where(alive[:, None], acc / tl.where(alive, total, 1.0)[:, None], 0.0)
    # +inf in rows that see nothing makes exp2(s - lse) zero in the backward pass.
    lse = tl.where(alive, m + tl.log2(tl.where(alive, total, 1.0)), float("inf"))
    # 64-bit arithmetic on the scalar base only: offsets of a whole tile in 64 bits would spill.
    at = token * H + head
    tl.store(lse_ptr + b * Lq * H + at, lse, mask=row_ok)
    tl.store(out_ptr + b * Lq * H * D + at[:, None] * D + d[None, :], out.to(out_ptr.dtype.element_ty),
             mask=row_ok[:, None] & (d[None, :] < D))  # fmt: skip


def forward(
    q: Tensor, k: Tensor, v: Tensor, keys: KeyTables, scale: float, tile: Tile, options: Options
) -> tuple[Tensor, Tensor]:
    """q (B, Lq, H, D), k and v (B, Lk, G, D) -> out like q, LSE float32 (B, Lq, H) in base 2, +inf in dead rows."""
    B, Lq, H, D = q.shape
    Lk, G = k.shape[1], k.shape[2]
    group = H // G
    P = group if options.pack else 1
    out = torch.empty((B, Lq, H, D), dtype=q.dtype, device=q.device)
    lse = torch.empty((B, Lq, H), dtype=torch.float32, device=q.device)
    if options.poison:
        out.fill_(float("nan"))
        lse.fill_(float("nan"))
    grid = (triton.cdiv(Lq * P, tile.m), B * (H // P))
    _forward_kernel[grid](
        q, k, v, out, lse, keys.end, keys.alive, keys.valid, keys.tiles, keys.rank,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *keys.batch_strides(),
        Lq, Lk, H, scale * 1.4426950408889634,
        P=P, GROUP=group, D=D, DP=max(16, triton.next_power_of_2(D)), BM=tile.m, BN=tile.n, PADDED=keys.padded,
        POLY=options.poly_exp2, THRESHOLD=options.rescale_threshold, PRECISION="ieee",
        num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return out, lse
