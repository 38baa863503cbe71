"""What tiled kernels read of a BlockMask: key ends, row validity, which tiles are worth visiting.

Letters: B batch (1 broadcasts, through a stride of zero), Lq queries, Lk keys, N key tiles of `size` keys.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.block_mask import BlockMask


@dataclass(frozen=True)
class KeyTables:
    """end int32 (B, Lq): keys before it have a block id at or below the query's. alive, valid: uint8 (B, Lq / Lk).

    tiles int32 (B, N): tiles that hold a valid key, in order, then rubbish. rank int32 (B, N + 1): how many of those
    lie before tile n, so tiles a..b of the sequence are entries rank[a]..rank[b] of the list. Unused unless padded.
    """

    end: Tensor
    alive: Tensor
    valid: Tensor
    tiles: Tensor
    rank: Tensor
    padded: bool

    def batch_strides(self) -> tuple[int, ...]:
        return tuple(0 if t.shape[0] == 1 else t.stride(0) for t in self.tensors())

    def tensors(self) -> tuple[Tensor, ...]:
        return self.end, self.alive, self.valid, self.tiles, self.rank


@dataclass(frozen=True)
class RowTables:
    """For every key tile, int32 (B, N): the first query that sees a key of it (Lq if none) and the first that sees
    all keys of it. Queries behind see them too."""

    first: Tensor
    full: Tensor

    def batch_strides(self) -> tuple[int, ...]:
        return tuple(0 if t.shape[0] == 1 else t.stride(0) for t in (self.first, self.full))


def key_tables(mask: BlockMask, size: int) -> KeyTables:
    """Tables for key tiles of `size` keys; computed once a mask and size."""

    def make() -> KeyTables:
        end = mask.kv_end().contiguous()
        alive = mask.alive().to(torch.uint8).contiguous()
        valid = mask.k_valid.to(torch.uint8).contiguous()
        padded = not mask.all_keys_valid()
        if not padded:
            return KeyTables(end, alive, valid, end, end, False)
        some = _by_tile(mask.k_valid, size).any(-1)
        rank = F.pad(some.to(torch.int32).cumsum(1), (1, 0)).to(torch.int32).contiguous()
        # A stable sort brings tiles with a valid key to the front and keeps their order.
        tiles = (~some).to(torch.int32).argsort(dim=1, stable=True).to(torch.int32).contiguous()
        return KeyTables(end, alive, valid, tiles, rank, True)

    return mask.cached(("key tables", size), make)


def row_tables(mask: BlockMask, size: int) -> RowTables:
    """The mirror image for the kernel that owns key tiles of `size` keys; computed once a mask and size."""

    def make() -> RowTables:
        end = mask.kv_end()
        Lk = mask.shape[1]
        starts = torch.arange(0, Lk, size, dtype=torch.int32, device=end.device)
        stops = (starts + size).clamp(max=Lk)
        n = end.shape[0]
        ends = end.contiguous()
        first = torch.searchsorted(ends, starts.expand(n, -1).contiguous(), right=True)
        full = torch.searchsorted(ends, stops.expand(n, -1).contiguous(), right=False)
        if not mask.all_keys_valid():
            some = _by_tile(mask.k_valid, size).any(-1)
            first = torch.where(some, first, mask.shape[0])
            full = full.expand(first.shape[0], -1)
        return RowTables(first.to(torch.int32).contiguous(), full.to(torch.int32).contiguous())

    return mask.cached(("row tables", size), make)


def _by_tile(valid: Tensor, size: int) -> Tensor:
    """bool (B, Lk) -> (B, N, size), False past the end."""
    return F.pad(valid, (0, -valid.shape[1] % size)).unflatten(1, (-1, size))


def tile_lists(mask: BlockMask, B: int, size: tuple[int, int]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """(forward, backward) lists: mask count, mask index, full count, full index; int32.

    forward: counts (B, 1, M), indices (B, 1, M, N), key tiles of every query tile; backward: counts (B, 1, N), indices
    (B, 1, N, M), query tiles of every key tile. Ascending. A tile is full if its queries all see all its keys.
    """

    def make() -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        m, n = size
        Lq, Lk = mask.shape
        end, valid = mask.kv_end().expand(B, -1), mask.k_valid.expand(B, -1)
        # Rows past the end repeat the last one; keys past the end are invalid.
        end = F.pad(end[:, None].float(), (0, -Lq % m), mode="replicate")[:, 0].long()
        ends = end.unflatten(1, (-1, m))
        keys = F.pad(valid, (0, -Lk % n)).unflatten(1, (-1, n))
        start = torch.arange(keys.shape[1], device=end.device) * n
        some = (start[None, None] < ends[:, :, -1:]) & keys.any(-1)[:, None]
        full = (start[None, None] + n <= ends[:, :, :1]) & keys.all(-1)[:, None]
        forward = (*_listed(some & ~full), *_listed(full))
        backward = (*_listed((some & ~full).mT), *_listed(full.mT))
        return forward, backward

    return mask.cached(("tile lists", B, size), make)


def _listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
    """bool (B, X, Y) -> counts (B, 1, X) and, first in each row, the chosen Y in ascending order (B, 1, X, Y)."""
    order = (~chosen).to(torch.int8).argsort(dim=-1, stable=True)
    return chosen.sum(-1)[:, None].to(torch.int32).contiguous(), order[:, None].to(torch.int32).contiguous()
