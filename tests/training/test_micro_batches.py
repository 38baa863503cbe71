"""Micro-batches in pieces. On two ranks: resilience/test_memory.py."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.data.episode_buffer import WindowIndex
from rl.training.errors import OutOfMemoryError
from rl.training.micro_batches import Drawn, Halving
from rl.training.parallel_utils import ParallelContext


def drawn(windows: int, singles: int) -> Drawn:
    where = WindowIndex(list(range(windows)), [10 * w for w in range(windows)], 3, 1)
    single = (WindowIndex(list(range(singles)), [0] * singles, 1, 0), torch.arange(singles)[:, None] % 2 == 0)
    return Drawn(where, torch.arange(windows) % 2 == 0, torch.arange(windows)[:, None] % 3 == 0, single)


@settings(deadline=None)
@given(st.integers(1, 9), st.integers(0, 9), st.data())
def test_pieces_together_are_the_whole(windows: int, singles: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, windows))
    whole = drawn(windows, singles)
    parts = [whole.piece(i, count) for i in range(count)]
    assert sum(share for _, share, _ in parts) == pytest.approx(1)
    assert sum(share for _, _, share in parts) == pytest.approx(1 if singles else 0)
    assert [e for part, _, _ in parts for e in part.where.episode] == whole.where.episode
    assert [s for part, _, _ in parts for s in part.where.start] == whole.where.start
    assert all((part.where.length, part.where.burn_in) == (3, 1) for part, _, _ in parts)
    assert torch.equal(torch.cat([part.head_visible for part, _, _ in parts]), whole.head_visible)
    assert torch.equal(torch.cat([part.known for part, _, _ in parts]), whole.known)
    chosen = [part.singles for part, _, _ in parts if part.singles is not None]
    assert [e for where, _ in chosen for e in where.episode] == list(range(singles))
    if singles:
        assert whole.singles is not None
        assert torch.equal(torch.cat([known for _, known in chosen]), whole.singles[1])


def test_pieces_double_until_there_is_room_and_stay(world: ParallelContext) -> None:
    halving, tried, forgotten = Halving(world), [], []

    def attempt(pieces: int) -> str:
        tried.append(pieces)
        if pieces < 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return "gradients"

    assert halving.run(8, attempt, lambda: forgotten.append(len(tried))) == "gradients"
    assert tried == [1, 2, 4] and forgotten == [1, 2] and halving.pieces == 4
    halving.run(8, attempt, lambda: forgotten.append(len(tried)))
    assert tried == [1, 2, 4, 4]


def test_single_windows_that_do_not_fit_end_the_run_with_what_to_lower(world: ParallelContext) -> None:
    tried = []

    def attempt(pieces: int) -> None:
        tried.append(pieces)
        raise MemoryError

    with pytest.raises(OutOfMemoryError, match=r"rank 0: out of memory: MemoryError\. Lower training\.num_envs"):
        Halving(world).run(6, attempt, lambda: None)
    assert tried == [1, 2, 4, 6]


def test_other_errors_are_not_taken_for_a_lack_of_memory(world: ParallelContext) -> None:
    def attempt(pieces: int) -> None:
        raise RuntimeError("shapes do not match")

    with pytest.raises(RuntimeError, match="shapes do not match"):
        Halving(world).run(6, attempt, lambda: None)
