"""scripts/launch.sh with a stand-in for the training module: signals reach every rank, exit codes come back."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parent.parent.parent
WORKER = "tests.launch.stub_worker"


def start(
    tmp_path: Path, processes: int, mode: str, accelerate_config: Path | None = None, **env: str
) -> subprocess.Popen[str]:
    function = ["launch"] if accelerate_config is None else ["launch_accelerate", str(accelerate_config)]
    script = f'set -euo pipefail; PYTHON_BIN="{sys.executable}"; source "{REPO}/scripts/launch.sh"; "$@"'
    command = ["bash", "-c", script, "bash", *function, str(processes), WORKER, mode, str(tmp_path)]
    return subprocess.Popen(
        command, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | env,
        preexec_fn=_as_from_a_terminal,
    )  # fmt: skip


def _as_from_a_terminal() -> None:
    """A background job of a script ignores SIGINT, and so would everything it starts, these tests included."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_until_ready(tmp_path: Path, processes: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 90
    while len(list(tmp_path.glob("ready-*"))) < processes:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)


@pytest.mark.parametrize("code", [0, 3, 75])
def test_the_exit_code_of_one_process_is_passed_on(tmp_path: Path, code: int) -> None:
    process = start(tmp_path, 1, f"exit{code}")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_a_single_process(tmp_path: Path, signum: signal.Signals) -> None:
    process = start(tmp_path, 1, "wait")
    wait_until_ready(tmp_path, 1, process)
    process.send_signal(signum)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 75, output
    assert (tmp_path / "stopped-0").read_text() == signum.name


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_reaches_every_rank_and_their_exit_code_comes_back(tmp_path: Path, signum: signal.Signals) -> None:
    process = start(tmp_path, 2, "wait")
    wait_until_ready(tmp_path, 2, process)
    process.send_signal(signum)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 75, output
    assert "Traceback" not in output and "ChildFailedError" not in output, "the launcher buries what the ranks said"
    assert [(tmp_path / f"stopped-{rank}").read_text() for rank in range(2)] == [signum.name] * 2


def test_a_failure_of_one_rank_is_not_hidden_by_the_success_of_rank_0(tmp_path: Path) -> None:
    process = start(tmp_path, 2, "rank1fails")
    output, _ = process.communicate(timeout=90)
    assert process.returncode not in (0, 75), output


def test_a_signal_reaches_a_rank_that_accelerate_started(tmp_path: Path) -> None:
    config = tmp_path / "accelerate.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: 'NO'\nmixed_precision: 'no'\nuse_cpu: true\n"
    )
    process = start(tmp_path, 1, "wait", config)
    wait_until_ready(tmp_path, 1, process)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 75, output
    assert (tmp_path / "stopped-0").read_text() == "SIGUSR1"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "sharded"), [("ddp", False), ("fsdp2", True)])
def test_ranks_of_accelerate_learn_what_the_file_says(tmp_path: Path, name: str, sharded: bool) -> None:
    process = start(tmp_path, 2, "environment", REPO / "configs" / "accelerate" / f"{name}.yaml")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output
    for rank in range(2):
        env = json.loads((tmp_path / f"environment-{rank}.json").read_text())
        assert env["WORLD_SIZE"] == "2" and env["ACCELERATE_MIXED_PRECISION"] == "no"
        assert (env.get("ACCELERATE_USE_FSDP"), env.get("FSDP_VERSION")) == (("true", "2") if sharded else (None, None))
        assert "FSDP_TRANSFORMER_CLS_TO_WRAP" not in env


def test_two_nodes_form_one_group_and_each_gives_the_exit_code_of_its_ranks(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    common = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    nodes = [start(tmp_path, 1, "wait", NODE_RANK=str(n), **common) for n in range(2)]
    for node in nodes:
        wait_until_ready(tmp_path, 2, node)
    for node in nodes:
        node.send_signal(signal.SIGTERM)
    for node in nodes:
        output, _ = node.communicate(timeout=90)
        assert node.returncode == 75, output
    assert [(tmp_path / f"stopped-{rank}").read_text() for rank in range(2)] == ["SIGTERM"] * 2


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"NNODES": "two"}, "NNODES is 'two'; it must be a whole number"),
        ({"NNODES": "2"}, "NODE_RANK is ''; on 2 nodes it must be 0 to 1"),
        ({"NNODES": "2", "NODE_RANK": "2"}, "NODE_RANK is '2'; on 2 nodes it must be 0 to 1"),
        ({"NNODES": "2", "NODE_RANK": "1"}, "MASTER_ADDR is not set"),
    ],
)
def test_contradictory_settings_of_several_nodes_are_refused(tmp_path: Path, env: dict[str, str], message: str) -> None:
    process = start(tmp_path, 1, "exit0", **env)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 4 and message in output
