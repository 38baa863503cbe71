"""Micro-batches of windows: what is drawn for one, and smaller ones when memory runs out (after Composer's automatic
micro-batches, with all ranks agreed).

Letters: B windows, T steps.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from rl.data.episode_buffer import WindowIndex
from rl.data.free_memory import is_out_of_memory
from rl.training.errors import OutOfMemoryError, out_of_memory_text
from rl.training.parallel_utils import ParallelContext

log = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass
class Drawn:
    """One micro-batch, as far as chance decides it."""

    where: WindowIndex
    head_visible: Tensor  # bool (B,)
    known: Tensor  # bool (B, T)
    singles: tuple[WindowIndex, Tensor] | None  # single steps of the latent head, and what is known of their actions

    def piece(self, index: int, count: int) -> tuple["Drawn", float, float]:
        """Piece `index` of `count` pieces; its shares of the windows and of the single steps."""
        rows = torch.arange(len(self.where.episode)).tensor_split(count)[index].tolist()
        singles, single_share = None, 0.0
        if self.singles is not None:
            chosen = torch.arange(len(self.singles[0].episode)).tensor_split(count)[index].tolist()
            if chosen:
                singles = (_rows(self.singles[0], chosen), self.singles[1][chosen])
                single_share = len(chosen) / len(self.singles[0].episode)
        part = Drawn(_rows(self.where, rows), self.head_visible[rows], self.known[rows], singles)
        return part, len(rows) / len(self.where.episode), single_share


def _rows(where: WindowIndex, rows: list[int]) -> WindowIndex:
    return WindowIndex([where.episode[r] for r in rows], [where.start[r] for r in rows], where.length, where.burn_in)


class Halving:
    """Into how many pieces micro-batches are cut: 1, and twice as many on all ranks whenever one runs out of memory.
    A start of a run begins with 1 again."""

    def __init__(self, ctx: ParallelContext) -> None:
        self.ctx, self.pieces = ctx, 1

    def run(self, windows: int, attempt: Callable[[int], T], forget: Callable[[], None]) -> T:
        """Collective. What `attempt(pieces)` returns once all ranks have room for it; it may hold no collective, and
        `forget` undoes it. windows: of one micro-batch. Raises OutOfMemoryError when single windows are too large."""
        while True:
            made, problem = None, ""
            try:
                made = attempt(self.pieces)
            except (RuntimeError, MemoryError) as e:
                if not is_out_of_memory(e):
                    raise
                problem = out_of_memory_text(e)  # not the error: its frames hold the memory
            problems = self.ctx.gather_objects(problem)
            if not any(problems):
                assert made is not None
                return made
            del made
            forget()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            ranks = [r for r, text in enumerate(problems) if text]
            if self.pieces >= windows:
                raise OutOfMemoryError(f"rank {ranks[0]}: {problems[ranks[0]]}")
            self.pieces = min(2 * self.pieces, windows)
            log.warning(
                "MEMORY RAN OUT on rank %s: micro-batches of %d windows are computed in %d pieces from now on; the "
                "batch is the same", ", ".join(map(str, ranks)), windows, self.pieces,
            )  # fmt: skip
