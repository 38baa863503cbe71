"""Normalisers: hand-computed numbers, merging, padding, refusals."""

import pytest
import torch

from rl.normalizers import Normalizer

MASK = torch.tensor([True, True, False])


def _filled() -> Normalizer:
    n = Normalizer(MASK)
    n.update(torch.tensor([[1.0, 10.0, 0.0], [3.0, 10.0, 0.0]]))
    return n


def test_two_rows_give_the_mean_and_deviation_computed_by_hand() -> None:
    n = _filled()
    assert n.mean.tolist() == [2.0, 10.0, 0.0]
    assert n.std.tolist() == [1.0, 1e-3, 1e-3]  # a constant dim is held by the floor
    assert n.normalize(torch.tensor([4.0, 10.0, 7.0])).tolist() == [2.0, 0.0, 0.0]


def test_denormalize_inverts_normalize_and_padding_stays_zero() -> None:
    n = _filled()
    x = torch.tensor([[1.5, 9.0, 0.0], [-4.0, 11.0, 0.0]])
    torch.testing.assert_close(n.denormalize(n.normalize(x)), x)
    assert n.denormalize(torch.ones(3))[2] == 0


def test_batches_and_ranks_merge_to_the_statistics_of_everything() -> None:
    data = torch.randn(97, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5 + 100
    ranks = [Normalizer(MASK), Normalizer(MASK), Normalizer(MASK)]
    for i, row in enumerate(data.split(10)):
        ranks[i % 2].update(row)  # the third rank saw nothing
    merged = Normalizer(MASK)
    for r in ranks:
        merged.merge(r)
    assert merged.count == 97
    torch.testing.assert_close(merged.mean, data.mean(0))
    torch.testing.assert_close(merged.std, data.std(0, unbiased=False))


def test_use_before_statistics_is_refused() -> None:
    with pytest.raises(ValueError, match="no statistics"):
        Normalizer(MASK).normalize(torch.zeros(3))


def test_state_dict_round_trip_gives_the_same_numbers() -> None:
    n, fresh = _filled(), Normalizer(MASK)
    fresh.load_state_dict(n.state_dict())
    x = torch.tensor([0.3, 0.4, 0.0])
    assert torch.equal(fresh.normalize(x), n.normalize(x))
    assert all(isinstance(v, torch.Tensor) for v in n.state_dict().values())


@pytest.mark.parametrize("bad", [torch.zeros(2), torch.zeros(3, dtype=torch.int64), torch.tensor(1.0)])
def test_wrong_shapes_and_types_are_refused(bad: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="3 dims"):
        _filled().normalize(bad)


def test_bad_input_leaves_the_statistics_untouched() -> None:
    n = _filled()
    with pytest.raises(ValueError, match="finite"):
        n.update(torch.tensor([[float("nan"), 0.0, 0.0]]))
    assert n.count == 2
    with pytest.raises(ValueError, match="keys"):
        n.load_state_dict({"mean": torch.zeros(3)})
    with pytest.raises(ValueError, match="mask"):
        n.load_state_dict(Normalizer(torch.tensor([True, True, True])).state_dict())
    with pytest.raises(ValueError, match="merged"):
        n.merge(Normalizer(torch.tensor([True])))
