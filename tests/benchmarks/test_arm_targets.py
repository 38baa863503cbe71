import argparse
import json
import sys
from pathlib import Path

import pytest

from benchmarks import arm_targets


def numbers(algorithm: str, seed: int, success: float) -> dict:
    return {
        "algorithm": algorithm, "task": "ArmReach-v1", "seed": seed, "env_steps": 100, "episodes": 100,
        "success_rate": success, "mean_return": -20.0, "steps_per_second": 10.0, "wall_seconds": 5.0,
        "machine": "a machine",
    }  # fmt: skip


def test_the_table_has_targets_seeds_and_says_what_its_interval_is_over() -> None:
    runs = [numbers("PPO", 0, 0.9), numbers("PPO", 1, 0.7), numbers("A2C", 0, 0.5)]
    table = arm_targets.table(runs, arm_targets.TARGETS)
    # Resamples of two seeds reach from one of them twice to the other one twice; one seed: Wilson, 50 of 100.
    assert "| PPO | 0.90 | 0.800 [0.700, 0.900] | 2 seeds | 0.900 0.700 | 10 | 5 |" in table
    assert "| A2C | 0.65 | 0.500 [0.404, 0.596] | 100 episodes | 0.500 |" in table and "DIT" not in table


def test_a_run_that_left_its_numbers_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    def run(algorithm: str, seed: int, args: argparse.Namespace, place: Path) -> None:
        started.append((algorithm, seed))
        if len(started) == 2:
            raise SystemExit(75)  # stopped
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(numbers(algorithm, seed, 0.5)))

    monkeypatch.setattr(arm_targets, "run", run)
    argv = ["arm_targets", "--algorithms", "PPO", "--seeds", "2", "--results", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit):
        arm_targets.main()
    assert not (tmp_path / "arm_targets.md").exists()
    arm_targets.main()
    assert started == [("PPO", 0), ("PPO", 1), ("PPO", 1)]
    assert len(json.loads((tmp_path / "arm_targets.json").read_text())["runs"]) == 2
