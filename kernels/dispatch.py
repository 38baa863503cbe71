"""One attention call, several backends, no silent change between them."""

import importlib
import importlib.util
import json
import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from kernels import pinned
from kernels.block_mask import BlockMask

logger = logging.getLogger(__name__)

Backend = Callable[[Tensor, Tensor, Tensor, BlockMask, float], Tensor]

# Name -> module with `attention`; imported when first used.
_MODULES = {
    "reference": "kernels.reference",
    "sdpa": "kernels.sdpa",
    "matmul": "kernels.matmul",
    "flex": "kernels.flex",
    "fa4": "kernels.fa4",
    "triton": "kernels.triton_attention",
}
BACKENDS = tuple(_MODULES)
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
OVERRIDE = "F1_ATTENTION_BACKEND"  # environment variable that replaces the configured backend
DECODE_QUERIES = 64  # without gradients, calls of up to this many queries count as decoding


@dataclass(frozen=True)
class Kind:
    """What decides: all calls of one kind take the same backend. capability: 90 for 9.0, None off CUDA."""

    device: torch.device
    capability: int | None
    dtype: torch.dtype
    head_dim: int
    training: bool
    decode: bool
    layout: str = "blocks"  # of the mask; "full": every query sees every key

    def __str__(self) -> str:
        where = f"sm_{self.capability}" if self.capability is not None else self.device.type
        use = "training" if self.training else "decode" if self.decode else "inference"
        return f"{use}, {where}, {str(self.dtype)[6:]}, head size {self.head_dim}, {self.layout}"


@dataclass(frozen=True)
class Choice:
    backend: str
    reason: str


def kind_of(
    device: torch.device | str, dtype: torch.dtype, head_dim: int, *, training: bool, queries: int | None = None,
    layout: str = "blocks",
) -> Kind:  # fmt: skip
    """queries: queries a call, None for many; layout: `BlockMask.layout`."""
    device = torch.device(device)
    capability = None
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        capability = major * 10 + minor
    decode = not training and queries is not None and queries <= DECODE_QUERIES
    return Kind(torch.device(device.type), capability, dtype, head_dim, training, decode, layout)


def refusal(backend: str, kind: Kind) -> str | None:
    """Why a backend cannot run calls of this kind here, or None."""
    if backend in ("reference", "sdpa", "matmul"):
        return None
    if backend == "triton":
        if importlib.util.find_spec("triton") is None:
            return "package triton is not installed"
        module = importlib.import_module(_MODULES[backend])
        return module.refusal(kind.device, kind.capability, kind.dtype, kind.head_dim)
    module = importlib.import_module(_MODULES[backend])
    if backend == "flex":
        return module.refusal(kind.device, kind.dtype, kind.training)
    return module.refusal(kind.device, kind.dtype, kind.head_dim, kind.training, kind.capability)


def _automatic(kind: Kind) -> Choice:
    """The fastest backend measured for this kind; docs/kernels.md has the numbers."""
    pin, missed = pinned.choice(str(kind)), ""
    if pin is not None:
        if (why := refusal(pin.backend, kind)) is None:
            return Choice(pin.backend, f"pinned: {pin.why}")
        missed = f"pinned {pin.backend} cannot run ({why}); "
    choice = _unpinned(kind)
    return Choice(choice.backend, missed + choice.reason)


def _unpinned(kind: Kind) -> Choice:
    if kind.device.type == "cpu":
        if kind.dtype in (torch.bfloat16, torch.float16):
            return Choice("matmul", "on CPU matmul-softmax by blocks is the fastest in half precision")
        if kind.decode:
            return Choice("matmul", "on CPU matmul-softmax by blocks is the fastest for few queries")
        return Choice("sdpa", "on CPU SDPA by blocks is the fastest in float32")
    measure = "nothing is pinned for this architecture: python -m kernels.benchmark --pin measures and pins the fastest"
    blocked = refusal("fa4", kind)
    return Choice("sdpa", f"{blocked}; {measure}" if blocked else measure)


def choose(asked: str, kind: Kind) -> Choice:
    """The backend for calls of one kind. ValueError when the one asked for cannot run, with the ones that can."""
    if kind.dtype not in DTYPES:
        raise ValueError(f"attention: dtype {kind.dtype} is not one of {', '.join(str(t)[6:] for t in DTYPES)}")
    if asked == "auto":
        return _automatic(kind)
    if asked not in BACKENDS:
        raise ValueError(f"attention backend='{asked}' is unknown; use auto, {', '.join(BACKENDS)}")
    if why := refusal(asked, kind):
        others = [b for b in BACKENDS if b != asked and refusal(b, kind) is None]
        raise ValueError(f"attention backend='{asked}' cannot run here ({kind}): {why}; use auto, {', '.join(others)}")
    return Choice(asked, "asked for")


def load(backend: str) -> Backend:
    """The function behind a name, called without checks: (q, k, v, mask, scale)."""
    return importlib.import_module(_MODULES[backend]).attention


@lru_cache(maxsize=256)
def _decide(asked: str, override: str | None, kind: Kind) -> str:
    choice = choose(override or asked, kind)
    _run[choice.backend] = load(choice.backend)
    source = f"{OVERRIDE}={override}" if override else f"backend={asked}"
    logger.info("attention (%s): %s, %s: %s", kind, choice.backend, source, choice.reason)
    _decisions[str(kind)] = choice
    return choice.backend


_decisions: dict[str, Choice] = {}
_run: dict[str, Backend] = {}  # filled when first chosen


def decisions() -> dict[str, Choice]:
    """What this process has decided so far, by kind of call."""
    return dict(_decisions)


def record_decisions(file: Path) -> None:
    """Writes `decisions()` as JSON: kind of call -> backend and reason. A run keeps it beside its configuration."""
    text = json.dumps({kind: vars(choice) for kind, choice in sorted(_decisions.items())}, indent=1)
    file.write_text(text + "\n", encoding="utf-8")


@torch.compiler.assume_constant_result
def _resolve(
    asked: str, device: str, dtype: torch.dtype, head_dim: int, training: bool, queries: int, layout: str
) -> str:
    kind = kind_of(device, dtype, head_dim, training=training, queries=queries, layout=layout)
    return _decide(asked, os.environ.get(OVERRIDE), kind)


def available_backends(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, training: bool = False
) -> tuple[str, ...]:
    """Backends that can run here (at head size 64), with gradients if `training`."""
    kind = kind_of(device, dtype, 64, training=training)
    return tuple(b for b in BACKENDS if refusal(b, kind) is None)


def choose_backend(
    name: str, device: torch.device | str, dtype: torch.dtype, head_dim: int, layout: str = "blocks"
) -> str:
    """Decides and logs, when a model is built, what its calls in `dtype` (the one attention will see) take; returns
    what to hand to `attention`: the name asked for (the environment's, where set), since `auto` may differ by use.

    Calls of another dtype or mask layout are decided when they come. ValueError for a name that is unknown or cannot
    run here; one that runs without gradients only is a warning, and refuses them when they are asked for.
    """
    override = os.environ.get(OVERRIDE)
    asked = override or name
    for training, queries in ((False, None), (False, 1), (True, None)):
        kind = kind_of(device, dtype, head_dim, training=training, queries=queries, layout=layout)
        if training and asked != "auto" and (why := refusal(asked, kind)):
            logger.warning("attention (%s): %s will refuse: %s", kind, asked, why)
        else:
            _decide(name, override, kind)
    return asked


def _check(q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, scale: float | None) -> None:
    def shape(t: Tensor) -> tuple[int, ...]:
        return tuple(t.shape)

    for name, t in (("q", q), ("k", k), ("v", v)):
        if t.ndim != 4:
            raise ValueError(f"attention: {name} must be (B, L, heads, D), got shape {shape(t)}")
        if t.dtype != q.dtype or t.device != q.device:
            raise ValueError(
                f"attention: {name} is {t.dtype} on {t.device}, q is {q.dtype} on {q.device}; they must agree"
            )
    B, Lq, H, D = q.shape
    if k.shape != v.shape or k.shape[0] != B or k.shape[3] != D:
        raise ValueError(
            f"attention: k {shape(k)} and v {shape(v)} do not fit q {shape(q)}; they must be (B, Lk, G, D)"
        )
    if H == 0 or D == 0:
        raise ValueError(f"attention: q {shape(q)} has no heads or no features; it must be (B, Lq, H, D)")
    if k.shape[2] == 0 or H % k.shape[2]:
        raise ValueError(f"attention: {H} heads of q are not a multiple of the {k.shape[2]} heads of k and v")
    if D > 256:
        raise ValueError(f"attention: head size D={D} of q is above 256; use more, smaller heads")
    if q.dtype not in DTYPES:
        raise ValueError(f"attention: q is {q.dtype}; use {', '.join(str(t)[6:] for t in DTYPES)}")
    if scale is not None and not math.isfinite(scale):
        raise ValueError(f"attention: scale is {scale}; give a finite number, or None for D ** -0.5")
    if not isinstance(mask, BlockMask):
        raise ValueError(f"attention: mask is {type(mask).__name__}; make a kernels.BlockMask")
    if mask.device != q.device:
        raise ValueError(f"attention: mask is on {mask.device}, q on {q.device}; make it there")
    if mask.shape != (Lq, k.shape[1]):
        raise ValueError(f"attention: mask is for (Lq, Lk) = {mask.shape}, q and k have {(Lq, k.shape[1])}")
    if mask.batch not in (1, B):
        raise ValueError(f"attention: mask has batch {mask.batch}, q has {B}; use {B}, or 1 to share one mask")


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, *, scale: float | None = None, backend: str = "auto"
) -> Tensor:
    """Softmax attention under a block-causal mask.

    q (B, Lq, H, D), k and v (B, Lk, Hkv, D) of one dtype, H a multiple of Hkv, D up to 256; query head h uses
    key/value head h // (H // Hkv). scale defaults to D ** -0.5. Returns (B, Lq, H, D); rows that are invalid or see no
    key are zero and pass no gradient on. What padded tokens hold must be finite.
    ValueError when shapes or dtypes do not fit, or the backend cannot run here.
    """
    _check(q, k, v, mask, scale)
    training = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    name = _resolve(backend, str(q.device), q.dtype, q.shape[3], training, q.shape[1], mask.layout)
    return _run[name](q, k, v, mask, q.shape[3] ** -0.5 if scale is None else scale)
