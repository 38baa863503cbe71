"""Run directories: who may use them, what a resume may change, what is left behind."""

import contextlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from f1_vla.config import F1Config
from rl.config import Config, load
from rl.training.checkpoint import CheckpointManager, open_checkpoint
from rl.training.errors import CollectiveError, NumericalError, Preempted
from rl.training.parallel_utils import ParallelContext
from rl.training.provenance import collect, redact
from rl.training.run_dir import ResumeMode, RunDir, check_run_name
from tests.training.checkpoint_cases import state_of


def start(path: Path, world: ParallelContext, config: Config | None = None, **kwargs) -> RunDir:
    return RunDir.open(path, "teacher", config or Config(), F1Config(), world, **kwargs)


@pytest.fixture
def finished_run(tmp_path: Path, world: ParallelContext) -> Path:
    """A closed run with checkpoint-1 and checkpoint-2."""
    run = start(tmp_path / "run", world)
    manager = CheckpointManager(run.path, 2, world)
    manager.save(1, state_of(1))
    manager.save(2, state_of(2))
    run.close()
    return run.path


def test_a_new_run_saves_its_configuration_so_that_it_loads_back(tmp_path: Path, world: ParallelContext) -> None:
    config = Config()
    config.training.learning_rate = 2e-4
    run = start(tmp_path / "a" / "run", world, config)
    assert load(run.path / "config.yaml") == config
    assert not run.resuming
    assert json.loads((run.path / "provenance.jsonl").read_text())["versions"]["torch"]
    run.close()


def test_an_existing_run_needs_to_be_told_what_to_do(finished_run: Path, world: ParallelContext) -> None:
    with pytest.raises(CollectiveError, match=r"holds a run already; continue it with --auto_resume, replace it with"):
        start(finished_run, world)


def test_auto_resume_continues_a_run_and_starts_a_missing_one(
    finished_run: Path, tmp_path: Path, world: ParallelContext
) -> None:
    run = start(finished_run, world, resume=ResumeMode.auto)
    assert run.resuming and run.resume_from is None
    run.close()
    fresh = start(tmp_path / "other", world, resume=ResumeMode.auto)
    assert not fresh.resuming
    fresh.close()


def test_auto_resume_of_a_run_stopped_before_its_first_checkpoint_starts_it(
    tmp_path: Path, world: ParallelContext
) -> None:
    start(tmp_path / "run", world).close()
    again = start(tmp_path / "run", world, resume=ResumeMode.auto)
    assert not again.resuming
    again.close()


def test_resume_by_path_continues_in_place_or_starts_a_new_run_elsewhere(
    finished_run: Path, tmp_path: Path, world: ParallelContext
) -> None:
    checkpoint = finished_run / "checkpoint-1"
    for place in (finished_run, tmp_path / "fork"):
        run = start(place, world, resume=ResumeMode.path, resume_path=checkpoint)
        assert run.resuming and run.resume_from == checkpoint
        run.close()
    with pytest.raises(CollectiveError, match="holds a run already"):
        start(tmp_path / "fork", world, resume=ResumeMode.path, resume_path=checkpoint)


def test_resuming_what_is_not_there_is_an_error_that_writes_nothing(tmp_path: Path, world: ParallelContext) -> None:
    with pytest.raises(CollectiveError, match=r"checkpoint-7: no checkpoint there"):
        start(tmp_path / "run", world, resume=ResumeMode.path, resume_path=tmp_path / "run" / "checkpoint-7")
    assert list(tmp_path.iterdir()) == []


def test_an_overwritten_run_is_kept_until_the_new_one_has_a_checkpoint(
    finished_run: Path, world: ParallelContext
) -> None:
    run = start(finished_run, world, overwrite=True)
    assert not run.resuming
    (old,) = [p for p in run.path.iterdir() if p.name.startswith(".superseded-run-")]
    assert open_checkpoint(old).step == 2
    manager = CheckpointManager(run.path, 2, world)
    assert old.exists()
    manager.save(1, state_of(1))
    assert not old.exists()
    assert [p.name for p in finished_run.parent.iterdir()] == ["run"]
    run.close()


def test_an_overwrite_killed_halfway_loses_nothing(finished_run: Path, world: ParallelContext) -> None:
    os.rename(finished_run, finished_run.with_name(".superseded-run-0123abcd"))  # killed right after the first rename
    run = start(finished_run, world, overwrite=True)
    assert open_checkpoint(run.path / ".superseded-run-0123abcd").step == 2
    run.close()


def test_overwrite_and_resume_together_are_refused(finished_run: Path, world: ParallelContext) -> None:
    with pytest.raises(CollectiveError, match="contradict"):
        start(finished_run, world, overwrite=True, resume=ResumeMode.auto)


@pytest.mark.parametrize("resume", [ResumeMode.auto, ResumeMode.never])
def test_a_second_process_is_refused_and_told_who_holds_the_run(
    resume: ResumeMode, finished_run: Path, world: ParallelContext
) -> None:
    code = (
        "import fcntl, sys, time\n"
        "from pathlib import Path\nfrom rl.training.run_dir import _acquire\n"
        f"lock = _acquire(Path({str(finished_run)!r}))\n"
        "print('held', flush=True)\ntime.sleep(60)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(CollectiveError, match=rf"in use by pid {holder.pid} on "):
            start(finished_run, world, resume=resume, overwrite=resume is ResumeMode.never)
        assert open_checkpoint(finished_run).step == 2
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    start(finished_run, world, resume=ResumeMode.auto).close()  # a dead holder holds nothing


def test_changed_learning_rate_and_architecture_are_refused_key_by_key(
    finished_run: Path, world: ParallelContext
) -> None:
    config, arch = Config(), F1Config()
    config.training.learning_rate, arch.trunk.num_layers = 0.5, 9
    with pytest.raises(CollectiveError) as caught:
        RunDir.open(finished_run, "teacher", config, arch, world, resume=ResumeMode.auto)
    assert "arch.trunk.num_layers 4 -> 9; training.learning_rate 0.001 -> 0.5" in str(caught.value)
    assert load(finished_run / "config.yaml") == Config()


def test_more_episodes_are_a_note_and_the_new_configuration_is_saved(
    finished_run: Path, world: ParallelContext
) -> None:
    config = replace(Config(), training=replace(Config().training, num_episodes=20, log_every=1))
    run = start(finished_run, world, config, resume=ResumeMode.auto)
    assert run.notes == ["training.log_every 10 -> 1", "training.num_episodes 10000 -> 20"]
    assert load(run.path / "config.yaml") == config
    run.close()


def test_an_unusable_output_directory_is_one_line_and_writes_nothing(tmp_path: Path, world: ParallelContext) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "run", Path("/proc/run")):
        with pytest.raises(CollectiveError) as caught:
            start(place, world)
        assert str(place) in str(caught.value) and "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_status_tells_phase_progress_and_exit_code(tmp_path: Path, world: ParallelContext) -> None:
    run = start(tmp_path, world)
    run.status("running", step=3, total=10)
    run.status("done", exit_code=0)
    status = json.loads((tmp_path / "status.json").read_text())
    assert {k: status[k] for k in ("phase", "state", "step", "total", "exit_code", "pid")} == {
        "phase": "teacher", "state": "done", "step": 3, "total": 10, "exit_code": 0, "pid": os.getpid(),
    }  # fmt: skip
    assert status["started"] <= status["last_advanced"]
    run.close()


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (None, "done", 0), (Preempted("saved"), "preempted", 75), (NumericalError("nan"), "failed", 3),
        (ValueError("wrong"), "failed", 4), (ZeroDivisionError(), "failed", 1), (KeyboardInterrupt(), "failed", 1),
    ],
)  # fmt: skip
def test_status_records_how_the_run_ended_and_the_lock_is_given_back(
    error: BaseException | None, state: str, code: int, tmp_path: Path, world: ParallelContext
) -> None:
    with contextlib.suppress(BaseException), start(tmp_path / "run", world):
        if error is not None:
            raise error
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == (state, code)
    start(tmp_path / "run", world, resume=ResumeMode.auto).close()


@pytest.mark.parametrize("name", ["a", "run_1.b-c", "A" * 64])
def test_plain_run_names_are_accepted(name: str) -> None:
    assert check_run_name(name) == name


@pytest.mark.parametrize("name", ["", "../x", "/etc/x", "a/b", ".hidden", "-x", "a\0", "A" * 65, "ä", "a\n"])
def test_run_names_that_could_leave_the_directory_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="run name"):
        check_run_name(name)


def test_provenance_hides_secrets_and_leaves_the_environment_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_TOKEN", "hunter2")
    assert "hunter2" not in json.dumps(collect())
    assert redact(["--api_key=abc", "--token", "abc", "--seed", "1", "logging.wandb_token=abc"]) == [
        "--api_key=***", "--token", "***", "--seed", "1", "logging.wandb_token=***",
    ]  # fmt: skip


def test_a_run_refused_before_it_began_leaves_nothing_behind(tmp_path: Path, world: ParallelContext) -> None:
    with pytest.raises(ValueError, match="no simulator"), start(tmp_path / "run", world) as run:
        run.discard()
        raise ValueError("no simulator")
    assert not (tmp_path / "run").exists()


def test_a_refused_overwrite_gives_the_old_run_back(finished_run: Path, world: ParallelContext) -> None:
    before = {p.name for p in finished_run.iterdir()}
    with pytest.raises(ValueError, match="no simulator"), start(finished_run, world, overwrite=True) as run:
        run.discard()
        raise ValueError("no simulator")
    assert {p.name for p in finished_run.iterdir()} == before
    assert open_checkpoint(finished_run).step == 2
    assert [p.name for p in finished_run.parent.iterdir()] == [finished_run.name]


def test_a_resumed_run_is_never_discarded(finished_run: Path, world: ParallelContext) -> None:
    with start(finished_run, world, resume=ResumeMode.auto) as run:
        run.discard()
    assert (finished_run / "config.yaml").is_file()
    assert open_checkpoint(finished_run).step == 2


def test_files_that_a_killed_run_had_begun_to_write_are_gone_after_the_next_start(
    finished_run: Path, world: ParallelContext
) -> None:
    begun = [finished_run / ".tmp-0346f1c0-status.json", finished_run / "samples" / ".tmp-0346f1c0-a.png"]
    others = [finished_run / ".tmp-notes", finished_run / ".hidden"]
    (finished_run / "samples").mkdir()
    for path in begun + others:
        path.write_text("half")
    start(finished_run, world, resume=ResumeMode.auto).close()
    assert [p.exists() for p in begun + others] == [False, False, True, True]


def test_a_key_that_is_named_may_change_on_a_resume(finished_run: Path, world: ParallelContext) -> None:
    config = Config()
    config.training.learning_rate = 5e-4
    run = start(finished_run, world, config, resume=ResumeMode.auto, allow_drift=["training.learning_rate"])
    run.close()
    assert run.notes == ["training.learning_rate 0.001 -> 0.0005"]
    assert load(finished_run / "config.yaml").training.learning_rate == 5e-4
