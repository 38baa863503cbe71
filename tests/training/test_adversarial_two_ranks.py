"""Phase 3 on two ranks: both players the same everywhere, other episodes on each, resume bit for bit."""

import json
import shutil
from pathlib import Path

import pytest

from rl.training.train_adversarial_rl import main
from tests.helpers.ranks import run_ranks
from tests.training import adversarial_rank_cases
from tests.training.adversarial_runs import flags
from tests.training.run_here import run_here
from tests.training.teacher_runs import once, parameters_equal


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, teacher_with_heads: Path, student_run: Path) -> Path:
    def make(directory: Path) -> None:
        arguments = {"teacher": str(teacher_with_heads), "student": str(student_run), "place": str(directory)}
        run_ranks(adversarial_rank_cases.straight_and_resumed, 2, directory, 240, **arguments)

    return once(tmp_path_factory, "adversarial_two_ranks", make)


@pytest.fixture(scope="module")
def ranks(place: Path) -> list[dict]:
    return [json.loads((place / f"result_rank{r}.json").read_text()) for r in range(2)]


def _lines(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "episode_metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(("_per_s", "_s"))} for line in lines]


def test_both_ranks_hold_one_model_one_pool_one_copy_and_one_leash(ranks: list[dict]) -> None:
    assert [r["codes"] for r in ranks] == [[0, 0, 0]] * 2
    for mine, other in zip(ranks[0]["runs"], ranks[1]["runs"], strict=True):
        for name in ("hash", "leash", "versions", "best"):
            assert mine[name] == other[name], name


def test_every_rank_plays_and_is_examined_on_its_own_episodes(ranks: list[dict]) -> None:
    first, second = (r["runs"][0] for r in ranks)
    # rounds 0..9 of four episodes: one at the start, then random, past, explorer; rank 0 has the first two of each
    rounds = [0, 1, 4, 7, *(2, 5, 8), *(3, 6, 9)]  # random, past, explorer
    assert first["indices"] == [4 * r + e for r in rounds for e in (0, 1)]
    assert second["indices"] == [i + 2 for i in first["indices"]]
    assert first["frames"] != second["frames"]
    assert all(first["suites"][k] != second["suites"][k] for k in ("random", "past", "noisy"))


def test_a_resume_at_two_ranks_equals_the_straight_run(place: Path, ranks: list[dict]) -> None:
    assert parameters_equal(place / "straight" / "checkpoint-3", place / "resumed" / "checkpoint-3")
    assert _lines(place / "straight") == _lines(place / "resumed")
    assert [line["env_steps"] for line in _lines(place / "straight")] == [96, 168, 240]
    for r in ranks:
        assert r["runs"][0] == r["runs"][2]


def test_one_process_goes_on_where_two_stopped(place: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """Replay and suites were the ranks' own: they are filled anew."""
    run = tmp_path / "run"
    shutil.copytree(place / "straight", run)
    argv = flags(None, None, run, 4, *adversarial_rank_cases.SETTINGS, "--auto_resume")
    assert run_here(main, argv, "adversarial") == 0, capfd.readouterr().err
    line = _lines(run)[-1]
    assert line["iteration"] == 4 and line["env_steps"] == 240 + 4 * 2 * 6  # one random round, then three rounds
