"""Checkpoints written beside training: the same files, errors at the next boundary, at most one in flight."""

import logging
import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from rl.config import TrainingConfig
from rl.training import checkpoint, checkpoint_writer
from rl.training.checkpoint import CheckpointManager, CheckpointState, open_checkpoint
from rl.training.checkpoint_state import host_copy
from rl.training.errors import CheckpointError
from rl.training.parallel_utils import ParallelContext
from tests.training.checkpoint_cases import state_of


@pytest.fixture
def world() -> Iterator[ParallelContext]:
    context = ParallelContext.create(TrainingConfig(device="cpu"))
    yield context
    context.close()


@pytest.fixture
def manager(tmp_path: Path, world: ParallelContext) -> CheckpointManager:
    return CheckpointManager(tmp_path, 2, world, asynchronous=True)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Files are written only once this is set."""
    event, write = threading.Event(), checkpoint_writer.RankPart.write
    monkeypatch.setattr(
        checkpoint_writer.RankPart, "write", lambda self: (event.wait(30), write(self))[1], raising=True
    )
    yield event
    event.set()


def names(run_dir: Path) -> list[str]:
    return sorted(p.name for p in run_dir.iterdir())


def visible(run_dir: Path) -> list[str]:
    return [n for n in names(run_dir) if not n.startswith(".")]


def test_training_goes_on_while_files_are_written_and_changes_nothing_in_them(
    manager: CheckpointManager, tmp_path: Path, gate: threading.Event
) -> None:
    state = state_of(7)
    manager.save(7, state, wait=False)
    state.model["weight"].fill_(-1.0)  # what training does
    state.training["optimizer"]["state"][0]["exp_avg"].fill_(-1.0)
    state.training["episode"] = -1
    state.rank_files["buffer"].fill_(-1)
    manager.poll()
    assert visible(tmp_path) == []  # not written yet, so not committed
    gate.set()
    manager.settle()
    saved = open_checkpoint(tmp_path / "checkpoint-7")
    assert torch.equal(saved.read("model.pt")["weight"], torch.full((2, 3), 7.0))
    training = saved.read("training_state.pt")
    assert training["episode"] == 7 and training["optimizer"]["state"][0]["exp_avg"].tolist() == [7.0, 7.0]
    assert saved.read("buffer_rank0.pt").tolist() == [7, 7, 7, 7]
    assert saved.has("peft_adapter/adapter_model.safetensors")


def test_files_are_byte_for_byte_those_of_a_save_that_waits(world: ParallelContext, tmp_path: Path) -> None:
    hashes = []
    for asynchronous in (False, True):
        place = tmp_path / str(asynchronous)
        place.mkdir()
        manager = CheckpointManager(place, 2, world, asynchronous=asynchronous)
        manager.save(3, state_of(3), wait=False)
        manager.settle()
        hashes.append(open_checkpoint(place).manifest["files"])
    assert hashes[0] == hashes[1] and len(hashes[0]) == 6


def test_a_copy_keeps_types_and_what_shares_memory() -> None:
    weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
    tied = {"a": weight, "b": weight.detach()[1:], "t": weight.detach().t(), "n": (1, [None, {"x": torch.ones(())}])}
    copied = host_copy(tied)
    with torch.no_grad():
        weight.zero_()
    assert isinstance(copied["a"], nn.Parameter) and copied["a"].requires_grad
    assert copied["a"].tolist() == [[0, 1, 2], [3, 4, 5]] and copied["t"].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert copied["n"] == (1, [None, {"x": torch.ones(())}]) and type(copied["n"]) is tuple
    pointers = {copied[k].untyped_storage().data_ptr() for k in "abt"}
    assert len(pointers) == 1 and weight.untyped_storage().data_ptr() not in pointers


def test_a_finished_write_is_committed_at_the_next_boundary(manager: CheckpointManager, tmp_path: Path) -> None:
    manager.save(1, state_of(1), wait=False)
    assert manager._pending is not None
    manager._pending.part.result()
    assert visible(tmp_path) == []  # commits belong to the training thread
    manager.poll()
    assert visible(tmp_path) == ["checkpoint-1"] and open_checkpoint(tmp_path).step == 1


def test_one_save_is_in_flight_at_most_and_the_last_one_waits(
    manager: CheckpointManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    write = checkpoint_writer.RankPart.write
    monkeypatch.setattr(
        checkpoint_writer.RankPart, "write", lambda self: (threads.append(threading.current_thread()), write(self))[1]
    )
    manager.save(1, state_of(1), wait=False)
    manager.save(2, state_of(2), wait=False)
    assert visible(tmp_path) == ["checkpoint-1"]
    manager.save(3, state_of(3), wait=True)
    assert visible(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    assert [t is threading.main_thread() for t in threads] == [False, False, True]


def too_large() -> CheckpointState:
    return CheckpointState(model={"weight": torch.zeros(1 << 18)}, training={})


@pytest.fixture
def small_files() -> Iterator[None]:
    """No file may grow beyond 64 KiB, as on a disk that is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize("surfaces", ["poll", "settle", "save"])
def test_a_failed_write_surfaces_at_the_next_boundary_and_leaves_nothing(
    surfaces: str, manager: CheckpointManager, tmp_path: Path, small_files: None
) -> None:
    manager.save(1, state_of(1))
    manager.save(2, too_large(), wait=False)
    assert manager._pending is not None
    while not manager._pending.part.done:
        threading.Event().wait(0.01)
    act: dict[str, Callable[[], object]] = {
        "poll": manager.poll, "settle": manager.settle, "save": lambda: manager.save(3, state_of(3), wait=False),
    }  # fmt: skip
    with pytest.raises(CheckpointError, match=r"could not save .*checkpoint-2: .*older checkpoints are intact"):
        act[surfaces]()
    assert names(tmp_path) == ["checkpoint-1"]
    manager.settle()  # nothing is left over


def test_a_last_save_is_written_though_the_one_before_it_failed(
    manager: CheckpointManager, tmp_path: Path, small_files: None, caplog: pytest.LogCaptureFixture
) -> None:
    manager.save(2, too_large(), wait=False)
    manager.save(3, state_of(3))  # that of a stop signal
    assert names(tmp_path) == ["checkpoint-3"] and "CHECKPOINT NOT SAVED" in caplog.text


@pytest.mark.parametrize("asynchronous", [False, True])
def test_training_goes_on_without_a_checkpoint_where_that_is_asked_for_and_says_so_loudly(
    asynchronous: bool, world: ParallelContext, tmp_path: Path, small_files: None, caplog: pytest.LogCaptureFixture
) -> None:
    manager = CheckpointManager(tmp_path, 2, world, asynchronous=asynchronous, go_on=True)
    manager.save(1, state_of(1), wait=False)
    with caplog.at_level(logging.ERROR):
        manager.save(2, too_large(), wait=False)
        manager.save(3, state_of(3), wait=False)  # the disk has room again
    assert "CHECKPOINT NOT SAVED, going on without it" in caplog.text and "checkpoint-2" in caplog.text
    with pytest.raises(CheckpointError, match="checkpoint-4"):
        manager.save(4, too_large())  # the last one, or that of a stop signal
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-3"]


def test_a_state_that_does_not_fit_into_memory_twice_is_written_while_training_waits(
    manager: CheckpointManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(checkpoint, "free_bytes", lambda device: 10)
    with caplog.at_level(logging.WARNING):
        manager.save(1, state_of(1), wait=False)
    assert manager._pending is not None and manager._pending.part.done and "no memory for a copy" in caplog.text
    manager.poll()
    assert visible(tmp_path) == ["checkpoint-1"]


@pytest.mark.parametrize("alone", [True, False])
def test_an_error_of_the_run_keeps_the_save_in_flight(manager: CheckpointManager, tmp_path: Path, alone: bool) -> None:
    manager.save(1, state_of(1), wait=False)
    manager.keep_in_flight(alone)
    assert visible(tmp_path) == ["checkpoint-1"]


def test_what_cannot_be_deleted_stops_nothing(
    manager: CheckpointManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        manager.save(step, state_of(step))

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint.shutil, "rmtree", refuse)
    with caplog.at_level(logging.WARNING):
        manager.save(3, state_of(3))
    assert "checkpoint-1 could not be deleted" in caplog.text and visible(tmp_path) == ["checkpoint-2", "checkpoint-3"]
