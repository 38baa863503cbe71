"""Times tiles of our Triton kernels on this GPU: `python -m kernels.autotune --pin kernels/pinned.json`.

Prints the fastest tile of each kernel and head size beside that of the table (triton_tiles), which stays in use until a
tile is pinned: nothing is tuned while a run is going, so runs repeat. Tiles that do not fit the GPU are left out.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from dataclasses import astuple, replace
from itertools import product
from pathlib import Path

import torch
import triton
from triton.runtime.errors import OutOfResources, PTXASError

from kernels import benchmark, mask_tables, pinned, triton_backward, triton_decode
from kernels.benchmark import Case
from kernels.block_mask import BlockMask
from kernels.clock import clock
from kernels.triton_attention import device_capability, processors
from kernels.triton_forward import forward
from kernels.triton_tiles import KINDS, Options, Tile, padded_head, tile_for

WORTH = 0.97  # another tile is pinned when it takes at most this share of the table's time


def candidates(kind: str) -> Iterator[Tile]:
    """Tiles to try; the kernel that owns keys needs at least 32 of them for its products."""
    keys = (32, 64, 128) if kind == "dkdv" else (16, 32, 64, 128)
    return (Tile(*t) for t in product((32, 64, 128), keys, (4, 8), (1, 2, 3)))


def cases(device: str) -> list[tuple[Case, tuple[str, ...]]]:
    """One shape a head size and the kernels it is to time: the model's, its vision tower's, small transformers'."""
    named = {c.name: c for c in benchmark.cases(device, [4], quick=False)}
    tower = Case("tower", BlockMask.from_lengths([256], device=device), 16, 16, 16, 72, True)
    square = KINDS[:3]
    return [
        (named["training 2226 B4"], square), (named["decode 51 x 2226 B1"], KINDS[3:]), (tower, square),
        *((replace(named[f"transformer 1024 D{D}"], batch=8), square) for D in (32, 64)),
    ]  # fmt: skip


def runner(case: Case, kind: str, table: dict[str, Tile], device: str, dtype: torch.dtype) -> Callable[[Tile], None]:
    """Runs one kernel with a tile; for dkdv and dq the whole backward pass, the other kernel's tile as in the table."""
    q, k, v, dout = benchmark.inputs(case, device, dtype, seed=0)
    mask, scale, options = case.mask, case.head_dim**-0.5, Options()
    group = case.heads // case.kv_heads
    tile = table["forward"]
    out, lse = forward(q, k, v, mask_tables.key_tables(mask, tile.n), scale, tile, options)

    def run(tile: Tile) -> None:
        if kind == "forward":
            forward(q, k, v, mask_tables.key_tables(mask, tile.n), scale, tile, options)
            return
        if kind == "decode":
            programs = (triton.cdiv(q.shape[1] * group, tile.m), case.batch * case.kv_heads)
            splits = triton_decode.key_splits(*programs, triton.cdiv(k.shape[1], tile.n), processors(q.device))
            triton_decode.decode(q, k, v, mask_tables.key_tables(mask, tile.n), scale, tile, splits, options)
            return
        dkdv, dq = (tile, table["dq"]) if kind == "dkdv" else (table["dkdv"], tile)
        keys, rows = mask_tables.key_tables(mask, dq.n), mask_tables.row_tables(mask, dkdv.n)
        key_tiles = triton.cdiv(k.shape[1], dkdv.n)
        splits = triton_backward.row_splits(key_tiles, case.batch * case.kv_heads, processors(q.device))
        triton_backward.backward(q, k, v, out, lse, dout, keys, rows, scale, dkdv, dq, splits, options)

    return run


def time_tiles(run: Callable[[Tile], None], tiles: list[Tile], device: str, rounds: int) -> dict[Tile, float]:
    """Median seconds of each tile that fits the device."""
    found = {}
    for tile in tiles:
        try:
            run(tile)
        except (OutOfResources, PTXASError):
            continue
        found[tile] = statistics.median(clock(lambda t=tile: run(t), device) for _ in range(rounds))  # type: ignore[misc]
    return found


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m kernels.autotune", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("bfloat16", "float16"), default="bfloat16")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--pin", type=Path, help="add tiles that are clearly faster than the table's to this file")
    args = parser.parse_args(argv)
    if not torch.cuda.is_available():
        raise SystemExit("python -m kernels.autotune needs a CUDA device: it times tiles")
    dtype, capability = getattr(torch, args.dtype), device_capability(torch.device(args.device))
    tiles: dict[str, dict[str, dict[str, list[int]]]] = {}
    for case, kinds in cases(args.device):
        size = max(32, padded_head(case.head_dim))
        table = {kind: tile_for(kind, capability, case.head_dim, dtype.itemsize) for kind in KINDS}
        for kind in kinds:
            run = runner(case, kind, table, args.device, dtype)
            times = time_tiles(run, list(dict.fromkeys([table[kind], *candidates(kind)])), args.device, args.rounds)
            best, own = min(times, key=times.__getitem__), times[table[kind]]
            print(f"{case.name}, {kind}: table {astuple(table[kind])} {1e3 * own:.3f} ms, "
                  f"best of {len(times)} {astuple(best)} {1e3 * times[best]:.3f} ms", flush=True)  # fmt: skip
            if times[best] < WORTH * own:
                tiles.setdefault(f"sm_{capability}", {}).setdefault(str(size), {})[kind] = list(astuple(best))
    if args.pin:
        pinned.write(args.pin, tiles=tiles)


if __name__ == "__main__":
    main()
