"""Rows 1 and 25: SIGKILL at every step of a save, again and again in one run; nothing is lost and nothing differs."""

import multiprocessing
from pathlib import Path

import pytest

from rl.config import TrainingConfig
from rl.training.checkpoint import FAULT_POINTS, CheckpointManager, open_checkpoint
from rl.training.checkpoint_files import checkpoint_dirs
from rl.training.parallel_utils import ParallelContext
from tests.resilience.trainers import KILLED, outcome, run
from tests.training import checkpoint_cases as cases

ELSEWHERE = ("peft_adapter_written", "old_set_aside")  # no adapters here, no stop within an iteration: see below
POINTS = [p for p in FAULT_POINTS if p not in ELSEWHERE]


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("straight")
    assert run("PPO", place / "run") == 0
    return place / "run"


@pytest.mark.timeout(900)  # fifteen starts
@pytest.mark.parametrize(
    ("asynchronous", "points"), [("true", POINTS), ("false", ["model_written", "renamed"])], ids=["beside", "waiting"]
)
def test_a_run_killed_at_every_step_of_its_saves_ends_as_the_uninterrupted_one(
    asynchronous: str, points: list[str], straight: Path, tmp_path: Path
) -> None:
    place, newest = tmp_path / "run", 0
    for point in points:
        assert run("PPO", place, point, f"checkpoint.async_write={asynchronous}") == KILLED, point
        renamed = FAULT_POINTS.index(point) >= FAULT_POINTS.index("renamed")
        found = open_checkpoint(place).step if checkpoint_dirs(place) else 0
        assert found == newest + 128 * renamed, point
        newest = found
    assert run("PPO", place, None, f"checkpoint.async_write={asynchronous}") == 0
    assert outcome(place) == outcome(straight)
    assert [p.name for p in place.iterdir() if p.name.startswith((".tmp", ".trash", ".super", ".repl"))] == []
    assert run("PPO", place) == 0 and outcome(place) == outcome(straight)  # a finished run: nothing to do


def _replace_and_die(run_dir: Path, point: str) -> None:
    cases.os.environ["FAULT_POINT"] = point
    world = ParallelContext.create(TrainingConfig(device="cpu"))
    CheckpointManager(run_dir, 2, world).save(2, cases.state_of(20), replace=True)


@pytest.mark.parametrize("point", ["tmp_dir_synced", "old_set_aside", "renamed", "committed", "trash_renamed"])
def test_a_checkpoint_that_gives_way_to_another_of_its_number_is_never_lost(point: str, tmp_path: Path) -> None:
    world = ParallelContext.create(TrainingConfig(device="cpu"))
    manager = CheckpointManager(tmp_path, 2, world)
    manager.save(2, cases.state_of(2))  # the only one
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=_replace_and_die, args=(tmp_path, point))
    process.start()
    process.join(60)
    assert process.exitcode == KILLED
    restarted = CheckpointManager(tmp_path, 2, world)
    loaded = restarted.load()
    after = FAULT_POINTS.index(point) >= FAULT_POINTS.index("renamed")
    assert loaded is not None and loaded.step == 2 and loaded.training["episode"] == (20 if after else 2)
    restarted.save(2, cases.state_of(30), replace=True)
    assert open_checkpoint(tmp_path).read("training_state.pt")["episode"] == 30
    restarted.save(3, cases.state_of(3))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint-2", "checkpoint-3"]
    world.close()
