"""What `tests/run.sh` hands to pytest for a part with an environment of its own."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.launch.parts import REPO, set_up

PARTS = ("isaaclab", "gr00t")
# Prints what the tests of a part may depend on, then the arguments.
PYTHON = (
    '#!/bin/bash\necho "$OMP_NUM_THREADS $MKL_NUM_THREADS $HF_HUB_OFFLINE ${GR00T_BACKEND:-}"\nprintf "%s\\n" "$@"\n'
)


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A checkout with two files of tests and the environments of both parts, whose interpreter runs nothing."""
    (tmp_path / "tests" / "models").mkdir(parents=True)
    shutil.copy(REPO / "tests" / "run.sh", tmp_path / "tests")
    for name in ("tests/models/test_a.py", "learns"):
        (tmp_path / name).touch()
    for part in PARTS:
        place = tmp_path / f".venv-{part}" / "bin"
        place.mkdir(parents=True)
        set_up(tmp_path, part)
        (place / "python").write_text(PYTHON)
        (place / "python").chmod(0o755)
    return tmp_path


def run(repo: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(repo / "tests" / "run.sh"), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=repo.parent)


def given(repo: Path, *args: str) -> list[str]:
    """Arguments of pytest."""
    done = run(repo, *args)
    assert (done.returncode, done.stderr) == (0, "")
    settings, *words = done.stdout.splitlines()
    assert settings == ("1 1 1 n1.7" if args[0] == "gr00t" else "1 1 1 ")
    assert words[:2] == ["-m", "pytest"]
    return words[2:]


@pytest.mark.parametrize("part", PARTS)
def test_without_arguments_a_part_runs_its_files_which_are_there(part: str, repo: Path) -> None:
    files = given(repo, part)
    assert len(files) >= 5
    assert [f for f in files if not (REPO / f).exists()] == []


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("flags", [("--slow",), ("--slow", "-k", "learns"), ("-m", "tests", "-x"), ("--durations=3",)])
def test_flags_are_added_to_the_files_of_a_part(part: str, flags: tuple[str, ...], repo: Path) -> None:
    """`learns` and `tests` are files here, but stand for what the flag before them says."""
    assert given(repo, part, *flags) == [*flags, *given(repo, part)]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(
    "args",
    [
        ("tests/models",),
        ("tests/models/test_a.py", "--slow"),
        ("-k", "one or two", "tests/models/test_a.py::test_one"),
        ("tests/models/test_a.py::TestX::test_one[a b]",),
    ],
)
def test_files_take_the_place_of_those_of_a_part(part: str, args: tuple[str, ...], repo: Path) -> None:
    assert given(repo, part, *args) == list(args)


def test_a_file_that_is_not_there_reaches_pytest_which_says_so(repo: Path) -> None:
    assert "tests/models/test_b.py" in given(repo, "gr00t", "tests/models/test_b.py")
