"""Which interpreter train.sh starts an Isaac Lab task with."""

import subprocess
from pathlib import Path

import pytest

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


def test_a_missing_environment_is_answered_with_the_command(tmp_path: Path) -> None:
    done = bash("use_isaac_python", repo=tmp_path)
    assert done.returncode == 4
    assert "bash setup.sh isaaclab" in done.stderr
    (tmp_path / ".venv-isaaclab").mkdir()
    (tmp_path / ".venv-isaaclab" / ".setup-stamp").write_text("")
    assert (
        bash('use_isaac_python; echo "$PYTHON_BIN"', repo=tmp_path)
        .stdout.strip()
        .endswith("/.venv-isaaclab/bin/python")
    )
