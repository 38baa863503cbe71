"""Resume is bit-exact: runs killed at random moments end as the uninterrupted ones. New phases join in cases.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.launch.test_launch import REPO
from tests.resilience.cases import CASES
from tests.resilience.harness import difference


def soak(place: Path, *flags: str, timeout_s: float | None = 560) -> dict:
    """In a process of its own, because it forks."""
    command = [sys.executable, "-m", "tests.resilience.soak", "--json", str(place / "soak.json"), *flags]
    command += ["--work", str(place / "work")]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=timeout_s)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((place / "soak.json").read_text())


@pytest.mark.timeout(600)
def test_ten_kills_at_random_moments_change_nothing(tmp_path: Path) -> None:
    """Two algorithms on one and two processes and the first phase; --slow has all of them."""
    found = soak(tmp_path, "--kills", "10", "--chain", "2", "--cases", "ppo,fastsac,teacher")
    assert found["kills"] == 10 and found["chains_as_they_should_be"] == found["chains"] >= 5


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("ranks", ["1", "2"])
@pytest.mark.parametrize("case", CASES)
def test_five_kills_in_a_chain_leave_no_trace_in_any_phase(case: str, ranks: str, tmp_path: Path) -> None:
    found = soak(tmp_path, "--kills", "5", "--cases", case, "--ranks", ranks, timeout_s=None)
    assert found["kills"] == 5 and found["chains_as_they_should_be"] == found["chains"]


def test_the_comparison_sees_one_bit_and_overlooks_only_durations() -> None:
    def state(value: float, seconds: float, lines: int = 1) -> dict:
        metrics = [{"arm/loss": value, "arm/env_steps_per_s": seconds}] * lines
        return {"model.pt": {"w": torch.tensor([1.0, value])}, "metrics": metrics, "training": {"seconds": seconds}}

    assert difference(state(2.0, 1.0), state(2.0, 9.0)) is None
    assert difference(state(2.0, 1.0), state(2.0 + 2**-22, 1.0)) == ".model.pt.w"
    assert difference(state(2.0, 1.0), state(2.0, 1.0, lines=2)) == ".metrics: 1 and 2 entries"
    assert difference({"a": torch.tensor([0.0])}, {"a": torch.tensor([-0.0])}) == ".a"
    assert difference({"a": 1}, {"a": 1, "b": 2}) == ": keys ['b']"
    assert difference({"a": 1}, {"a": 1.0}) == ".a: int and float"
