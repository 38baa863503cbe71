"""Cuts block-causal attention into calls on prefixes of the keys, so that the backends of PyTorch need no dense mask.

Queries of one block see the same prefix of the keys: a call on (that block, that prefix) needs no mask and skips what
nobody sees. Neighbouring small blocks share a call with a small mask. Rows of a batch with different ids fall to one
call with a dense mask; `plan` and `describe` show which it is.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.block_mask import BlockMask, additive

MAX_PIECES = 16

# (q, k, v, bias) of one piece -> its output; bias (B, 1, rows or 1, keys) or None. All (B, L, heads, D).
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Piece:
    """Queries first..last (exclusive) against keys 0..keys; `mixed` if they do not all see all of them."""

    first: int
    last: int
    keys: int
    mixed: bool


def split_ends(ends: list[int], min_rows: int) -> tuple[Piece, ...]:
    """Pieces of at least `min_rows` queries (the last may be smaller) cut where the key end of the queries rises."""
    pieces: list[Piece] = []
    start = 0
    for i in range(1, len(ends) + 1):
        if i == len(ends) or (ends[i] != ends[i - 1] and i - start >= min_rows):
            pieces.append(Piece(start, i, ends[i - 1], ends[start] != ends[i - 1]))
            start = i
    return tuple(pieces)


def plan(mask: BlockMask, min_rows: int) -> tuple[Piece, ...]:
    """The calls made for this mask; empty when one call with a dense mask is made. Looks at the ids once."""

    def make() -> tuple[Piece, ...]:
        ends = mask.kv_end()
        if not mask.facts().one_row:
            return ()
        pieces = split_ends(ends[0].tolist(), max(min_rows, -(-mask.shape[0] // MAX_PIECES)))
        whole = len(pieces) == 1 and pieces[0].mixed and pieces[0].keys == mask.shape[1]
        return () if whole else pieces

    return mask.cached(("pieces", min_rows), make)


def describe(mask: BlockMask, min_rows: int) -> str:
    """The choice in words, for logs and reports."""
    pieces = plan(mask, min_rows)
    if not pieces:
        return f"one call with a dense mask of {mask.shape[0]} x {mask.shape[1]}"
    masks = [f"{p.last - p.first} x {p.keys}" for p in pieces if p.mixed]
    return f"{len(pieces)} calls without a dense mask" + (f" (small masks: {', '.join(masks)})" if masks else "")


def _bias(mask: BlockMask, p: Piece, dtype: torch.dtype) -> Tensor | None:
    """Additive (B, 1, rows or 1, keys), or None where every query of the piece sees every key."""

    def make() -> Tensor | None:
        seen = None if mask.all_keys_valid() else mask.k_valid[:, None, : p.keys]
        if p.mixed:
            prefix = mask.k_block[:, None, : p.keys] <= mask.q_block[:, p.first : p.last, None]
            seen = prefix if seen is None else prefix & seen
        return None if seen is None else additive(seen, dtype)[:, None]

    return mask.cached(("bias of piece", p, dtype), make)


def attend_by_pieces(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, min_rows: int, attend: Attend) -> Tensor:
    """q (B, Lq, H, D), k and v (B, Lk, G, D) -> (B, Lq, H, D), zero where nothing is seen.

    The bias handed to `attend` is finite: a boolean mask gives NaN in rows that see nothing.
    """
    outs = []
    for p in plan(mask, min_rows):
        rows = q[:, p.first : p.last]
        if p.keys == 0:
            outs.append(torch.zeros_like(rows))
        else:
            outs.append(attend(rows, k[:, : p.keys], v[:, : p.keys], _bias(mask, p, q.dtype)))
    if not outs:
        outs = [attend(q, k, v, mask.bias(q.dtype)[:, None])]
    whole = outs[0] if len(outs) == 1 else torch.cat(outs, 1)
    if mask.facts().alive:
        return whole
    # where, not a product: nothing computed in an empty row may pass on, not even a NaN.
    return torch.where(mask.alive()[:, :, None, None], whole, 0.0)
