"""Which interpreter train.sh starts an Isaac Lab task with."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.launch.parts import set_up

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / "scripts" / "isaaclab_python.sh"


def bash(code: str, *args: str, repo: Path = REPO) -> subprocess.CompletedProcess[str]:
    program = f'die() {{ echo "$1" >&2; exit 4; }}\nREPO="{repo}"\nsource "{SCRIPT}"\n{code}'
    return subprocess.run(["bash", "-c", program, "bash", *args], capture_output=True, text=True, timeout=30)


@pytest.mark.parametrize(
    ("args", "isaac"),
    [
        (("--task", "Isaac-Cartpole-Direct"), True),
        (("--task=IsaacContrib-Velocity",), True),
        (("--num_envs", "4", "rl.task=Isaac-Ant-Direct"), True),
        (("--task", "CartPole-v1", "--experiment_name", "Isaac-like"), False),
        (("--task",), False),
        ((), False),
    ],
)
def test_a_task_is_recognised_by_its_id(args: tuple[str, ...], isaac: bool) -> None:
    assert (bash('isaac_task "$@"', *args).returncode == 0) is isaac


@pytest.mark.parametrize("inside", ["", "checkpoint-100", "best_model.pt"])
def test_a_checkpoint_is_recognised_by_the_configuration_of_its_run(inside: str, tmp_path: Path) -> None:
    for name, task in (("isaac", "Isaac-Ant-Direct"), ("other", "CartPole-v1")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"rl:\n  task: {task}\n")
        done = bash('isaac_task "$@"', "--checkpoint", str(tmp_path / name / inside))
        assert (done.returncode == 0) is (name == "isaac")


@pytest.mark.parametrize(
    ("text", "more", "isaac"),
    [
        ("rl:\n  task: Isaac-Ant-Direct\n", (), True),
        ("rl: {algorithm: PPO, task: 'Isaac-Ant-Direct'}\n", (), True),
        ("rl:\n  task: CartPole-v1  # not task: Isaac-Ant-Direct\n", (), False),
        ("rl:\n  experiment_name: Isaac\n", (), False),
        ("rl:\n  task: Isaac-Ant-Direct\n", ("--task", "CartPole-v1"), False),  # flags win over the file
        ("rl:\n  task: Isaac-Ant-Direct\n", ("rl.task=CartPole-v1",), False),
    ],
)
def test_a_configuration_file_names_the_task_unless_a_flag_does(
    text: str, more: tuple[str, ...], isaac: bool, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    for given in (("--rl_config", str(tmp_path / "mine.yaml")), (f"--rl_config={tmp_path / 'mine.yaml'}",)):
        assert (bash('isaac_task "$@"', *given, *more).returncode == 0) is isaac
    assert bash('isaac_task "$@"', "--rl_config", str(tmp_path / "nowhere.yaml")).returncode != 0


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    """A checkout with the part's lists and an environment that was set up from them."""
    set_up(tmp_path, "isaaclab")
    return tmp_path


def test_the_environment_of_this_checkout_and_its_lists_is_taken(repo: Path) -> None:
    done = bash('use_isaac_python; echo "$PYTHON_BIN"', repo=repo)
    assert done.stdout.strip() == f"{repo}/.venv-isaaclab/bin/python"


def test_another_interpreter_with_isaac_lab_can_be_named(repo: Path, tmp_path: Path) -> None:
    named = tmp_path / "python"
    code = f'export F1_ISAACLAB_PYTHON="{named}"; use_isaac_python; echo "$PYTHON_BIN"'
    refused = bash(code, repo=repo)
    assert refused.returncode == 4 and "F1_ISAACLAB_PYTHON" in refused.stderr
    named.touch(0o755)
    assert bash(code, repo=repo).stdout.strip() == str(named)


def test_an_environment_that_could_not_be_made_is_tried_again_by_the_next_call(repo: Path) -> None:
    shutil.rmtree(repo / ".venv-isaaclab")
    broken = repo / "python3.12"
    broken.write_text('#!/bin/bash\nmkdir -p "$3/bin" && touch "$3/bin/python" && chmod +x "$3/bin/python"; exit 1\n')
    broken.chmod(0o755)
    code = (
        f'cd "{repo}"; fail() {{ echo "$1" >&2; exit 4; }}; source scripts/setup_parts.sh\n'
        f'find_python312() {{ echo "{broken}"; }}; setup_part isaaclab 9'
    )
    for _ in range(2):
        done = bash(code, repo=repo)
        assert done.returncode == 4 and "install its venv module" in done.stderr
        assert not (repo / ".venv-isaaclab").exists()
