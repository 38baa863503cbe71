"""Every attention backend of this machine on the same inputs: `python -m kernels.benchmark --json FILE --plot FILE`.

Times are medians over interleaved rounds of one process; ratios compare medians of that run. On CUDA they are device
time: everything is queued before the clock starts, as in a CUDA graph. TFLOP/s count useful work only: visible pairs of
query and key, 4 D H a pair forward and 10 D H backward, whatever a kernel really computes. The floor is that work, or
reading and writing every tensor once, at the matrix and copy rates measured in the same run, whichever takes longer.
Baselines: `eager` is the published model's attention, `dense` is SDPA with a dense mask.
--pin FILE keeps the fastest backend of each kind of call, for `auto` to take from then on (kernels/pinned.py).
"""

import argparse
import json
import platform
import shlex
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kernels import dispatch, eager, pinned, sdpa
from kernels.block_mask import BlockMask
from kernels.clock import Rates, clock, rates

BASELINES = ("eager", "dense", "flex", "fa4")
# Published for an RTX 4070 Ti by the project this one replaces; what was timed there is not known.
OLD_TABLE = {128: (0.45, 2.5), 256: (0.85, 2.3), 512: (1.50, 2.1), 1024: (3.20, 1.9)}  # ms, speed-up over standard


@dataclass(frozen=True)
class Case:
    """One shape. grad: forward plus backward is timed too."""

    name: str
    mask: BlockMask
    batch: int
    heads: int
    kv_heads: int
    head_dim: int
    grad: bool


def cases(device: str, batches: list[int], quick: bool) -> list[Case]:
    """The model's training and decode shapes and small diffusion transformers."""
    train = BlockMask.next_scale(1495, (1, 2, 3, 4, 5, 6, 8, 10, 13, 16), (1, 50), device=device)  # 2,226 tokens
    prefix = BlockMask.from_lengths([2175], device=device)
    decode = BlockMask.suffix(prefix.k_block, prefix.k_valid, (1, 50))
    found = [Case(f"training 2226 B{b}", train, b, 8, 1, 256, True) for b in batches]
    found += [Case(f"decode 51 x 2226 B{b}", decode, b, 8, 1, 256, False) for b in (1, 8)]
    for D, H in ((64, 2), (32, 4)):
        for L in OLD_TABLE:
            if not quick or D == 32:
                found.append(
                    Case(f"transformer {L} D{D}", BlockMask.from_lengths([L], device=device), 1, H, H, D, True)
                )
    return found


def dense(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float) -> Tensor:
    """SDPA with the dense boolean mask, in the form that is fastest on the device."""
    return sdpa.call(q, k, v, mask.visible()[:, None], scale)


def contenders(case: Case, device: str, dtype: torch.dtype, training: bool) -> dict[str, dispatch.Backend]:
    """Baselines and every backend that can run the case."""
    kind = kind_of(case, device, dtype, training)
    runs: dict[str, dispatch.Backend] = {"eager": eager.attention, "dense": dense}
    for name in dispatch.BACKENDS:
        # Uncompiled FlexAttention on CPU is a check, not a contender.
        if dispatch.refusal(name, kind) is None and not (name == "flex" and device == "cpu"):
            runs[name] = dispatch.load(name)
    return runs


def floor(case: Case, backward: bool, dtype: torch.dtype, speed: Rates) -> tuple[float, float]:
    """(useful operations, seconds that they or the tensors take at least)."""
    Lq, Lk = case.mask.shape
    work = case.mask.visible_pairs(case.batch) * case.heads * case.head_dim * (14 if backward else 4)
    # Forward q, k, v and out; backward reads those and dout again and writes three gradients.
    queries, keys = Lq * case.heads, Lk * case.kv_heads
    numbers = (6 * queries + 6 * keys) if backward else (2 * queries + 2 * keys)
    moved = case.batch * numbers * case.head_dim * dtype.itemsize
    return work, max(work / speed.operations, moved / speed.bytes)


def inputs(case: Case, device: str, dtype: torch.dtype, seed: int) -> list[Tensor]:
    """q, k, v and a gradient of the output, standard normal."""
    g = torch.Generator().manual_seed(seed)
    Lq, Lk = case.mask.shape
    shapes = ((Lq, case.heads), (Lk, case.kv_heads), (Lk, case.kv_heads), (Lq, case.heads))
    return [torch.randn(case.batch, n, h, case.head_dim, generator=g).to(device, dtype) for n, h in shapes]


def first_calls(calls: dict[str, Callable[[], None]], device: str) -> tuple[dict[str, float], dict[str, str]]:
    """(seconds of the first call, which compiles and builds what masks keep; what failed, and how)."""
    seconds, failed = {}, {}
    for name, call in calls.items():
        try:
            seconds[name] = clock(call, device)
        except Exception as e:  # noqa: BLE001 - reported, and the exit code says so
            failed[name] = f"{type(e).__name__}: {str(e).strip().splitlines()[0] if str(e).strip() else ''}"
    return seconds, failed


def measure(
    case: Case, backward: bool, device: str, dtype: torch.dtype, rounds: int, seed: int, speed: Rates
) -> dict[str, Any]:
    """Milliseconds (median, fastest, slowest), useful TFLOP/s, share of the floor and ratios of every contender."""
    q, k, v, dout = inputs(case, device, dtype, seed)
    scale = case.head_dim**-0.5

    def call(run: dispatch.Backend) -> Callable[[], None]:
        def once() -> None:
            if not backward:
                with torch.no_grad():
                    run(q, k, v, case.mask, scale)
                return
            x = [t.detach().requires_grad_() for t in (q, k, v)]
            run(x[0], x[1], x[2], case.mask, scale).backward(dout)

        return once

    calls = {name: call(run) for name, run in contenders(case, device, dtype, backward).items()}
    first, failed = first_calls(calls, device)
    times: dict[str, list[float]] = {name: [] for name in first}
    for _ in range(rounds):
        for name in first:
            times[name].append(clock(calls[name], device))
    median = {name: statistics.median(t) for name, t in times.items()}
    kind = kind_of(case, device, dtype, backward)
    auto = dispatch.choose("auto", kind).backend
    flops, least = floor(case, backward, dtype, speed)
    best = min(median[b] for b in dispatch.BACKENDS if b in median)
    rows = {
        name: {
            "ms": 1e3 * median[name], "ms_min": 1e3 * min(t), "ms_max": 1e3 * max(t), "first_call_s": first[name],
            "useful_tflops": flops / median[name] / 1e12, "fraction_of_floor": least / median[name],
            "times_faster_than": {b: median[b] / median[name] for b in BASELINES if b in median},
        }
        for name, t in times.items()
    }  # fmt: skip
    with torch.set_grad_enabled(backward):
        x = [t.detach().requires_grad_(backward) for t in (q, k, v)]
        dense_kernel = sdpa.kernel_of(x[0], x[1], x[2], case.mask.visible()[:, None], scale)
    return {"case": case.name, "pass": "forward+backward" if backward else "forward", "kind": str(kind), "auto": auto,
            "auto_over_best": median[auto] / best if auto in median else None, "floor_ms": 1e3 * least,
            "sdpa_plan": sdpa.describe(case.mask), "dense_kernel": dense_kernel, "failed": failed,
            "rows": rows}  # fmt: skip


def kind_of(case: Case, device: str, dtype: torch.dtype, training: bool) -> dispatch.Kind:
    """The kind of call that a case is."""
    return dispatch.kind_of(
        device, dtype, case.head_dim, training=training, queries=case.mask.shape[0], layout=case.mask.layout
    )


def fastest(results: list[dict[str, Any]], machine: str) -> dict[str, pinned.Pin]:
    """For each kind of call the backend that is never far from the best: the smallest of the worst ratios over its
    shapes."""
    pins = {}
    for kind in dict.fromkeys(r["kind"] for r in results):
        shapes = [
            {n: x["ms"] for n, x in r["rows"].items() if n in dispatch.BACKENDS} for r in results if r["kind"] == kind
        ]
        everywhere = set.intersection(*(set(s) for s in shapes))
        worst = {n: max(s[n] / min(s.values()) for s in shapes) for n in sorted(everywhere)}
        name = min(worst, key=worst.__getitem__)
        pins[kind] = pinned.Pin(name, f"at most {worst[name]:.2f} x the best of {len(shapes)} shapes on {machine}")
    return pins


def show(r: dict[str, Any]) -> str:
    share = f", {r['auto_over_best']:.2f} x the best" if r["auto_over_best"] else ""
    lines = [
        f"{r['case']}, {r['pass']}: auto = {r['auto']}{share}; floor {r['floor_ms']:.3f} ms",
        f"  sdpa: {r['sdpa_plan']}; kernel of dense: {r['dense_kernel']}",
    ]
    for name, x in r["rows"].items():
        ratios = ", ".join(f"{v:.2f} x {b}" for b, v in x["times_faster_than"].items())
        lines.append(
            f"  {name:10}{x['ms']:10.3f} ms{x['useful_tflops']:9.3f} useful TFLOP/s"
            f"{x['fraction_of_floor']:6.2f} of the floor   speed: {ratios}"
        )
    return "\n".join([*lines, *(f"  {name:10}FAILED: {why}" for name, why in r["failed"].items())])


def old_table(results: list[dict[str, Any]]) -> str:
    """Speed-up of `auto` over standard (eager) attention beside the one once published, whose method is not known."""
    lines = ["length  then: ms, speed-up   here, forward: ms, speed-up over eager (auto)"]
    for length, (ms, ratio) in OLD_TABLE.items():
        for r in results:
            if r["case"] == f"transformer {length} D32" and r["pass"] == "forward":
                x = r["rows"].get(r["auto"])
                now = "failed" if x is None else f"{x['ms']:8.3f}  {x['times_faster_than']['eager']:.1f}"
                lines.append(f"{length:6}  {ms:8.2f}  {ratio:.1f}           {now}")
    return "\n".join(lines)


def markdown(report: dict[str, Any], command: str) -> str:
    """The results as a page of docs/results: how they were made, one table, the old table."""
    lines = [
        f"# Attention on {report['machine']}", "",
        f"{report['dtype']}, torch {report['torch']}, {report['threads']} CPU threads, medians of {report['rounds']} "
        f"interleaved rounds; TFLOP/s of useful work; floor from {report['matmul_tflops']:.3g} TFLOP/s of a matrix "
        f"product and {report['copy_tbs']:.3g} TB/s of a copy, measured in the same run; `auto` in bold. Made by", "",
        f"    {command}", "",
        "| case | pass | backend | ms | TFLOP/s | of the floor | x eager | x dense | x flex | x fa4 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for r in report["results"]:
        for name, x in r["rows"].items():
            ratios = [f"{x['times_faster_than'][b]:.2f}" if b in x["times_faster_than"] else "" for b in BASELINES]
            shown = f"**{name}**" if name == r["auto"] else name
            numbers = [f"{x['ms']:.3f}", f"{x['useful_tflops']:.3f}", f"{x['fraction_of_floor']:.2f}", *ratios]
            lines.append(f"| {r['case']} | {r['pass']} | {shown} | {' | '.join(numbers)} |")
        lines += [f"| {r['case']} | {r['pass']} | {n} | failed: {why} |||||||" for n, why in r["failed"].items()]
    return "\n".join([*lines, "", "```", old_table(report["results"]), "```", ""])


def plot(results: list[dict[str, Any]], file: Path) -> None:
    """Bars: speed over eager attention, a group a case."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(n for r in results for n in r["rows"]))
    figure, axes = plt.subplots(figsize=(10, 0.35 * len(results) * len(names) / 2 + 2), layout="constrained")
    height = 0.8 / len(names)
    for i, name in enumerate(names):
        at = [y + i * height for y, r in enumerate(results) if name in r["rows"]]
        speed = [r["rows"][name]["times_faster_than"]["eager"] for r in results if name in r["rows"]]
        axes.barh(at, speed, height, label=name)
    axes.set_yticks([y + 0.4 for y in range(len(results))], [f"{r['case']}, {r['pass']}" for r in results])
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("times faster than the published eager attention (same run)")
    axes.legend()
    figure.savefig(file, dpi=120)


def main(argv: list[str] | None = None) -> int:
    cuda = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m kernels.benchmark", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--device", default="cuda" if cuda else "cpu")
    parser.add_argument(
        "--dtype", choices=("bfloat16", "float16", "float32"), default="bfloat16" if cuda else "float32"
    )
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 2, 4, 8, 16] if cuda else [1])
    parser.add_argument("--rounds", type=int, default=50 if cuda else 5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="leave out head size 64 of the small transformers")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--markdown", type=Path, help="write the tables there, as docs/results has them")
    parser.add_argument("--pin", type=Path, help=f"add the fastest backends to this file ({pinned.SHIPPED.name})")
    args = parser.parse_args(argv)
    dtype = getattr(torch, args.dtype)
    speed, results = rates(args.device, dtype), []
    for case in cases(args.device, args.batches, args.quick):
        for backward in (False, True) if case.grad else (False,):
            rounds = args.rounds if case.mask.shape[1] > 2000 or args.device != "cpu" else 5 * args.rounds
            results.append(measure(case, backward, args.device, dtype, rounds, args.seed, speed))
            print(show(results[-1]), flush=True)
    print(old_table(results))
    machine = torch.cuda.get_device_name() if cuda and args.device != "cpu" else platform.machine()
    if args.pin:
        pinned.write(args.pin, choices=fastest(results, machine))
    report = {"device": args.device, "machine": machine, "threads": torch.get_num_threads(), "dtype": args.dtype,
              "torch": torch.__version__, "seed": args.seed, "rounds": args.rounds,
              "matmul_tflops": speed.operations / 1e12, "copy_tbs": speed.bytes / 1e12, "results": results}  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(report, indent=1) + "\n")
    if args.markdown:
        words = sys.argv[1:] if argv is None else argv
        args.markdown.write_text(markdown(report, f"python -m kernels.benchmark {shlex.join(words)}"))
    if args.plot:
        plot(results, args.plot)
    return 1 if any(r["failed"] for r in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
