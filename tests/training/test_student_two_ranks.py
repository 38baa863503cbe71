"""The student on two ranks: one explorer, different episodes, one reward scale, resume bit for bit."""

import json
import statistics
from pathlib import Path

import pytest

from tests.helpers.ranks import run_ranks
from tests.training import student_rank_cases
from tests.training.teacher_runs import once, parameters_equal


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, teacher_with_heads: Path) -> Path:
    def make(directory: Path) -> None:
        arguments = {"teacher": str(teacher_with_heads), "place": str(directory)}
        run_ranks(student_rank_cases.straight_and_resumed, 2, directory, 200, **arguments)

    return once(tmp_path_factory, "student_two_ranks", make)


@pytest.fixture(scope="module")
def ranks(place: Path) -> list[dict]:
    return [json.loads((place / f"result_rank{r}.json").read_text()) for r in range(2)]


def _lines(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "episode_metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(("_per_s", "_s"))} for line in lines]


def test_both_ranks_hold_one_explorer_and_one_reward_scale(ranks: list[dict]) -> None:
    assert [r["codes"] for r in ranks] == [[0, 0, 0]] * 2
    for mine, other in zip(ranks[0]["runs"], ranks[1]["runs"], strict=True):
        assert (mine["hash"], mine["scale"]) == (other["hash"], other["scale"])
    # eight episodes of six decisions, over both ranks
    assert [r["runs"][0]["count"] for r in ranks] == [48, 48]
    assert ranks[0]["runs"][0]["hash"] != ranks[0]["runs"][1]["hash"]


def test_every_rank_plays_its_own_episodes(ranks: list[dict], place: Path) -> None:
    first, second = (r["runs"][0] for r in ranks)
    assert (first["indices"], second["indices"]) == ([4, 5], [6, 7])
    assert len({*first["frames"], *second["frames"]}) == 4
    assert first["rewards"] != second["rewards"]
    assert [line["episode"] for line in _lines(place / "straight")] == [4, 8]
    assert [line["env_steps"] for line in _lines(place / "straight")] == [24, 48]


def test_advantages_are_normalised_over_the_rows_of_both_ranks(ranks: list[dict]) -> None:
    for mine, other in zip(*(r["runs"][0]["advantages"] for r in ranks), strict=True):
        assert len(mine) == len(other) == 12  # two episodes of six decisions
        together = mine + other
        assert statistics.mean(together) == pytest.approx(0, abs=1e-6)
        assert statistics.stdev(together) == pytest.approx(1, abs=1e-5)
        # each rank by itself: neither, or every rank would pull towards its own mean
        assert abs(statistics.mean(mine)) > 1e-3
        assert abs(statistics.stdev(mine) - 1) > 1e-3


def test_a_resume_at_two_ranks_equals_the_straight_run(place: Path, ranks: list[dict]) -> None:
    for step in (4, 8):
        assert parameters_equal(place / "straight" / f"checkpoint-{step}", place / "resumed" / f"checkpoint-{step}")
    assert _lines(place / "straight") == _lines(place / "resumed")
    for r in ranks:
        assert r["runs"][0]["rewards"] == r["runs"][1]["rewards"] + r["runs"][2]["rewards"]
        assert r["runs"][0]["optimizer"] == r["runs"][2]["optimizer"]
