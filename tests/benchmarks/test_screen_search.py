"""The search of benchmarks.screen_search, on rewards made by hand."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import screen_search
from benchmarks.screen_search import STEPS, TURNING, Search, Turned
from rl.training.collector import RandomActions


def test_a_search_finds_the_turn_that_pays_most() -> None:
    best = np.array([0.6, -0.4, 0.0])
    search = Search(3, elite=6, seed=0)
    for _ in range(8):
        turns = search.draw(24)
        assert np.abs(turns).max() <= 1
        search.learn(turns, -((turns - best) ** 2).sum(1))
    assert np.abs(search.mean - best).max() < 0.15 and search.std.min() >= screen_search.LEAST_WIDTH


def test_every_episode_turns_as_it_is_told_and_then_acts_at_random() -> None:
    mask = np.array([True, True, False])
    random = RandomActions(0, 0, mask, 1)
    act = Turned(random, 7, np.array([[0.1, 0.2], [0.3, -0.4]]))
    for episode, turn in ((7, [0.1, 0.2, 0.0]), (8, [0.3, -0.4, 0.0])):
        for step in range(STEPS):
            expected = np.array([turn]) if step < TURNING else None
            taken = act({}, episode, step)
            if expected is None:
                assert taken.shape == (1, 3) and taken[0, 2] == 0 and not np.allclose(taken, [turn])
            else:
                np.testing.assert_allclose(taken, expected, rtol=1e-6)


class FakeWorld:
    """The place of the screen is in view where the first joint is turned. Entropy pays for it where the screen is, and
    elsewhere for the second joint, as disagreement does everywhere. Random actions see a tenth."""

    mask = np.array([True, True])

    def play(self, screen: bool, first: int, turns: Any, episodes: int, seed: int) -> Any:
        if turns is None:
            return {k: np.zeros(episodes) for k in screen_search.REWARDS}, np.full(episodes, 0.1)
        view = np.clip(turns[:, 0], 0, 1)
        return {"entropy": view if screen else turns[:, 1], "disagreement": turns[:, 1], "share": -view}, view


def test_a_reward_is_distracted_by_what_it_looks_at_only_where_the_screen_is() -> None:
    args: Any = SimpleNamespace(generations=6, population=24, elite=6, episodes=5)
    world: Any = FakeWorld()
    rows = [screen_search.searched(world, args, seed) for seed in range(2)]
    for row in rows:
        assert np.mean(row["entropy"]["with the screen"]["view"]) > 0.6
        assert row["disagreement"]["with the screen"]["turn"] == row["disagreement"]["without"]["turn"]
        assert row["disagreement"]["without"]["turn"][1] > 0.6 and row["disagreement"]["without"]["paid"]["mean"] > 0.6
    found = screen_search.distraction(rows)
    # The same draws, scenes and rewards without the screen: nothing is left of what disagreement looks at.
    assert found["disagreement"]["mean"] == found["disagreement"]["high"] == 0
    entropy = [
        np.mean(r["entropy"]["with the screen"]["view"]) - np.mean(r["entropy"]["without"]["view"]) for r in rows
    ]
    assert found["entropy"]["mean"] == pytest.approx(np.mean(entropy)) and np.mean(entropy) > 0.4
    assert found["entropy minus disagreement"]["mean"] == pytest.approx(np.mean(entropy))
    lines = screen_search.table(rows, args).splitlines()
    assert sum(line.startswith("| all |") for line in lines) == 5 and sum("| without |" in line for line in lines) == 6
