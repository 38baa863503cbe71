"""The fp16 of Accelerate (autocast and a scaled loss), which it has for GPUs only, in a group of one on the CPU."""

from typing import Any

import torch

from rl.config import TrainingConfig
from rl.training.parallel_utils import ParallelContext


def half_group(cfg: TrainingConfig, **scaler: Any) -> ParallelContext:
    """`cfg` asks for bf16, whose path is otherwise the same; `scaler` are arguments of torch's GradScaler."""
    assert cfg.mixed_precision == "bf16"
    ctx = ParallelContext.create(cfg)
    ctx.accelerator.state._mixed_precision = "fp16"
    ctx.accelerator.scaler = torch.amp.GradScaler("cpu", **scaler)
    return ctx
