"""Attention backends behind one call. Keep this file light: no heavy import, no version attribute."""

from kernels.block_mask import BlockMask
from kernels.dispatch import (
    BACKENDS,
    Choice,
    attention,
    available_backends,
    choose_backend,
    decisions,
    record_decisions,
)

__all__ = [
    "BACKENDS",
    "BlockMask",
    "Choice",
    "attention",
    "available_backends",
    "choose_backend",
    "decisions",
    "record_decisions",
]
