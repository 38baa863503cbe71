"""One attention call, several backends, no silent change between them."""

from collections.abc import Callable

import torch
from torch import Tensor

from kernels import reference, sdpa
from kernels.block_mask import BlockMask

Backend = Callable[[Tensor, Tensor, Tensor, BlockMask, float], Tensor]

BACKENDS = ("reference", "sdpa", "flex", "fa4", "triton")
_IMPLEMENTED: dict[str, Backend] = {"reference": reference.attention, "sdpa": sdpa.attention}


def available_backends() -> tuple[str, ...]:
    """Backends that can run in this installation."""
    return tuple(_IMPLEMENTED)


def choose_backend(name: str, device: torch.device | str) -> str:
    """Resolves `auto` for a device. Call once when a model is built and log the result.

    On CPU matmul-softmax beats SDPA for few heads (2.5x in bfloat16); elsewhere SDPA.
    ValueError for a name that is unknown or not available here.
    """
    if name == "auto":
        return "reference" if torch.device(device).type == "cpu" else "sdpa"
    if name not in _IMPLEMENTED:
        kind = "not available in this installation" if name in BACKENDS else "unknown"
        raise ValueError(f"attention backend '{name}' is {kind}; use auto, {', '.join(_IMPLEMENTED)}")
    return name


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, *, scale: float | None = None, backend: str = "auto"
) -> Tensor:
    """Softmax attention under a block-causal mask.

    q (B, Lq, H, D), k and v (B, Lk, Hkv, D) of one dtype, H a multiple of Hkv; query head h uses key/value head
    h // (H // Hkv). scale defaults to D ** -0.5. Returns (B, Lq, H, D); rows that are invalid or see no key are zero.
    ValueError when shapes do not fit or the backend is not available.
    """
    B, Lq, H, D = q.shape
    if k.shape != v.shape or k.shape[0] != B or k.shape[3] != D or H % k.shape[2]:
        raise ValueError(f"attention: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit together")
    if mask.shape != (Lq, k.shape[1]):
        raise ValueError(f"attention: mask is for (Lq, Lk) {mask.shape}, tensors have {(Lq, k.shape[1])}")
    run = _IMPLEMENTED[choose_backend(backend, q.device)]
    return run(q, k, v, mask, D**-0.5 if scale is None else scale)
