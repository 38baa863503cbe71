"""Which interpreter train.sh starts a run of a released GR00T with."""

import subprocess
from pathlib import Path

import pytest

from tests.launch.parts import set_up

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / "scripts" / "gr00t_python.sh"


def bash(code: str, *args: str, repo: Path = REPO) -> subprocess.CompletedProcess[str]:
    program = f'set -euo pipefail\ndie() {{ echo "$1" >&2; exit 4; }}\nREPO="{repo}"\nsource "{SCRIPT}"\n{code}'
    return subprocess.run(["bash", "-c", program, "bash", *args], capture_output=True, text=True, timeout=30)


def installed(repo: Path) -> None:
    """As setup.sh leaves it."""
    set_up(repo, "gr00t")


@pytest.mark.parametrize(
    ("args", "real"),
    [
        (("gr00t.backend=n1.7",), True),
        (("--num_envs", "4", "gr00t.backend=n1.5", "gr00t.size=tiny"), True),
        (("gr00t.backend=stub", "gr00t.size=n1.7"), False),
        (("gr00t.backend=none",), False),
        (("--checkpoint",), False),
        ((), False),
    ],
)
def test_a_run_is_recognised_by_its_backend(args: tuple[str, ...], real: bool, tmp_path: Path) -> None:
    done = bash('gr00t_run "$@" && echo yes || echo no', *args, repo=tmp_path)
    assert done.stdout.strip() == ("yes" if real else "no")


@pytest.mark.parametrize("inside", ["", "checkpoint-100", "best_model.pt"])
def test_a_checkpoint_is_recognised_by_the_configuration_of_its_run(inside: str, tmp_path: Path) -> None:
    for name, backend in (("real", "n1.7"), ("other", "stub")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"gr00t:\n  backend: {backend}\n  size: n1.7\n")
        done = bash('gr00t_run "$@"', "--checkpoint", str(tmp_path / name / inside), repo=tmp_path)
        assert (done.returncode == 0) is (name == "real")


@pytest.mark.parametrize(
    ("text", "more", "real"),
    [
        ("gr00t:\n  backend: n1.7\n", (), True),
        ("gr00t: {size: tiny, backend: 'n1.5'}\n", (), True),
        ("gr00t:\n  backend: stub  # not backend: n1.7\n", (), False),
        ("gr00t:\n  backend: stub\n  size: n1.7\n", (), False),
        ("gr00t:\n  backend: n1.7\n", ("gr00t.backend=stub",), False),  # flags win over the file
        ("gr00t:\n  backend: stub\n", ("gr00t.backend=n1.7",), True),
        ("gr00t:\n  backend: n1.7\n  mlp_fallback: true\n", (), False),  # its environment is not there
        ("gr00t:\n  backend: n1.7\n  mlp_fallback: true\n", ("gr00t.mlp_fallback=false",), True),
    ],
)
def test_a_configuration_file_names_the_backend_unless_a_flag_does(
    text: str, more: tuple[str, ...], real: bool, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    for given in (("--rl_config", str(tmp_path / "mine.yaml")), (f"--rl_config={tmp_path / 'mine.yaml'}",)):
        done = bash('gr00t_run "$@" && echo yes || echo no', *given, *more, repo=tmp_path)
        assert (done.stdout.strip(), done.stderr) == ("yes" if real else "no", "")
    assert bash('gr00t_run "$@"', "--rl_config", str(tmp_path / "nowhere.yaml")).returncode != 0


def test_a_missing_environment_is_answered_with_the_command(tmp_path: Path) -> None:
    done = bash("use_gr00t_python", repo=tmp_path)
    assert done.returncode == 4
    assert "bash setup.sh gr00t" in done.stderr
    installed(tmp_path)
    found = bash('use_gr00t_python; echo "$PYTHON_BIN"', repo=tmp_path).stdout.strip()
    assert found == f"{tmp_path}/.venv-gr00t/bin/python"


def test_a_run_that_may_do_without_it_takes_it_only_where_it_is(tmp_path: Path) -> None:
    args = ("gr00t.backend=n1.7", "gr00t.mlp_fallback=true")
    assert bash('gr00t_run "$@"', *args, repo=tmp_path).returncode != 0
    installed(tmp_path)
    assert bash('gr00t_run "$@"', *args, repo=tmp_path).returncode == 0
