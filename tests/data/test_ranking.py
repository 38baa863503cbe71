import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.data.ranking import auroc, worst_mean


def test_area_by_hand() -> None:
    # Pairs (positive, negative): 3>1, 3>2, 2>1 are won, 2=2 is half: 3.5 of 4.
    assert auroc([3, 2, 1, 2], [True, True, False, False]) == pytest.approx(3.5 / 4)
    assert auroc([1, 2, 3, 4], [0, 0, 1, 1]) == 1.0
    assert auroc([4, 3, 2, 1], [0, 0, 1, 1]) == 0.0
    assert auroc([5, 5, 5], [1, 0, 0]) == 0.5


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=2, max_size=40))
def test_area_is_the_share_of_pairs_in_order(samples: list[tuple[int, bool]]) -> None:
    positive = [s for s, p in samples if p]
    negative = [s for s, p in samples if not p]
    scores, labels = [s for s, _ in samples], [p for _, p in samples]
    if not positive or not negative:
        with pytest.raises(ValueError, match="both groups are needed"):
            auroc(scores, labels)
        return
    won = sum((a > b) + 0.5 * (a == b) for a in positive for b in negative)
    assert auroc(scores, labels) == pytest.approx(won / len(positive) / len(negative), abs=1e-12)


def test_scores_without_a_rank_and_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        auroc([1.0, float("nan")], [True, False])
    with pytest.raises(ValueError, match="3 scores and 2 labels"):
        auroc([1, 2, 3], [True, False])


def test_the_worst_share_is_the_mean_of_the_largest_values() -> None:
    values = np.arange(20.0).reshape(4, 5)
    assert worst_mean(values, 0.1) == 18.5  # of 18 and 19
    assert worst_mean(values, 1.0) == 9.5
    assert worst_mean(values, 0.001) == 19.0  # at least one
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="share"):
            worst_mean(values, share)
    with pytest.raises(ValueError, match="of 0 values"):
        worst_mean([], 0.5)
