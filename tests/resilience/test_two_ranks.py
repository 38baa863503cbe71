"""Row 6 and saves beside training on two ranks; one launch for all tests, because each costs seconds."""

from pathlib import Path
from typing import Any

import pytest
import torch

from rl.training.checkpoint import load_plain, open_checkpoint
from tests.helpers.ranks import run_ranks
from tests.resilience import rank_cases


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("ranks")
    (place / "saves").mkdir()
    return place


@pytest.fixture(scope="module")
def ranks(place: Path) -> list[dict[str, Any]]:
    return run_ranks(rank_cases.everything, 2, place, timeout_s=290, place=str(place))


def test_saves_are_committed_together_and_an_error_of_one_rank_is_everybodys(ranks: list[dict[str, Any]]) -> None:
    first, second = (r["asynchronous"] for r in ranks)
    assert first["waiting"] == second["waiting"] == []  # rank 1 was still writing
    assert first["committed"] == second["committed"] == ["checkpoint-1"]
    assert first["message"] == second["message"] and "rank 1: " in first["message"]
    assert first["after"] == second["after"] == ["checkpoint-1", "checkpoint-3"]
    assert (first["buffer"], second["buffer"]) == ([3, 3, 3, 3], [103, 103, 103, 103])


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_number_that_is_not_finite_on_one_rank_stops_all_before_anything_changes(
    ranks: list[dict[str, Any]], bad: str
) -> None:
    for rank in ranks:
        found = rank["gradients"][bad]
        assert found["message"].startswith("update 7: loss or gradient is not finite")
        assert found["untouched"] and found["state"] == 0


@pytest.mark.parametrize("algorithm", ["PPO", "FASTSAC"])
def test_a_run_with_bad_rewards_on_one_rank_ends_with_3_on_both_and_keeps_batch_and_checkpoint(
    ranks: list[dict[str, Any]], place: Path, algorithm: str
) -> None:
    first, second = (r["rewards"] for r in ranks)
    assert first["codes"][algorithm] == second["codes"][algorithm] == 3
    assert first["hashes"][algorithm] == second["hashes"][algorithm]
    run = place / algorithm
    assert all((run / f"not_finite_batch_rank{r}.pt").is_file() for r in (0, 1))
    saved = open_checkpoint(run)  # of before; the write that was in flight was kept
    assert all(t.isfinite().all() for t in saved.read("model.pt").values() if t.is_floating_point())
    if algorithm == "PPO":
        batch = load_plain(run / "not_finite_batch_rank1.pt")
        tensors = [t for t in batch.values() if isinstance(t, torch.Tensor) and t.is_floating_point()]
        assert any(not t.isfinite().all() for t in tensors)
