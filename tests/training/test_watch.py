"""What `train.sh watch` says about runs in every state."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from rl.training import watch

NOW = 10_000.0


def _run(place: Path, **changes: object) -> Path:
    status = {
        "phase": "teacher", "state": "running", "step": 40, "total": 100, "started": NOW - 8000.0,
        "last_advanced": NOW - 90.0, "pid": os.getpid(), "host": socket.gethostname(), "exit_code": None,
    }  # fmt: skip
    (place / "status.json").write_text(json.dumps(status | changes))
    return place


def test_a_running_run_shows_progress_age_checkpoint_and_metrics(tmp_path: Path) -> None:
    run = _run(tmp_path)
    for n in (9, 30):
        (run / f"checkpoint-{n}").mkdir()
    lines = [json.dumps({"episode": 40, "teacher/loss": 3.25, "teacher/grad_norm": 1.0}), '{"episode": 41, "teach']
    (run / "episode_metrics.jsonl").write_text("\n".join(lines))  # the last line is being written
    text = watch.describe(run, NOW)
    assert f"{run}: teacher, running" in text
    assert "step 40 of 100, last advanced 90 s ago, started 2 h ago" in text
    assert "newest checkpoint: checkpoint-30" in text and "loss 3.25" in text and "grad_norm" not in text


def test_a_run_whose_process_was_killed_is_told_from_a_running_one(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    assert "gone (process" in watch.describe(_run(tmp_path, pid=child.pid), NOW)
    assert "gone" not in watch.describe(_run(tmp_path, pid=child.pid, host="another-machine"), NOW)
    assert "gone" not in watch.describe(_run(tmp_path, pid=child.pid, state="done", exit_code=0), NOW)


def test_an_ended_run_shows_its_exit_code_and_following_it_ends_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    _run(tmp_path, state="preempted", exit_code=75)
    assert watch.main([str(tmp_path), "--follow"]) == 0
    shown = capsys.readouterr().out
    assert "teacher, preempted" in shown and "exit code 75" in shown and "none yet" in shown


@pytest.mark.parametrize(("content", "message"), [(None, "does not exist; name the directory"), ("{", "not readable")])
def test_what_is_no_run_is_refused_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture, content: str | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "status.json").write_text(content)
    assert watch.main([str(tmp_path)]) == 4
    assert message in capsys.readouterr().err
