"""Rollout storage and the minibatches made of it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from rl.config import Minibatches, TimeoutBootstrap
from rl.data.rollout import (
    RolloutStorage,
    even_sizes,
    fixed_sizes,
    minibatch_indices,
    stretches,
    tree_flat,
    tree_index,
)


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
    storage.free()
    assert storage.nbytes == 0 and storage.length == 0
    storage.add({"y": x}, b=x)  # of another kind now
    assert storage["b"].shape == (2, 1, 2) and "a" not in storage.rows


def test_rows_from_a_point_on_are_added_again_and_their_cuts_forgotten() -> None:
    storage = RolloutStorage(3, 2, torch.device("cpu"))
    for value in (0.0, 1.0, 2.0):
        storage.add(torch.full((2, 1), value), a=torch.full((2,), value))
        storage.cut(torch.tensor([1]), value=torch.tensor([10 + value]))
    storage.begin(1)
    assert storage.length == 1 and storage.cut_index[0].tolist() == [0]
    storage.add(torch.full((2, 1), 5.0), a=torch.full((2,), 5.0))
    assert storage["a"][:, 0].tolist() == [0, 5, 2] and storage.cut_states()["value"].tolist() == [10]  # type: ignore[union-attr]
    storage.begin()
    assert storage.length == 0 and storage.cut_states() == {} and storage.cut_index[0].tolist() == []


def test_states_behind_a_cut_come_back_in_one_piece_in_the_order_of_the_cuts() -> None:
    storage = RolloutStorage(2, 3, torch.device("cpu"))
    for t, environments in enumerate(([2, 0], [1])):
        storage.add(torch.zeros(3, 1), a=torch.zeros(3))
        ids = torch.tensor(environments)
        storage.cut(ids, observation={"x": 10 * t + ids[:, None], "y": ids}, value=ids.float())
    rows, environments = storage.cut_index
    assert rows.tolist() == [0, 0, 1] and environments.tolist() == [2, 0, 1]
    final = storage.cut_states()
    assert isinstance(final["observation"], dict) and isinstance(final["value"], torch.Tensor)
    assert final["observation"]["x"].tolist() == [[2], [0], [11]] and final["value"].tolist() == [2, 0, 1]


def test_columns_may_be_completed_after_the_last_row_and_do_not_outlive_the_rollout() -> None:
    storage = RolloutStorage(2, 1, torch.device("cpu"))
    for _ in range(2):
        storage.add(torch.zeros(1, 1), a=torch.zeros(1))
    storage.complete(valid=torch.tensor([[True], [False]]))
    assert storage.weights is not None and storage.weights.tolist() == [[1.0], [0.0]]
    storage.complete(valid=torch.ones(2, 1, dtype=torch.bool))
    assert storage.weights is None
    storage.begin()
    storage.add(torch.zeros(1, 1), a=torch.zeros(1))  # the names are still those of the rows
    with pytest.raises(AssertionError):
        storage.complete(valid=torch.ones(2, 1, dtype=torch.bool))


@settings(max_examples=30, deadline=None)
@given(
    n_steps=st.integers(1, 6), num_envs=st.integers(1, 3), seed=st.integers(0, 10**6),
    bootstrap=st.sampled_from(list(TimeoutBootstrap)),
)  # fmt: skip
def test_advantages_are_those_of_a_loop_over_one_environment(
    n_steps: int, num_envs: int, seed: int, bootstrap: TimeoutBootstrap
) -> None:
    g = Generator().manual_seed(seed)
    shape = n_steps, num_envs
    reward, value = (torch.randn(shape, generator=g) for _ in range(2))
    terminated, truncated, invalid = (torch.rand(shape, generator=g) < p for p in (0.2, 0.3, 0.2))
    last, cut_values = torch.randn(num_envs, generator=g), {}
    storage = RolloutStorage(n_steps, num_envs, torch.device("cpu"))
    for t in range(n_steps):
        storage.add(
            torch.zeros(num_envs, 1), reward=reward[t], terminated=terminated[t], truncated=truncated[t],
            valid=~invalid[t],
        )  # fmt: skip
        environments = (truncated[t] & ~terminated[t] & ~invalid[t]).nonzero()[:, 0]
        if len(environments):
            final = torch.randn(len(environments), generator=g)
            storage.cut(environments, value=final)
            cut_values |= {(t, e): v for e, v in zip(environments.tolist(), final.tolist(), strict=True)}
    final = storage.cut_states().get("value", torch.empty(0))
    assert isinstance(final, torch.Tensor)
    advantages, returns = storage.advantages(value, last, final, 0.9, 0.7, bootstrap)
    for e in range(num_envs):
        running = 0.0
        for t in reversed(range(n_steps)):
            after = float(last[e] if t == n_steps - 1 else value[t + 1, e])
            if (t, e) in cut_values:
                choices = {"final_obs": cut_values[t, e], "current_value": float(value[t, e]), "none": 0.0}
                after = choices[bootstrap.value]
            if terminated[t, e]:
                after = 0.0
            going_on = not (terminated[t, e] or truncated[t, e])
            running = float(reward[t, e] - value[t, e]) + 0.9 * after + 0.9 * 0.7 * going_on * running
            if invalid[t, e]:
                running = 0.0
            assert advantages[t, e].item() == pytest.approx(running, abs=1e-4)
            assert returns[t, e].item() == pytest.approx(
                0.0 if invalid[t, e] else running + float(value[t, e]), abs=1e-4
            )


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
    sizes = fixed_sizes(rows, size, drop)
    found = list(minibatch_indices(kind, rows, sizes, epochs, Generator().manual_seed(0)))
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
        first, second = minibatch_indices(kind, 40, [10] * 4, 2, Generator().manual_seed(0))
        assert (first is not second) == differs == (torch.cat(first).tolist() != torch.cat(second).tolist())
    contiguous = next(minibatch_indices(Minibatches.contiguous, 5, fixed_sizes(5, 2, False), 1, Generator()))
    assert [b.tolist() for b in contiguous] == [[0, 1], [2, 3], [4]]


def test_rows_that_give_no_minibatch_are_refused() -> None:
    with pytest.raises(ValueError, match="num_minibatches"):
        fixed_sizes(3, 0, True)
    with pytest.raises(ValueError, match="3 rows give no minibatch of 4"):
        fixed_sizes(3, 4, True)


@given(rows=st.integers(1, 50), count=st.integers(1, 50))
def test_even_minibatches_are_those_of_tensor_split(rows: int, count: int) -> None:
    assert even_sizes(rows, count) == [len(part) for part in torch.arange(rows).tensor_split(count)]


def test_stretches_are_the_episodes_of_fixed_length_in_a_flat_rollout() -> None:
    """Four rows of two environments, episodes of two rows: rows 0, 2 are the first of environment 0."""
    assert stretches(4, 2, 2).tolist() == [[0, 2], [1, 3], [4, 6], [5, 7]]
    assert stretches(2, 3, 2).tolist() == [[0, 3], [1, 4], [2, 5]]
