"""Time of a call on a device, and how fast the device multiplies and copies: what floors are computed from."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

AHEAD = 10_000_000  # cycles (about 5 ms) that a GPU waits so that all of a call is queued before its clock starts


@dataclass(frozen=True)
class Rates:
    """Measured: operations a second of a large matrix product, bytes a second (read and written) of a large copy."""

    operations: float
    bytes: float


def clock(call: Callable[[], object], device: torch.device | str) -> float:
    """Seconds of one call; on CUDA of the device alone, from a cold L2 cache, launches queued ahead."""
    device = torch.device(device)
    if device.type == "cpu":
        start = time.perf_counter()
        call()
        return time.perf_counter() - start
    with torch.cuda.device(device):
        torch.empty(64 * 1024 * 1024, dtype=torch.float32, device=device).zero_()
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda._sleep(AHEAD)
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1000


def rates(device: torch.device | str, dtype: torch.dtype, repeats: int = 5) -> Rates:
    """Best of `repeats`, after one call that is not counted."""
    cpu = torch.device(device).type == "cpu"
    n, size = (512, 1 << 22) if cpu else (8192, 1 << 28)
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    source, target = (torch.zeros(size, dtype=torch.float32, device=device) for _ in range(2))
    product, copy = partial(torch.mm, a, b, out=torch.empty_like(a)), partial(target.copy_, source)
    best = [min([clock(call, device) for _ in range(repeats + 1)][1:]) for call in (product, copy)]
    return Rates(2.0 * n**3 / best[0], 2.0 * 4 * size / best[1])
