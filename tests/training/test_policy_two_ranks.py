"""Policies learned by two processes (gloo): equal parameters, counts over both."""

from pathlib import Path

import pytest

from tests.helpers.ranks import run_ranks
from tests.training import policy_runs
from tests.training.policy_rank_cases import run_both


@pytest.mark.slow
def test_two_ranks_hold_the_same_policy_and_count_the_steps_of_both(tmp_path: Path) -> None:
    first, second = run_ranks(run_both, 2, tmp_path, place=str(tmp_path / "runs"))
    assert first["codes"] == second["codes"] == [0, 0]
    assert first["hashes"] == second["hashes"] and len(set(first["hashes"])) == 2
    for algorithm in ("PPO", "FASTSAC"):
        run = tmp_path / "runs" / algorithm
        assert policy_runs.result(run)["env_steps"] == 256
        assert [line["step"] for line in policy_runs.lines(run)][-1] == 256
