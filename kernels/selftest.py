"""What attention this machine can run, and whether it is right: `python -m kernels.selftest`.

Every backend on random block layouts with padding, ragged ends and dead rows, against float64, with gradients where the
backend has them. Exits 1 when a backend that can run is wrong. Off CUDA our Triton kernels run in Triton's
interpreter, in a process of their own: the arithmetic is checked, not the speed and not the GPU code.
"""

import argparse
import os
import subprocess
import sys
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import dispatch, eager, reference
from kernels.block_mask import BlockMask

# Relative error (Frobenius) of output and gradients.
LIMITS = {torch.float32: (1e-6, 2e-6), torch.float16: (1e-3, 1e-3), torch.bfloat16: (5e-3, 1e-2)}
HEAD_SIZES = (16, 32, 64, 80, 128, 256)


@dataclass(frozen=True)
class Problem:
    """q (B, Lq, H, D), k and v (B, Lk, G, D), dout like q, all float64."""

    q: Tensor
    k: Tensor
    v: Tensor
    dout: Tensor
    mask: BlockMask


def problem(D: int, decode: bool, device: str, seed: int = 0) -> Problem:
    """Two samples, different padding, H / G = 4; the first block of one sample is padded whole: dead rows."""
    g = torch.Generator().manual_seed(seed)
    lengths = [int(n) for n in torch.randint(1, 40, (5,), generator=g)] + [1, 17]
    L = sum(lengths)
    valid = torch.rand(2, L, generator=g) < 0.8
    valid[1, : lengths[0]] = False
    whole = BlockMask.from_lengths(lengths)
    # The padding hides keys only, so that rows of live queries without a key occur.
    mask = BlockMask(whole.q_block, whole.k_block, torch.rand(2, L, generator=g) < 0.9, valid)
    if decode:
        mask = BlockMask.suffix(whole.k_block, valid, (1, 9))
    Lq, Lk = mask.shape
    q, k, v, dout = (
        torch.randn(2, n, h, D, generator=g, dtype=torch.float64).to(device)
        for n, h in ((Lq, 8), (Lk, 2), (Lk, 2), (Lq, 8))
    )
    mask = BlockMask(*(t.to(device) for t in (mask.q_block, mask.k_block, mask.q_valid, mask.k_valid)))
    return Problem(q, k, v, dout, mask)


def results(run: dispatch.Backend, p: Problem, dtype: torch.dtype, gradients: bool) -> list[Tensor]:
    """Output, then gradients of q, k, v, from inputs rounded to `dtype`."""
    x = [t.to(dtype).requires_grad_(gradients) for t in (p.q, p.k, p.v)]
    out = run(x[0], x[1], x[2], p.mask, p.q.shape[3] ** -0.5)
    if gradients:
        out.backward(p.dout.to(dtype))
    return [out.detach(), *(t.grad for t in x if t.grad is not None)]


def errors(run: dispatch.Backend, p: Problem, dtype: torch.dtype, gradients: bool) -> list[float]:
    """Relative error of each result against float64 from the same rounded inputs; inf for a NaN."""
    q, k, v, dout = (t.to(dtype).double() for t in (p.q, p.k, p.v, p.dout))
    rounded = Problem(q, k, v, dout, p.mask)
    exact = results(reference.attention, rounded, torch.float64, gradients)
    found = results(run, p, dtype, gradients)
    rel = [float((f.double() - e).norm() / e.norm()) for f, e in zip(found, exact, strict=True)]
    return [r if r == r else float("inf") for r in rel]


def within(found: list[float], eager_error: list[float], dtype: torch.dtype) -> bool:
    """Under the limit, or within twice what the published formulation does in this dtype."""
    limits = [LIMITS[dtype][0]] + [LIMITS[dtype][1]] * 3
    allowed = [max(a, 2 * e) for a, e in zip(limits, eager_error + [0.0] * 3, strict=False)]
    return all(f <= a for f, a in zip(found, allowed, strict=False))


def check(backend: str, dtype: torch.dtype, D: int, use: str, device: str) -> tuple[str, bool]:
    """(line of the table, whether it is in order). use: training or decode. Not running is in order, and said."""
    training = use == "training"
    kind = dispatch.kind_of(device, dtype, D, training=training, queries=10)
    head = f"{backend:10}{use:10}{str(dtype)[6:]:10}{D:>4}  "
    if why := dispatch.refusal(backend, kind):
        return f"{head}not run: {why}", True
    p = problem(D, not training, device)
    run = dispatch.load(backend)
    start = time.perf_counter()
    try:
        found = errors(run, p, dtype, training)
    except Exception as e:  # noqa: BLE001 - reported, and the exit code says so: the other backends are checked, too
        return f"{head}{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else ''}  FAILED", False
    seconds = time.perf_counter() - start
    # The published formulation gives other rows where nothing is seen; compare it on live rows by giving it the mask.
    base = errors(lambda *x: eager.attention(*x) * p.mask.row_alive(dtype)[:, :, None, None], p, dtype, training)
    ok = within(found, base, dtype)
    numbers = "  ".join(f"{n} {e:.1e}" for n, e in zip(("out", "dq", "dk", "dv"), found, strict=False))
    return f"{head}{numbers:52}{seconds:7.2f} s  {'ok' if ok else 'WRONG'}", ok


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m kernels.selftest", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--backend", choices=dispatch.BACKENDS, help="only this one")
    parser.add_argument("--head_sizes", type=int, nargs="+", default=list(HEAD_SIZES))
    args = parser.parse_args(argv)
    torch.backends.cuda.matmul.allow_tf32 = False
    cuda = args.device.startswith("cuda")
    simulated = os.environ.get("TRITON_INTERPRET", "0") == "1"
    where = torch.cuda.get_device_name() if cuda else "Triton's interpreter" if simulated else "CPU"
    if args.backend is None:
        print(f"torch {torch.__version__}, {where}\nrelative error against float64; seconds with the first call")
    wrong = 0
    for backend in [args.backend] if args.backend else dispatch.BACKENDS:
        if backend == "triton" and not cuda and not simulated:
            print("triton, in Triton's interpreter:", flush=True)
            command = [sys.executable, "-m", "kernels.selftest", "--device", "cpu", "--backend", "triton"]
            sizes = ["--head_sizes", *map(str, args.head_sizes)]
            wrong += subprocess.run(command + sizes, env=os.environ | {"TRITON_INTERPRET": "1"}).returncode != 0
            continue
        last = ""
        for dtype in (torch.float32, torch.float16) if simulated else tuple(LIMITS):
            for use in ("training", "decode"):
                for D in args.head_sizes:
                    line, ok = check(backend, dtype, D, use, args.device)
                    wrong += not ok
                    why = line.partition("not run: ")[2]
                    if not why or why != last:  # one line says it
                        print(line, flush=True)
                    last = why
    if args.backend is None:
        print("all right" if not wrong else f"{wrong} WRONG")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
