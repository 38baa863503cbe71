"""Running statistics on the device: exact, mergeable over ranks, saved with the model."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rl.models.running_norm import ObservationNormalizer, RewardNormalizer, RunningNorm


def test_before_any_data_nothing_changes() -> None:
    x = torch.randn(4, 3)
    torch.testing.assert_close(RunningNorm((3,), 1e-8)(x), x)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6), parts=st.lists(st.integers(1, 6), min_size=1, max_size=5), masked=st.booleans())
def test_statistics_are_those_of_all_rows_that_count(seed: int, parts: list[int], masked: bool) -> None:
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(sum(parts), 2, generator=g, dtype=torch.float64) * 5 + 30
    valid = torch.rand(len(x), generator=g) < 0.6 if masked else torch.ones(len(x), dtype=torch.bool)
    norm = RunningNorm((2,), 1e-8)
    for rows, mask in zip(x.split(parts), valid.split(parts), strict=True):
        norm.update(torch.where(mask[:, None], rows, torch.nan), mask) if masked else norm.update(rows)
    assert norm.count.item() == valid.sum()
    if valid.any():
        torch.testing.assert_close(norm.mean, x[valid].mean(0))
        torch.testing.assert_close(norm.var, x[valid].var(0, correction=0), rtol=1e-7, atol=1e-9)


def test_the_two_peers_scale_differently() -> None:
    x = torch.tensor([[0.0], [2.0]])  # mean 1, std 1
    for on_std, expected in [(False, 1 / np.sqrt(1.5)), (True, 1 / 1.5)]:
        norm = RunningNorm((1,), eps=0.5, eps_on_std=on_std)
        norm.update(x)
        assert norm(x)[1].item() == pytest.approx(expected)


def test_ranks_that_share_end_with_the_statistics_of_all_rows() -> None:
    torch.manual_seed(0)
    norms = [RunningNorm((2,), 1e-8) for _ in range(2)]
    everything: list[Tensor] = []
    for _ in range(3):  # what was shared before is not counted again
        vectors: list[Tensor] = []
        for rank, norm in enumerate(norms):
            x = torch.randn(5 + rank, 2, dtype=torch.float64) * (rank + 1) + 10
            everything.append(x)
            norm.update(x)

        def collect(v: Tensor, vectors: list[Tensor] = vectors) -> Tensor:
            vectors.append(v)
            return v

        copies = [RunningNorm((2,), 1e-8) for _ in norms]
        for copy, norm in zip(copies, norms, strict=True):
            copy.load_state_dict(norm.state_dict())
            copy._synced = norm._synced
            copy.share(collect)
        total = vectors[0] + vectors[1]
        for norm in norms:
            norm.share(lambda _, total=total: total)
        rows = torch.cat(everything)
        for norm in norms:
            assert norm.count.item() == len(rows)
            torch.testing.assert_close(norm.mean, rows.mean(0))
            torch.testing.assert_close(norm.var, rows.var(0, correction=0))
            torch.testing.assert_close(norm(rows.float()), norms[0](rows.float()))


def test_a_loaded_state_normalises_the_same() -> None:
    a, b = RunningNorm((3,), 1e-8, clip=10), RunningNorm((3,), 1e-8, clip=10)
    a.update(torch.randn(20, 3) * 3)
    b.load_state_dict(a.state_dict())
    x = torch.randn(5, 3)
    assert torch.equal(a(x), b(x))


def test_only_floating_entries_of_an_observation_are_normalised() -> None:
    space = gym.spaces.Dict(
        {"x": gym.spaces.Box(-1, 1, (2,), np.float32), "camera": gym.spaces.Box(0, 255, (3, 40, 40), np.uint8)}
    )
    norm = ObservationNormalizer(space, 1e-8, False, None)
    observation = {"x": torch.randn(9, 2) + 5, "camera": torch.full((9, 3, 40, 40), 7, dtype=torch.uint8)}
    norm.update(observation)
    found = norm(observation)
    assert isinstance(found, dict) and torch.equal(found["camera"], observation["camera"])
    assert found["x"].mean().abs() < 1e-5 and list(norm.state_dict()) == [
        f"norms.norm_x.{n}" for n in ("count", "mean", "m2")
    ]


def test_pictures_alone_pass_unchanged() -> None:
    x = torch.zeros(2, 3, 40, 40, dtype=torch.uint8)
    norm = ObservationNormalizer(gym.spaces.Box(0, 255, (3, 40, 40), np.uint8), 1e-8, False, None)
    norm.update(x)
    assert norm(x) is x


def test_rows_of_a_reset_leave_the_reward_statistics_alone() -> None:
    a, b = RewardNormalizer(2, 0.9, None), RewardNormalizer(1, 0.9, None)
    for step in range(4):
        valid = torch.tensor([True, step % 2 == 0])
        a(torch.tensor([1.0 + step, 5.0]), torch.tensor([False, False]), valid)
    for reward in (5.0, 5.0):
        b(torch.tensor([reward]), torch.tensor([False]))
    assert a.norm.count.item() == 6
    torch.testing.assert_close(a.running_E[1], b.running_E[0])
