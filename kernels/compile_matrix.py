"""Compiles our Triton kernels for GPUs that need not be here: `python -m kernels.compile_matrix [ARCH ...]`.

Prints registers, spilled bytes and shared memory of every kernel of the tile table; exits non-zero when one spills or
does not fit. A new tile earns its place in triton_tiles by passing here.
"""

import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels import triton_backward, triton_decode, triton_forward
from kernels.triton_tiles import SHARED_LIMIT, SPILL_LIMIT, Options, Tile, padded_head, tile_for

KERNELS = {
    "forward": triton_forward._forward_kernel,
    "dkdv": triton_backward._dkdv_kernel,
    "dq": triton_backward._dq_kernel,
    "decode": triton_decode._split_kernel,
}
INPUTS = ("q_ptr", "k_ptr", "v_ptr", "do_ptr")


@dataclass(frozen=True)
class Resources:
    """registers a thread, spilled bytes a thread, shared bytes a program, whether wgmma is used."""

    registers: int
    spilled: int
    shared: int
    wgmma: bool


def signature(kind: str, dtype: str) -> dict[str, str]:
    """Argument types as at a launch; constexpr arguments left to `constants`."""
    types: dict[str, str] = {}
    for p in KERNELS[kind].params:
        if p.is_constexpr:
            types[p.name] = "constexpr"
        elif p.name in INPUTS or p.name in ("out_ptr", "dq_ptr", "dk_ptr", "dv_ptr"):
            types[p.name] = f"*{dtype}"
        elif p.name in ("lse_ptr", "delta_ptr", "part_ptr"):
            types[p.name] = "*fp32"
        elif p.name in ("alive_ptr", "valid_ptr"):
            types[p.name] = "*u8"
        elif p.name.endswith("_ptr"):
            types[p.name] = "*i32"
        else:
            types[p.name] = "fp32" if p.name.startswith("scale") else "i32"
    return types


def constants(kind: str, tile: Tile, D: int, group: int, padded: bool, options: Options) -> dict[str, object]:
    values: dict[str, object] = {
        "P": group, "GROUP": group, "D": D, "DP": padded_head(D), "BM": tile.m, "BN": tile.n, "PADDED": padded,
        "POLY": options.poly_exp2, "THRESHOLD": options.rescale_threshold, "PRECISION": "ieee", "SPLITS": 2,
    }  # fmt: skip
    return {p.name: values[p.name] for p in KERNELS[kind].params if p.is_constexpr}


def compile_kernel(
    kind: str, arch: int, D: int, *, group: int = 8, padded: bool = True, dtype: str = "bf16",
    options: Options | None = None, tile: Tile | None = None,
) -> Resources:  # fmt: skip
    """Compiles one kernel of the table (or `tile`) for `arch` (80, 89, 90)."""
    tile = tile or tile_for(kind, arch, D, 2)
    fn = KERNELS[kind]
    types = signature(kind, dtype)
    fixed = constants(kind, tile, D, group, padded, options or Options())
    # Pointers, row and head strides are multiples of 16 at every real launch (D is), so the loads are wide.
    aligned = [i for i, p in enumerate(fn.params) if p.name.endswith("_ptr") or re.fullmatch("[qkv]_[blh]", p.name)]
    source = ASTSource(fn, types, constexprs=fixed, attrs={(i,): [["tt.divisibility", 16]] for i in aligned})
    compiled = triton.compile(
        source, target=GPUTarget("cuda", arch, 32), options={"num_warps": tile.warps, "num_stages": tile.stages}
    )
    registers, stack = _usage(compiled.asm["cubin"])
    return Resources(registers, stack, compiled.metadata.shared, "wgmma" in compiled.asm["ptx"])


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and stack bytes a thread, from cuobjdump of Triton's own CUDA tools."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as f:
        f.write(cubin)
        f.flush()
        text = subprocess.run([tool, "-res-usage", f.name], capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert found, f"cuobjdump printed no usage: {text!r}"
    return int(found[1]), int(found[2])


def main(archs: list[int], heads: tuple[int, ...] = (32, 64, 128, 256)) -> int:
    """One line a kernel; the number of kernels that spill or do not fit."""
    bad = 0
    print(f"{'arch':6}{'D':>5} {'kernel':9}{'tile':>22}{'registers':>11}{'spilled':>9}{'shared':>9}  wgmma")
    for arch in archs:
        for D in heads:
            for kind in KERNELS:
                r, t = compile_kernel(kind, arch, D), tile_for(kind, arch, D, 2)
                ok = r.spilled <= SPILL_LIMIT.get((arch, D, kind), 0) and r.shared <= SHARED_LIMIT[arch]
                bad += not ok
                tile = f"{t.m}x{t.n} w{t.warps} s{t.stages}"
                print(f"sm_{arch:<3}{D:>5} {kind:9}{tile:>22}{r.registers:>11}{r.spilled:>9}{r.shared:>9}  "
                      f"{'yes' if r.wgmma else 'no ':5}{'' if ok else 'DOES NOT FIT'}", flush=True)  # fmt: skip
    return bad


if __name__ == "__main__":
    sys.exit(1 if main([int(a) for a in sys.argv[1:]] or sorted(SHARED_LIMIT)) else 0)
