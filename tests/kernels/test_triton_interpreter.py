"""Our Triton kernels against float64 in Triton's interpreter, which must be asked for before Triton is imported."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.once import once

CASES = Path(__file__).with_name("triton_cases.py")
NAMES = re.findall(r"^def (check_\w+)", CASES.read_text(), re.M)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    """name -> PASSED or FAILED, and the whole text. One process for all: starting costs more than a check."""

    def run(place):
        root = CASES.parents[2]
        env = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(CASES)]
        done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True, timeout=280)
        (place / "output.txt").write_text(done.stdout + done.stderr)

    text = (once(tmp_path_factory, "triton_cases", run) / "output.txt").read_text()
    return dict(reversed(line.split()) for line in text.splitlines() if re.match("(PASSED|FAILED) check_", line)), text


@pytest.mark.parametrize("name", NAMES)
def test_triton_interpreter(outcome, name):
    verdicts, text = outcome
    assert verdicts.get(name) == "PASSED", text


def test_every_check_is_run(outcome):
    assert len(NAMES) >= 9 and set(outcome[0]) == set(NAMES)
