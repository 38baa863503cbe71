"""What autograd keeps of a forward pass."""

from collections.abc import Callable

import torch
from torch import nn


def kept_bytes(module: nn.Module, forward: Callable[[], object]) -> int:
    """Bytes that autograd holds for the backward of `forward`, without parameters and buffers of `module`."""
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t  # held, so that no address is used twice
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        forward()
    return sum(t.untyped_storage().nbytes() for t in kept.values())
