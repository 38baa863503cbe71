"""Rows 11 and 12: killed and crashing ranks are started again from the newest checkpoint, as long as it helps."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from rl.training import watch
from tests.launch.test_launch import REPO, wait_until_ready
from tests.launch.test_launch import start as launch

TIMEOUT_S = 280  # a broken machine's, not an expectation
SUPERVISE = REPO / "scripts" / "supervise.py"


def supervised(command: list[str], restarts: int, **env: str) -> subprocess.Popen[str]:
    whole = [sys.executable, str(SUPERVISE), str(restarts), "--backoff", "0.05", "--", *command]
    return subprocess.Popen(
        whole, cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"} | env,
    )  # fmt: skip


def stub(folder: Path, plan: str, restarts: int, *flags: str) -> tuple[int, str, list[dict[str, Any]]]:
    """Exit code, output, and what each start was given."""
    command = [sys.executable, str(REPO / "tests/resilience/stub_run.py"), str(folder), plan, *flags]
    process = supervised(command, restarts)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    starts = [json.loads(line) for line in (folder / "starts").read_text().splitlines()]
    return process.returncode, output, starts


def status(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "status.json").read_text())


@pytest.mark.parametrize("code", [0, 3, 4, 75])
def test_an_end_that_is_no_crash_is_final(code: int, tmp_path: Path) -> None:
    found, _, starts = stub(tmp_path, str(code), 5)
    assert found == code and len(starts) == 1


def test_crashes_are_restarted_as_long_as_checkpoints_are_written(tmp_path: Path) -> None:
    plan = "save+1,kill,save+9,save+1,0"
    code, output, starts = stub(tmp_path, plan, 5, "--overwrite", "--num_episodes", "8")
    # `kill` wrote no checkpoint: it was the second start, a restart that made no progress
    assert code == 137 and len(starts) == 2
    assert starts[0]["argv"] == ["--overwrite", "--num_episodes", "8"]
    assert starts[1] | {"time": 0} == {"argv": ["--num_episodes", "8", "--auto_resume"], "restarts": "1", "time": 0}
    assert "restart 1 of 5 from checkpoint-1" in output and "exit code 137) again without a new checkpoint" in output
    assert (status(tmp_path)["state"], status(tmp_path)["exit_code"]) == ("failed", 137)


def test_the_number_of_restarts_is_limited_and_the_last_exit_code_counts(tmp_path: Path) -> None:
    code, output, starts = stub(tmp_path, "save+1,save+1,save+7,0", 2)
    assert code == 7 and len(starts) == 3 and "which is --max_restarts" in output
    gaps = [b["time"] - a["time"] for a, b in itertools.pairwise(starts)]
    assert gaps[0] >= 0.05 and gaps[1] >= 0.1  # the pause doubles


def test_a_run_that_recovers_ends_well(tmp_path: Path) -> None:
    code, _, starts = stub(tmp_path, "1,save+1,0", 9)
    assert code == 0 and [s["restarts"] for s in starts] == ["0", "1", "2"]


def test_a_resume_of_another_run_is_repeated_until_there_is_an_own_checkpoint(tmp_path: Path) -> None:
    _, _, starts = stub(tmp_path, "1,save+1,0", 9, "--resume", "other/checkpoint-5", "x=1")
    assert starts[1]["argv"] == ["x=1", "--resume", "other/checkpoint-5"]
    assert starts[2]["argv"] == ["x=1", "--output_dir", str(tmp_path / "run"), "--auto_resume"]


def test_a_signal_is_passed_on_and_ends_the_restarts(tmp_path: Path) -> None:
    command = [sys.executable, str(REPO / "tests/resilience/stub_run.py"), str(tmp_path), "wait,0"]
    process = supervised(command, 5)
    deadline = time.monotonic() + TIMEOUT_S
    while not (tmp_path / "waiting").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT_S) == 75 and len((tmp_path / "starts").read_text().splitlines()) == 1
    assert (tmp_path / "signals").read_text().split() == ["SIGTERM"]


def test_a_killed_supervisor_lets_the_run_save_and_end(tmp_path: Path) -> None:
    command = [sys.executable, str(REPO / "tests/resilience/stub_run.py"), str(tmp_path), "wait,0"]
    process = supervised(command, 5)
    while not (tmp_path / "waiting").exists():
        time.sleep(0.02)
    process.kill()
    process.wait()
    process.communicate(timeout=TIMEOUT_S)  # its pipe closes when the run has ended, too
    assert (tmp_path / "signals").read_text().split() == ["SIGTERM"]
    assert len((tmp_path / "starts").read_text().splitlines()) == 1, "the run must end, not start again"


def test_watch_tells_of_restarts(tmp_path: Path) -> None:
    known = {
        "phase": "teacher", "state": "restarting", "step": 40, "total": 100, "started": 0.0, "last_advanced": 5.0,
        "pid": os.getpid(), "host": "here", "exit_code": 137, "restarts": 2,
    }  # fmt: skip
    (tmp_path / "status.json").write_text(json.dumps(known))
    told = watch.describe(tmp_path, 10.0)
    assert "teacher, restarting" in told and "restarted 2 times after a crash" in told
    assert "exit code 137: a crash, --auto_resume continues" in told


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("teacher", "--max_restarts", "many"), "--max_restarts is 'many'; it must be a whole number"),
        (("evaluate", "--max_restarts", "2"), "evaluate leaves no checkpoint to restart from"),
    ],
)
def test_impossible_restarts_are_refused(args: tuple[str, ...], message: str) -> None:
    done = subprocess.run(["bash", str(REPO / "train.sh"), *args], capture_output=True, text=True, timeout=60)
    assert done.returncode == 4 and message in done.stderr


# --- with real ranks -------------------------------------------------------------------------------------------------

SCRIPT = f'set -euo pipefail; PYTHON_BIN="{sys.executable}"; source "{REPO}/scripts/launch.sh"; "$@"'


def toy(work: Path, name: str, stop_at: int, *flags: str, restarts: int = 0, **env: str) -> tuple[int, str]:
    """Six steps of tests/training/toy_run.py on two ranks."""
    arguments = [str(work / name), "6", str(stop_at), str(work / f"{name}.hash"), *flags]
    command = ["bash", "-c", SCRIPT, "bash", "launch", "2", "tests.training.toy_run", *arguments]
    process = supervised(command, restarts, TOY_SAVE_EVERY="2", **env)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, output


def test_killed_and_stopped_ranks_leave_no_trace_in_the_result(tmp_path: Path) -> None:
    """One test, because each launch costs seconds. SIGKILL to rank 1 in step 4 (restarted from checkpoint-2),
    SIGTERM to rank 1 alone in step 5 (both save and stop), SIGKILL to rank 0 in step 6 (restarted from checkpoint-5).
    """
    code, output = toy(tmp_path, "straight", 0)
    assert code == 0, output
    faults = {"TOY_FAULTS": "kill:1:4,kill:0:6"}
    code, output = toy(tmp_path, "run", 5, restarts=3, **faults)
    assert code == 75 and "restart 1 of 3 from checkpoint-2" in output and "stopped: checkpoint-5 saved" in output
    found = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (found["state"], found["step"], found["exit_code"], found["restarts"]) == ("preempted", 5, 75, 1)
    code, output = toy(tmp_path, "run", 0, "--auto_resume", restarts=3, **faults)
    assert code == 0 and "restart 1 of 3 from checkpoint-5" in output, output
    assert (tmp_path / "run.hash").read_text() == (tmp_path / "straight.hash").read_text()
    metrics = [(tmp_path / run / "episode_metrics.jsonl").read_text() for run in ("straight", "run")]
    assert metrics[0] == metrics[1] and metrics[0].count("\n") == 6
    assert not [p for p in (tmp_path / "run").iterdir() if p.name.startswith(".")], "leftovers"


def test_ranks_save_and_end_when_the_shell_of_their_launcher_is_killed(tmp_path: Path) -> None:
    process = launch(tmp_path, 2, "stopflag")
    wait_until_ready(tmp_path, 2, process)
    process.kill()
    process.communicate(timeout=TIMEOUT_S)  # returns when the last of the ranks has closed its output
    assert [(tmp_path / f"stopped-{rank}").read_text() for rank in range(2)] == ["SIGTERM"] * 2
