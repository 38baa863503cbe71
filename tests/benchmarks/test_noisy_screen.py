"""What the noisy screen pays, on numbers made by hand."""

import numpy as np
import pytest

from benchmarks import noisy_screen


def test_the_best_rewarded_quarter_of_the_episodes_is_compared_with_all_of_them() -> None:
    view = np.array([0.1, 0.9, 0.2, 0.4, 0.0, 0.8, 0.3, 0.1])  # 0.35 on average
    found = noisy_screen.chosen(np.array([0.0, 5.0, 1.0, 2.0, 0.5, 4.0, 1.5, 0.2]), view)
    assert found.mean == pytest.approx(0.5)  # the second and the sixth: 0.85
    assert found.low <= found.mean <= found.high and found.count == 8


def test_a_reward_that_does_not_know_the_screen_chooses_as_many_looks_at_it_as_there_are() -> None:
    rng = np.random.default_rng(0)
    found = noisy_screen.chosen(rng.normal(size=400), rng.uniform(size=400))
    assert found.low < 0 < found.high
