"""Checkpoints: round trip, crash at every step of the commit, damage, hostile files, retention."""

import json
import logging
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rl.training import checkpoint as ckpt
from rl.training.checkpoint import (
    CheckpointManager,
    CheckpointState,
    load_plain,
    load_strict,
    open_checkpoint,
    save_plain,
)
from rl.training.checkpoint_files import InvalidCheckpointError, manifest_text, safe_member, verify
from rl.training.errors import CheckpointError
from rl.training.parallel_utils import ParallelContext
from tests.helpers.ranks import run_ranks
from tests.training import checkpoint_cases as cases
from tests.training.checkpoint_cases import state_of


@pytest.fixture
def manager(tmp_path: Path, world: ParallelContext) -> CheckpointManager:
    return CheckpointManager(tmp_path, 2, world)


def names(run_dir: Path) -> list[str]:
    return sorted(p.name for p in run_dir.iterdir())


def rehash(directory: Path) -> None:
    """Makes the manifest agree with the files again, as an attacker would."""
    manifest = json.loads((directory / "manifest.json").read_text())
    files = [ckpt.describe(directory, p) for p in directory.rglob("*") if p.is_file() and p.name != "manifest.json"]
    (directory / "manifest.json").write_text(manifest_text(manifest["step"], manifest["world_size"], files, {}))


def test_a_loaded_checkpoint_equals_what_was_saved(manager: CheckpointManager, tmp_path: Path) -> None:
    path = manager.save(7, state_of(7))
    assert sorted(p.relative_to(path).as_posix() for p in path.rglob("*") if p.is_file()) == [
        "buffer_rank0.pt", "manifest.json", "metrics.pt", "model.pt",
        "peft_adapter/adapter_config.json", "peft_adapter/adapter_model.safetensors", "training_state.pt",
    ]  # fmt: skip
    loaded = manager.load()
    assert loaded is not None and loaded.step == 7
    assert torch.equal(loaded.model["weight"], torch.full((2, 3), 7.0))
    assert loaded.training["episode"] == 7 and loaded.metrics == {"loss": 0.125}
    assert loaded.per_rank == {"rank": 0}
    assert torch.equal(loaded.rank_file("buffer"), torch.full((4,), 7))
    assert loaded.saved.adapter_dir == tmp_path / "checkpoint-7" / "peft_adapter"


def test_a_run_without_checkpoints_loads_nothing(manager: CheckpointManager) -> None:
    assert manager.load() is None


def test_the_highest_number_is_the_newest_not_the_latest_file_time(manager: CheckpointManager, tmp_path: Path) -> None:
    manager.save(9, state_of(9))
    manager.save(10, state_of(10))
    os.utime(tmp_path / "checkpoint-9", (2e9, 2e9))
    assert open_checkpoint(tmp_path).step == 10


@pytest.mark.parametrize("point", [p for p in ckpt.FAULT_POINTS if p != "old_set_aside"])
def test_a_kill_at_any_step_of_the_commit_leaves_a_valid_newest_checkpoint(
    point: str, tmp_path: Path, world: ParallelContext
) -> None:
    manager = CheckpointManager(tmp_path, 2, world)
    for step in (1, 2):
        manager.save(step, state_of(step))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["rl.training.checkpoint"])
    process = context.Process(target=cases.save_and_die, args=(tmp_path, 3, point))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    restarted = CheckpointManager(tmp_path, 2, world)
    assert [n for n in names(tmp_path) if n.startswith(".")] == []
    loaded = restarted.load()
    renamed = ckpt.FAULT_POINTS.index(point) >= ckpt.FAULT_POINTS.index("renamed")
    assert loaded is not None and loaded.step == (3 if renamed else 2)
    assert loaded.model["weight"][0, 0] == loaded.step and loaded.training["episode"] == loaded.step
    next_step = loaded.step + 1
    restarted.save(next_step, state_of(next_step))
    assert names(tmp_path) == [f"checkpoint-{next_step - 1}", f"checkpoint-{next_step}"]


@pytest.mark.parametrize("name", ["model.pt", "training_state.pt", "manifest.json", "peft_adapter/adapter_config.json"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "remove"])
def test_damage_to_any_file_falls_back_to_the_previous_checkpoint_and_says_so(
    name: str, damage: str, manager: CheckpointManager, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    manager.save(1, state_of(1))
    file = manager.save(2, state_of(2)) / name
    data = bytearray(file.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    file.write_bytes(data if damage == "flip" else data[:-1])
    if damage == "remove":
        file.unlink()
    with caplog.at_level(logging.WARNING):
        loaded = manager.load()
    assert loaded is not None and loaded.step == 1
    assert f"checkpoint-2/{name}" in caplog.text and "continuing from the older" in caplog.text
    manager.save(2, state_of(2))  # the number of the damaged one is free again
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_single_bit_of_a_checkpoint_can_change_unnoticed(
    manager: CheckpointManager, tmp_path: Path, data: st.DataObject
) -> None:
    path = tmp_path / "checkpoint-1"
    if not path.exists():
        manager.save(1, state_of(1))
    file = data.draw(st.sampled_from(sorted(p for p in path.rglob("*") if p.is_file())))
    original = file.read_bytes()
    bit = data.draw(st.integers(0, len(original) * 8 - 1))
    changed = bytearray(original)
    changed[bit // 8] ^= 1 << bit % 8
    file.write_bytes(changed)
    try:
        with pytest.raises(ValueError):
            verify(path)
    finally:
        file.write_bytes(original)


def test_a_run_whose_checkpoints_are_all_damaged_is_an_error(manager: CheckpointManager, tmp_path: Path) -> None:
    (manager.save(1, state_of(1)) / "model.pt").unlink()
    with pytest.raises(CheckpointError, match=r"no valid checkpoint.*model\.pt is missing.*--overwrite"):
        manager.load()


def test_older_checkpoints_are_pruned_only_when_enough_others_verify(
    manager: CheckpointManager, tmp_path: Path
) -> None:
    for step in (1, 2, 3):
        manager.save(step, state_of(step))
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    (tmp_path / "checkpoint-3" / "model.pt").write_bytes(b"damaged")
    manager._verified.clear()  # as after a restart
    manager.save(4, state_of(4))
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3", "checkpoint-4"]


def test_fewer_than_two_kept_checkpoints_are_refused(tmp_path: Path, world: ParallelContext) -> None:
    with pytest.raises(ValueError, match="keep_checkpoints is 1"):
        CheckpointManager(tmp_path, 1, world)


def test_resuming_an_older_checkpoint_frees_the_newer_numbers_but_deletes_them_only_after_a_save(
    manager: CheckpointManager, tmp_path: Path
) -> None:
    for step in (1, 2):
        manager.save(step, state_of(step))
    loaded = manager.load(tmp_path / "checkpoint-1")
    assert loaded is not None and loaded.step == 1
    aside = [n for n in names(tmp_path) if n.startswith(".superseded-checkpoint-2-")]
    assert len(aside) == 1 and "checkpoint-2" not in names(tmp_path)
    manager.save(2, state_of(20))
    assert names(tmp_path) == ["checkpoint-1", "checkpoint-2"]
    assert open_checkpoint(tmp_path).read("training_state.pt")["episode"] == 20


def test_an_existing_number_is_never_written_over(manager: CheckpointManager, tmp_path: Path) -> None:
    manager.save(1, state_of(1))
    with pytest.raises(CheckpointError, match="exists already"):
        manager.save(1, state_of(99))
    (tmp_path / "checkpoint-2").mkdir()  # a rename onto an empty directory would succeed
    with pytest.raises(CheckpointError, match="exists already"):
        manager.save(2, state_of(2))
    assert open_checkpoint(tmp_path / "checkpoint-1").read("training_state.pt")["episode"] == 1


def test_a_full_disk_is_noticed_before_anything_is_written(
    manager: CheckpointManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.save(1, state_of(1))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(100, 90, 10))
    with pytest.raises(CheckpointError, match=r"\d+ bytes needed, 10 free .*older checkpoints are intact"):
        manager.save(2, state_of(2))
    assert names(tmp_path) == ["checkpoint-1"]


def test_a_failing_write_leaves_no_trace_and_keeps_the_old_checkpoint(
    manager: CheckpointManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.save(1, state_of(1))

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    broken = state_of(2)
    broken.peft_adapter = no_space
    with pytest.raises(CheckpointError, match="No space left on device"):
        manager.save(2, broken)
    assert names(tmp_path) == ["checkpoint-1"]


def test_a_write_that_stops_halfway_leaves_no_trace(manager: CheckpointManager, tmp_path: Path) -> None:
    """torch.save raises RuntimeError, not OSError, and leaves a stub behind when the file may not grow."""
    manager.save(1, state_of(1))
    large = CheckpointState(model={"weight": torch.zeros(1 << 18)}, training={})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(
            CheckpointError, match=r"could not save .*checkpoint-2: rank 0: .*older checkpoints are intact"
        ):
            manager.save(2, large)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(tmp_path) == ["checkpoint-1"]
    assert manager.save(2, large).is_dir()


def test_files_are_synced_before_the_rename_and_the_parent_after_it(
    manager: CheckpointManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    sync, rename = os.fsync, os.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append(Path(os.readlink(f"/proc/self/fd/{fd}")).name), sync(fd)))
    monkeypatch.setattr(os, "rename", lambda a, b: (order.append(f"rename {Path(b).name}"), rename(a, b)))
    manager.save(1, state_of(1))
    hidden = next(n for n in order if n.startswith(".tmp-checkpoint-1-"))
    assert order == [
        "model.pt", "adapter_config.json", "adapter_model.safetensors", "peft_adapter", "training_state.pt",
        "metrics.pt", "buffer_rank0.pt", "manifest.json", hidden, "rename checkpoint-1", tmp_path.name,
    ]  # fmt: skip


class Canary:
    """Unpickling it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("name", ["model.pt", "training_state.pt", "metrics.pt"])
@pytest.mark.parametrize("container", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_never_run(
    name: str, container: str, manager: CheckpointManager, tmp_path: Path
) -> None:
    path = manager.save(1, state_of(1))
    canary = tmp_path / "executed"
    if container == "torch":
        torch.save({"weight": Canary(canary)}, path / name)
    else:
        (path / name).write_bytes(pickle.dumps(Canary(canary), protocol=2))
    rehash(path)
    with pytest.raises(CheckpointError, match=f"{name} is damaged or holds more than plain data"):
        manager.load()
    assert not canary.exists()


@pytest.mark.parametrize("entry", ["../outside.pt", "/etc/passwd", "a/../../b", "a\0b", "", "x" * 300, "a\\b"])
def test_a_manifest_cannot_name_files_outside_the_checkpoint(entry: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidCheckpointError, match="unsafe path"):
        safe_member(tmp_path, entry)


def test_symbolic_links_are_refused(manager: CheckpointManager, tmp_path: Path) -> None:
    path = manager.save(1, state_of(1))
    shutil.move(path / "model.pt", tmp_path / "elsewhere.pt")
    (path / "model.pt").symlink_to(tmp_path / "elsewhere.pt")
    with pytest.raises(InvalidCheckpointError, match=r"model\.pt is a symbolic link"):
        verify(path)
    (tmp_path / "checkpoint-9").symlink_to(path)
    assert ckpt.checkpoint_dirs(tmp_path) == [path]


def test_a_newer_format_is_refused_with_the_remedy(
    manager: CheckpointManager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager.save(1, state_of(1))
    monkeypatch.setattr("rl.training.checkpoint_files.FORMAT_VERSION", 2)
    manager.save(2, state_of(2))
    monkeypatch.setattr("rl.training.checkpoint_files.FORMAT_VERSION", 1)
    with pytest.raises(CheckpointError, match="format version 2, this program reads up to 1: update the program"):
        manager.load()


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (np.float64(1.0), r"training\.x is a numpy\.float64"),
        (np.zeros(2), r"training\.x is a numpy\.ndarray"),
        (Path("a"), r"training\.x is a pathlib"),
        (defaultdict(list), r"training\.x is a collections\.defaultdict"),
        ([0, {"y": {1: object()}}], r"training\.x\[1\]\.y\.1 is a builtins\.object"),
    ],
)
def test_state_that_could_not_be_loaded_back_is_refused_when_saving(
    value: object, where: str, manager: CheckpointManager, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=where):
        manager.save(1, CheckpointState(model={}, training={"x": value}))
    assert names(tmp_path) == []


def test_every_type_accepted_when_saving_is_accepted_when_loading(tmp_path: Path) -> None:
    value = {
        "scalars": [True, 1, 2**70, 0.5, 1j, "text", b"bytes", None],
        "torch": [torch.float32, torch.device("cpu"), torch.Size([1]), torch.nn.Parameter(torch.ones(1))],
        "containers": (1, [2], {3}, {"k": 4}),
        "numpy": dict(np.random.default_rng(0).bit_generator.state),
    }
    save_plain(value, tmp_path / "value.pt")
    loaded = load_plain(tmp_path / "value.pt")
    assert {k: loaded[k] for k in ("scalars", "containers", "numpy")} == {
        k: value[k] for k in ("scalars", "containers", "numpy")
    }


def test_another_architecture_is_refused_key_by_key_and_changes_nothing() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    before = {k: v.clone() for k, v in module.state_dict().items()}
    foreign = {
        "0.weight": torch.zeros(3, 5),
        "0.bias": torch.zeros(3),
        "extra": torch.zeros(1),
        "1.weight": torch.zeros(1, 3),
    }
    with pytest.raises(ValueError) as caught:
        load_strict(module, foreign, "checkpoint-1/model.pt")
    assert "1 missing (1.bias)" in str(caught.value) and "1 unexpected (extra)" in str(caught.value)
    assert "1 of another shape (0.weight (3, 5) instead of (3, 2))" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in module.state_dict().items())


def test_opening_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="checkpoint-5 does not exist"):
        open_checkpoint(tmp_path / "checkpoint-5")
    with pytest.raises(ValueError, match="no directory checkpoint-N"):
        open_checkpoint(tmp_path)


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    out = tmp_path_factory.mktemp("ranks")
    (out / "run").mkdir()
    return out / "run", run_ranks(cases.two_ranks, 2, out, run_dir=str(out / "run"))


def test_each_rank_gets_its_own_data_back(two_ranks: tuple[Path, list[dict]]) -> None:
    _, (first, second) = two_ranks
    assert (first["step"], first["weight"], second["step"], second["weight"]) == (3, 18.0, 3, 18.0)  # 6 elements of 3
    assert (first["rank"], first["buffer"]) == (0, [3, 3, 3, 3])
    assert (second["rank"], second["buffer"]) == (1, [103, 103, 103, 103])


def test_a_failure_of_one_rank_abandons_the_checkpoint_on_all(two_ranks: tuple[Path, list[dict]]) -> None:
    _, (first, second) = two_ranks
    assert first["message"] == second["message"]
    assert "rank 1" in first["message"] and "per_rank.bad is a pathlib" in first["message"]
    assert first["names_after_failure"] == ["checkpoint-1"]


def test_another_number_of_processes_loads_the_model_and_says_that_streams_start_anew(
    two_ranks: tuple[Path, list[dict]], world: ParallelContext, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        loaded = CheckpointManager(two_ranks[0], 2, world).load()
    assert loaded is not None and loaded.step == 3 and loaded.per_rank is None and loaded.rank_file("buffer") is None
    assert "written by 2 processes, now there are 1" in caplog.text
