"""Rollout storage and the minibatches made of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from rl.config import Minibatches
from rl.data.rollout import RolloutStorage, minibatch_indices, tree_flat, tree_index


def test_rows_come_back_in_time_order_and_keep_their_kind() -> None:
    storage = RolloutStorage(3, 2, torch.device("cpu"))
    for t in range(3):
        observation = {"x": torch.full((2, 4), float(t)), "camera": torch.full((2, 5, 5), t, dtype=torch.uint8)}
        storage.add(observation, reward=torch.tensor([t, 10.0 + t]), ended=torch.tensor([t == 1, False]))
    assert storage.full and isinstance(storage.observation, dict)
    assert storage.observation["camera"].shape == (3, 2, 5, 5) and storage.observation["camera"].dtype is torch.uint8
    assert storage["reward"].tolist() == [[0, 10], [1, 11], [2, 12]] and storage["ended"][:, 0].tolist() == [0, 1, 0]
    assert storage.nbytes == 3 * 2 * (4 * 4 + 25 + 4 + 1)


def test_memory_is_taken_once_and_rows_are_copies() -> None:
    storage = RolloutStorage(2, 1, torch.device("cpu"))
    x = torch.zeros(1, 2)
    for value in (1.0, 2.0):
        storage.add(x.fill_(value), a=x)
    place = storage["a"].data_ptr()
    assert isinstance(storage.observation, torch.Tensor) and storage.observation[:, 0, 0].tolist() == [1, 2]
    storage.begin()
    assert not storage.full
    storage.add(x.fill_(7.0), a=x)
    assert storage["a"].data_ptr() == place and storage["a"][:, 0, 0].tolist() == [7, 2]


def test_trees_are_indexed_and_flattened_entry_by_entry() -> None:
    tree = {"a": torch.arange(6).reshape(3, 2), "b": torch.arange(12).reshape(3, 2, 2)}
    flat = tree_flat(tree)
    assert isinstance(flat, dict) and flat["a"].tolist() == [0, 1, 2, 3, 4, 5] and flat["b"].shape == (6, 2)
    picked = tree_index(tree, torch.tensor([1]), 1)
    assert isinstance(picked, dict) and picked["a"].tolist() == [[1], [3], [5]]


@settings(max_examples=40, deadline=None)
@given(
    kind=st.sampled_from(list(Minibatches)), rows=st.integers(1, 40), size=st.integers(1, 45), epochs=st.integers(1, 3),
    drop=st.booleans(),
)  # fmt: skip
def test_every_epoch_visits_every_row_once(kind: Minibatches, rows: int, size: int, epochs: int, drop: bool) -> None:
    if drop and size > rows:
        return
    found = list(minibatch_indices(kind, rows, size, epochs, Generator().manual_seed(0), drop))
    assert len(found) == epochs
    for epoch in found:
        seen = torch.cat(epoch).tolist()
        assert len(set(seen)) == len(seen) == (rows // size * size if drop else rows)
        assert all(len(b) == size for b in epoch[:-1]) and len(epoch[-1]) <= size


def test_only_shuffling_draws_again_every_epoch() -> None:
    for kind, differs in [
        (Minibatches.shuffled, True), (Minibatches.by_environment, True), (Minibatches.one_permutation, False),
        (Minibatches.contiguous, False),
    ]:  # fmt: skip
        first, second = minibatch_indices(kind, 40, 10, 2, Generator().manual_seed(0), False)
        assert (first is not second) == differs == (torch.cat(first).tolist() != torch.cat(second).tolist())
    contiguous = next(minibatch_indices(Minibatches.contiguous, 5, 2, 1, Generator(), False))
    assert [b.tolist() for b in contiguous] == [[0, 1], [2, 3], [4]]


def test_rows_that_give_no_minibatch_are_refused() -> None:
    with pytest.raises(ValueError, match="num_minibatches"):
        list(minibatch_indices(Minibatches.shuffled, 3, 0, 1, Generator(), True))
