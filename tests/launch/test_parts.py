"""Parts with environments of their own, missing or out of date: train.sh and tests/run.sh say so, as setup.sh does."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.launch.parts import REPO, change_list, set_up

USE = {"isaaclab": "use_isaac_python", "gr00t": "use_gr00t_python"}
PARTS = list(USE)


@pytest.fixture
def repo(tmp_path: Path, part: str) -> Path:
    set_up(tmp_path, part)
    (tmp_path / "tests").mkdir()
    shutil.copy(REPO / "tests" / "run.sh", tmp_path / "tests")
    return tmp_path


def bash(code: str, repo: Path) -> subprocess.CompletedProcess[str]:
    scripts = "".join(f'source "{REPO}/scripts/{name}_python.sh"\n' for name in PARTS)
    program = f'set -euo pipefail\ndie() {{ echo "$1" >&2; exit 4; }}\nREPO="{repo}"\n{scripts}{code}'
    return subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=30)


def run_tests(repo: Path, part: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(repo / "tests" / "run.sh"), part]
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


def stale(repo: Path, part: str, how: str) -> Path:
    """The checkout where the list of packages has changed, or which has moved."""
    if how == "list":
        change_list(repo, part)
        return repo
    moved = repo.with_name(repo.name + "_moved")
    return repo.rename(moved)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("how", ["list", "folder"])
def test_an_environment_of_other_lists_or_another_folder_has_to_be_set_up_again(
    part: str, how: str, repo: Path
) -> None:
    assert bash(USE[part], repo).returncode == 0
    place = stale(repo, part, how)
    for done in (bash(USE[part], place), run_tests(place, part)):
        assert done.returncode == 4
        assert f"set it up again: bash setup.sh {part}" in done.stderr


@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_is_not_installed_is_answered_with_the_command(part: str, repo: Path) -> None:
    shutil.rmtree(repo / f".venv-{part}")
    for done in (bash(USE[part], repo), run_tests(repo, part)):
        assert done.returncode == 4
        assert "not installed" in done.stderr and f"bash setup.sh {part}" in done.stderr


@pytest.mark.parametrize("part", PARTS)
def test_tests_of_a_part_begin_in_its_environment(part: str, repo: Path) -> None:
    python = repo / f".venv-{part}" / "bin" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/bash\necho began "$1 $2"\n')
    python.chmod(0o755)
    done = run_tests(repo, part)
    assert (done.returncode, done.stdout.strip()) == (0, "began -m pytest")


@pytest.mark.parametrize("part", PARTS)
def test_train_and_setup_agree_on_what_is_up_to_date(part: str, repo: Path) -> None:
    code = (
        f'cd "{repo}"; fail() {{ echo "$1" >&2; exit 4; }}; python_version() {{ :; }}\n'
        f"source scripts/setup_parts.sh\nsetup_part {part} 9"
    )
    done = bash(code, repo)
    assert (done.returncode, done.stderr) == (0, "")
    change_list(repo, part)
    assert bash(code, repo).returncode == 4
