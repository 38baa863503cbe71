"""Rows 3 to 5, 18 and 21: disks that are full, files that are damaged, clocks and languages that are odd."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl.training import disk
from rl.training.checkpoint import open_checkpoint
from tests.resilience import corrupt
from tests.resilience.trainers import outcome, run
from tests.training import policy_runs

REPO = Path(__file__).resolve().parents[2]


def test_every_damage_is_noticed_and_training_goes_on_from_the_checkpoint_before(tmp_path: Path) -> None:
    """50 of the 1,000 of docs/results/checkpoint_corruption.json."""
    found = corrupt.campaign(50, 1, tmp_path)
    assert found["noticed"] == found["previous_chosen"] == found["continued_equal"] == 50
    assert set(found["kinds"]) == set(corrupt.DAMAGES) and len(found["files"]) >= 5


def test_a_run_on_a_disk_that_fills_up_keeps_its_checkpoints_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    """No file may grow beyond 256 KiB from the second checkpoint on; the first start may write as it likes."""
    straight, place = tmp_path / "straight", tmp_path / "run"
    big = "ppo.network.hidden=[256,256]"
    assert run("PPO", straight, None, big) == 0
    assert run("PPO", place, "committed", big) == -9
    for extra in ("checkpoint.async_write=true", "checkpoint.async_write=false"):
        assert run("PPO", place, None, big, extra, file_limit=256 << 10) == 4
        assert [p.name for p in place.glob("*checkpoint-*")] == ["checkpoint-128"]
        assert open_checkpoint(place).step == 128
        status = json.loads((place / "status.json").read_text())
        assert (status["state"], status["exit_code"]) == ("failed", 4)
    assert run("PPO", place, None, big) == 0
    assert outcome(place) == outcome(straight)


def test_a_run_directory_that_cannot_be_written_is_refused_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    place = tmp_path / "new" / "run"
    usage = disk.shutil.disk_usage

    def full(path: Path) -> object:
        return usage(path)._replace(free=1000)

    monkeypatch.setattr(disk.shutil, "disk_usage", full)
    assert policy_runs.arm("PPO", place, "--steps", "128") == 4
    assert re.search(r"1000 bytes free on its disk, \d+ needed; free space there or choose", capfd.readouterr().err)
    monkeypatch.undo()

    def read_only(dir: Path) -> None:
        raise OSError(30, "Read-only file system", str(dir))

    monkeypatch.setattr(disk.tempfile, "TemporaryFile", read_only)
    assert policy_runs.arm("PPO", place, "--steps", "128") == 4
    assert "cannot write to" in (told := capfd.readouterr().err) and "Read-only file system" in told
    assert list(tmp_path.iterdir()) == []


def test_kernel_file_systems_are_refused_too() -> None:
    with pytest.raises(ValueError, match=r"cannot write to /proc .*choose another --output_dir"):
        disk.require_writable(Path("/proc/nowhere/run"))


# --- clock, language, hash seed ---------------------------------------------------------------------------------------


def launch(place: Path, **env: str) -> str:
    """A small run in a process of its own; its stderr."""
    code = (
        "import sys; from pathlib import Path; from rl.training import cli; from tests.resilience import trainers;"
        "t = trainers.TRAINERS['PPO']; cli.run_main(t.phase, t.main, [*t.flags(Path(sys.argv[1])), '--seed', '5'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(place)], env={**os.environ, "PYTHONPATH": str(REPO), **env}, cwd=place.parent,
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_language_time_zone_and_hash_seed_change_nothing(tmp_path: Path) -> None:
    odd = {"LC_ALL": "C", "TZ": "Pacific/Chatham", "PYTHONHASHSEED": "1", "PYTHONWARNDEFAULTENCODING": "1"}
    told = launch(tmp_path / "odd", **odd, PYTHONWARNINGS="always::EncodingWarning")
    own = [
        line for line in told.splitlines() if "EncodingWarning" in line and re.search(r"/(rl|f1_vla|kernels)/", line)
    ]
    assert [line for line in own if "site-packages" not in line] == []  # every text is read and written as UTF-8
    assert run("PPO", tmp_path / "usual", None, "--seed", "5") == 0  # with the hash seed of the test process
    assert outcome(tmp_path / "odd") == outcome(tmp_path / "usual")


def test_a_clock_that_jumps_back_changes_neither_order_nor_durations(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    clock, jumps = time.time, iter(range(0, 10**9, 3600))
    monkeypatch.setattr(time, "time", lambda: clock() - next(jumps))
    assert policy_runs.arm("PPO", tmp_path / "run", "--steps", "512", "arm.save_every=128", "arm.log_every=128") == 0
    result = policy_runs.result(tmp_path / "run")
    assert 0 < result["wall_seconds"] < 600 and open_checkpoint(tmp_path / "run").step == 512
    assert [line["step"] for line in policy_runs.lines(tmp_path / "run")] == [128, 256, 384, 512]
    assert "-" not in "".join(re.findall(r"ETA (\S+)", capfd.readouterr().out))
