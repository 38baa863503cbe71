"""train.sh as a user calls it: help, wrong input, positional numbers, any directory."""

import os
import subprocess
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent
MODULES = {
    "teacher": "train_teacher_rl",
    "student": "train_student_rl",
    "adversarial": "train_adversarial_rl",
    "evaluate": "evaluate_rl",
    "tokenizer": "train_tokenizer",
    "pipeline": "pipeline",
    "arm": "train_arm",
    "rl": "train_rl",
    "play": "play",
    "doctor": "doctor",
    "plan": "plan",
    "watch": "watch",
}
HERE = [p for p, module in MODULES.items() if (REPO / "rl" / "training" / f"{module}.py").is_file()]
MISSING = [p for p in MODULES if p not in HERE]


def train(*args: str, cwd: Path = REPO, **env: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(REPO / "train.sh"), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=cwd, env=os.environ | env)


def test_help_names_every_phase(tmp_path: Path) -> None:
    done = train("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert [p for p in MODULES if f"\n  {p} " not in done.stdout] == []


@pytest.mark.parametrize("phase", HERE)
def test_every_phase_has_help_from_any_directory(phase: str, tmp_path: Path) -> None:
    done = train(phase, "--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"train.sh {phase}" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("phase", MISSING)
def test_a_phase_of_a_later_version_says_so(phase: str) -> None:
    done = train(phase)
    assert (done.returncode, done.stdout) == (4, "")
    assert "not available in this version" in done.stderr


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        ((), "usage:"),
        (("teachr",), "unknown phase 'teachr'"),
        (("teacher", "0"), "NUM_PROCESSES is '0'"),
        (("teacher", "-1"), "NUM_PROCESSES is '-1'"),
        (("teacher", "two"), "NUM_PROCESSES is 'two'"),
        (("teacher", "1", "0"), "ENVS_PER_PROCESS is '0'"),
        (("teacher", "1", "1.5"), "ENVS_PER_PROCESS is '1.5'"),
        (("teacher", "1", "2", "--num_envs", "3"), "give only one"),
        (("teacher", "--accelerate_config", "nowhere.yaml"), "no file 'nowhere.yaml'"),
        (("doctor", "2"), "takes no numbers"),
        (("doctor", "--no_such_flag"), "unknown argument --no_such_flag"),
    ],
)
def test_wrong_input_is_refused_with_its_reason(args: tuple[str, ...], complaint: str) -> None:
    done = train(*args)
    assert done.returncode == 4, done.stderr
    assert complaint in done.stderr


def test_a_second_set_up_finds_everything_in_place() -> None:
    env = os.environ | {"F1_SETUP_SKIP_VULKAN": "1"}
    subprocess.run(["bash", str(REPO / "setup.sh")], check=True, env=env)
    start = time.monotonic()
    done = subprocess.run(["bash", str(REPO / "setup.sh")], capture_output=True, text=True, check=True, env=env)
    print(f"second set-up: {time.monotonic() - start:.2f} s")  # shown with pytest -s; a target, not a test
    assert done.stdout + done.stderr == ""
