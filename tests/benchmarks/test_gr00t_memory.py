"""Memory of GR00T, measured on a tiny one."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import gr00t_memory


def test_one_rollout_and_one_update_are_measured_against_the_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("the peak of a process can be read on Linux alone")
    monkeypatch.setattr(gr00t_memory, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["gr00t_memory", "--device", "cpu", "--num_envs", "2", "gr00t.size=tiny"])
    gr00t_memory.main()
    found = json.loads((tmp_path / "gr00t_memory_cpu.json").read_text())
    assert found["env_steps"] == 4  # two steps of two environments
    assert found["parameters"] == sum(part[1] for part in found["plan"]["parts"])
    # At least the rollout's four pictures are in memory together.
    assert found["measured_bytes"] > 4 * 3 * 256 * 256
