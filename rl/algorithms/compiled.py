"""torch.compile of losses and their gradients, as the configuration says."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_map_only

from rl.config import CompileMode


def compiled(loss: Callable[..., Any], mode: CompileMode, device: torch.device, block: str) -> Callable[..., Any]:
    """`loss` with the same results; with CUDA graphs its gradients must be used before the next call.

    Raises ValueError for CUDA graphs anywhere but on a GPU; `block` of the configuration asked for them.
    """
    if mode is CompileMode.kernels:
        return torch.compile(loss)
    if device.type != "cuda":
        raise ValueError(f"{block}.compile_mode=cuda_graphs needs a GPU, this is a {device.type} run; use kernels")
    graph = torch.compile(loss, mode="reduce-overhead")

    def replayed(*arguments: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()
        # A replay writes where the one before wrote, so what is kept has to be copied.
        return tree_map_only(torch.Tensor, torch.clone, graph(*arguments))

    return replayed
