"""Tile sizes of the Triton kernels, fixed for each architecture so that runs repeat, and the kernels' switches.

Found with the compile matrix (`python -m kernels.compile_matrix`): shared memory within the architecture's limit and
no spilled register, with one exception. Triton is not imported here.
"""

from dataclasses import dataclass

from kernels import pinned

KINDS = ("forward", "dkdv", "dq", "decode")
SHARED_LIMIT = {80: 163 * 1024, 89: 99 * 1024, 90: 227 * 1024}  # bytes a block may use
# Bytes a thread may spill; 0 where not listed. The one exception keeps the products on wgmma, which needs 64 keys.
SPILL_LIMIT = {(90, 256, "dkdv"): 40}


@dataclass(frozen=True)
class Tile:
    """m query rows by n keys, warps a program, pipeline stages."""

    m: int
    n: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Options:
    """Switches of our kernel. The defaults are right everywhere; measure before changing (kernels.benchmark).

    poly_exp2: exponential by cubic polynomial. rescale_threshold: in log2, keep a stale maximum while the new one is
    at most this far above (0: always rescale). pack: the query heads of a group share rows. deterministic reductions
    are not a switch: nothing here uses atomics. poison: fill outputs with NaN first (tests).
    """

    poly_exp2: bool = False
    rescale_threshold: float = 8.0
    pack: bool = True
    poison: bool = False


def _row(*tiles: tuple[int, int, int, int]) -> dict[str, Tile]:
    return {kind: Tile(*t) for kind, t in zip(KINDS, tiles, strict=True)}


# architecture -> padded head size -> forward, dkdv, dq, decode as m, n, warps, stages
_TABLE: dict[int, dict[int, dict[str, Tile]]] = {
    80: {
        32: _row((64, 64, 4, 3), (64, 64, 4, 2), (64, 64, 4, 2), (64, 64, 4, 3)),
        64: _row((128, 64, 8, 3), (64, 64, 8, 2), (64, 64, 8, 2), (64, 64, 4, 3)),
        128: _row((64, 64, 8, 3), (32, 64, 8, 2), (64, 64, 8, 2), (64, 64, 8, 2)),
        256: _row((64, 32, 8, 3), (32, 32, 8, 2), (64, 32, 8, 2), (64, 32, 8, 3)),
    },
    89: {
        32: _row((64, 64, 4, 3), (64, 64, 4, 2), (64, 64, 4, 2), (64, 64, 4, 3)),
        64: _row((128, 64, 8, 2), (64, 64, 8, 2), (64, 64, 8, 2), (64, 64, 4, 2)),
        128: _row((64, 32, 8, 2), (32, 64, 8, 2), (64, 32, 8, 2), (64, 32, 8, 2)),
        256: _row((64, 32, 8, 2), (32, 32, 8, 2), (32, 32, 4, 2), (64, 32, 8, 2)),
    },
    90: {
        32: _row((64, 64, 4, 3), (64, 64, 4, 2), (64, 64, 4, 2), (64, 64, 4, 3)),
        64: _row((128, 128, 8, 3), (64, 64, 8, 2), (128, 64, 8, 2), (64, 64, 4, 3)),
        128: _row((128, 64, 8, 3), (64, 64, 8, 2), (128, 64, 8, 2), (64, 64, 4, 2)),
        256: _row((128, 32, 8, 3), (32, 64, 8, 2), (128, 32, 8, 2), (64, 64, 8, 2)),
    },
}  # fmt: skip


def padded_head(D: int) -> int:
    """Head size of the tiles: the power of two at or above D, at least 16."""
    return max(16, 1 << (D - 1).bit_length())


def table_arch(capability: int) -> int:
    """Row of the table for a compute capability (90 for 9.0): its own, or the strictest of its generation."""
    if capability in _TABLE:
        return capability
    return 90 if capability in (100, 103) else 89


def tile_for(kind: str, capability: int, D: int, element_size: int) -> Tile:
    """Tile of one kernel, the pinned one where there is one.

    element_size: bytes; 4-byte inputs take tiles of half the sides (they are for exactness)."""
    size = max(32, padded_head(D))
    pin = pinned.tile(capability, size, kind)
    tile = _TABLE[table_arch(capability)][size][kind] if pin is None else Tile(*pin)
    if element_size == 4:
        small = 16 if padded_head(D) == 256 else 32
        return Tile(min(tile.m, 32), small, 4, 1)
    return tile
