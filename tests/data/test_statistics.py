import numpy as np
import pytest

from rl.data.statistics import bootstrap_mean


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
