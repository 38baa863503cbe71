"""Row 8: memory that runs out on one rank. On one process: test_numbers.py, training/test_micro_batches.py."""

from pathlib import Path

import pytest

from tests.helpers.ranks import run_ranks
from tests.resilience import memory_cases
from tests.training.teacher_runs import make_tokenizer


def test_all_ranks_halve_when_one_runs_out_of_memory_and_the_batch_stays_the_same(tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "debug.safetensors")
    arguments = {"tokenizer": str(tmp_path / "debug.safetensors")}
    ranks = run_ranks(memory_cases.room_for_four_on_rank_1, 2, tmp_path, 280, 200, **arguments)
    text = "MEMORY RAN OUT on rank 1: micro-batches of 8 windows are computed in 2 pieces from now on; the batch is the"
    for found in ranks:
        assert found["pieces"] == 2 and len(found["said"]) == 1 and found["said"][0].startswith(text)
        assert found["losses"]["halve"] == pytest.approx(found["losses"]["stop"], rel=0, abs=1e-5)
        assert found["apart"] < 1e-4  # AdamW divides by the size of a gradient, also where that is nearly nothing
        windows = [size for size in found["sizes"] if size in (memory_cases.WINDOWS, memory_cases.ROOM)]
        assert windows[0] == memory_cases.WINDOWS and set(windows[1:]) == {memory_cases.ROOM}
