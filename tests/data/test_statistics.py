import numpy as np
import pytest

from rl.data.statistics import bootstrap, bootstrap_mean, compare_paired, wilson_interval


def test_two_episodes_give_the_interval_of_their_values() -> None:
    # Resamples of {0, 1} have means 0, 0.5 and 1 with probabilities 1/4, 1/2 and 1/4: both tails hold more than 2.5 %.
    interval = bootstrap_mean([0.0, 1.0], samples=1000, seed=0)
    assert (interval.mean, interval.low, interval.high, interval.count) == (0.5, 0.0, 1.0, 2)
    assert str(interval) == "0.500 [0.000, 1.000]"


def test_one_episode_gives_an_interval_of_zero_width() -> None:
    interval = bootstrap_mean([3.25], samples=50, seed=0)
    assert interval.low == interval.mean == interval.high == 3.25


def test_many_episodes_give_the_interval_of_the_normal_distribution() -> None:
    x = np.random.default_rng(0).normal(2.0, 3.0, 900)
    interval = bootstrap_mean(x, samples=4000, seed=1)
    half = 1.96 * x.std() / 30
    assert interval.low == pytest.approx(x.mean() - half, abs=0.1 * half)
    assert interval.high == pytest.approx(x.mean() + half, abs=0.1 * half)


def test_a_lower_level_gives_a_narrower_interval() -> None:
    x = np.arange(20.0)
    narrow, wide = bootstrap_mean(x, 2000, 0, level=0.5), bootstrap_mean(x, 2000, 0)
    assert wide.low < narrow.low < narrow.mean < narrow.high < wide.high


def test_the_same_seed_gives_the_same_interval() -> None:
    x = np.random.default_rng(0).random(30)
    assert bootstrap_mean(x, 200, 5) == bootstrap_mean(x, 200, 5) != bootstrap_mean(x, 200, 6)


@pytest.mark.parametrize("values", [[], [1.0, float("nan")], [float("inf")]])
def test_no_values_and_values_that_are_not_finite_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="finite values of at least one episode"):
        bootstrap_mean(values, 10, 0)


@pytest.mark.parametrize(
    ("successes", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (900, 1000, 0.8799, 0.9171)],
)
def test_the_interval_of_a_success_rate_is_wilsons(successes: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(successes, count) == pytest.approx((low, high), abs=1e-4)


def test_no_episode_has_no_interval() -> None:
    with pytest.raises(ValueError, match="no interval"):
        wilson_interval(0, 0)
    with pytest.raises(ValueError, match="no interval"):
        wilson_interval(3, 2)


def test_a_statistic_is_resampled_by_the_same_draws_as_a_mean() -> None:
    x = np.random.default_rng(3).random(25)
    mean = bootstrap_mean(x, 3000, 0)
    other = bootstrap(lambda i: float(x[i].mean()), [25], 3000, 1)
    assert other.mean == mean.mean and other.count == 25
    assert (other.low, other.high) == (pytest.approx(mean.low, abs=0.01), pytest.approx(mean.high, abs=0.01))


def test_strata_are_resampled_apart() -> None:
    seen: list[np.ndarray] = []

    def note(index: np.ndarray) -> float:
        seen.append(index)
        return 0.0

    bootstrap(note, [3, 2], 40, 0)
    assert all(len(i) == 5 and (i[:3] < 3).all() and (i[3:] >= 3).all() and (i < 5).all() for i in seen)
    assert {int(v) for i in seen[:-1] for v in i} == set(range(5))
    assert seen[-1].tolist() == [0, 1, 2, 3, 4]  # the value itself is of all episodes, each once


def test_a_paired_comparison_sees_through_what_both_share() -> None:
    base = np.array([10.0, 20.0, 40.0, 80.0])
    c = compare_paired(2 * base, base, 500, 0)
    assert c.ratio is not None
    assert (c.ratio.low, c.ratio.mean, c.ratio.high) == (2.0, 2.0, 2.0)  # in every resample
    assert c.difference == bootstrap_mean(base, 500, 0)
    shifted = compare_paired(base + 3, base, 500, 0)
    assert (shifted.difference.low, shifted.difference.mean, shifted.difference.high) == (3.0, 3.0, 3.0)


def test_a_ratio_to_something_that_may_be_nothing_is_left_out() -> None:
    assert compare_paired([1.0, 2.0], [0.0, 0.0], 100, 0).ratio is None
    assert compare_paired([1.0, 2.0], [0.0, 1.0], 100, 0).ratio is None  # both resampled to the first
    with pytest.raises(ValueError, match="the same episodes, got 2 and 3"):
        compare_paired([1.0, 2.0], [1.0, 2.0, 3.0], 100, 0)
