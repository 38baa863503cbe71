"""Checkpoints that survive a crash at any line. The only caller of torch.save and torch.load in `rl`.

    checkpoint-{n}/ model.pt  training_state.pt  metrics.pt  peft_adapter/  {name}_rank{r}.pt  base.json  manifest.json

Writing: everything goes to a hidden `.tmp-checkpoint-n-*` directory of the run, each file is fsynced, the manifest
(sizes and sha256) comes last, the directory is renamed and its parent fsynced; only then are older checkpoints pruned.
All ranks must see the run directory (a shared file system on several nodes).
Reading: the newest checkpoint that verifies wins; what was wrong with newer ones is said loudly.
"""

import logging
import os
import platform
import shutil
import signal
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rl.training.atomic_io import atomic_path, fsync_dir, fsync_file
from rl.training.checkpoint_files import (
    BASE,
    MANIFEST,
    FileEntry,
    InvalidCheckpointError,
    ReleasedBase,
    checkpoint_dirs,
    describe,
    manifest_text,
    step_of,
    verify,
)
from rl.training.checkpoint_state import CheckpointState, load_strict, plain_bytes
from rl.training.errors import CheckpointError
from rl.training.parallel_utils import ParallelContext

__all__ = [
    "FAULT_POINTS",
    "CheckpointManager",
    "CheckpointState",
    "LoadedCheckpoint",
    "SavedCheckpoint",
    "load_plain",
    "load_strict",
    "open_checkpoint",
    "save_plain",
]

log = logging.getLogger(__name__)

# Steps of `save` at which a test may kill the process (environment variable FAULT_POINT).
FAULT_POINTS = (
    "tmp_dir_made",
    "model_written",
    "peft_adapter_written",
    "training_state_written",
    "metrics_written",
    "rank_files_written",
    "manifest_written",
    "tmp_dir_synced",
    "renamed",
    "committed",
    "trash_renamed",
    "pruned",
)
_HIDDEN = (".tmp-checkpoint-", ".trash-")  # leftovers of a crash, removed at start
SUPERSEDED = ".superseded-"  # what a resumed or overwriting run replaces; removed after its first own checkpoint


def _fault_point(name: str) -> None:
    assert name in FAULT_POINTS, name
    if os.environ.get("FAULT_POINT") == name:
        os.kill(os.getpid(), signal.SIGKILL)


def _save(value: Any, path: Path) -> None:
    with path.open("wb") as f:
        torch.save(value, f)
        f.flush()
        os.fsync(f.fileno())


def save_plain(value: Any, path: Path) -> None:
    """Atomic single file of tensors and plain data outside a checkpoint (a batch to inspect, exported weights)."""
    plain_bytes(value, path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        _save(value, temporary)


def load_plain(path: Path, map_location: torch.device | str = "cpu") -> Any:
    """Undoes `save_plain`; ValueError when the file is missing, damaged or holds more than plain data."""
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    return _load(path, map_location)


def _load(path: Path, map_location: torch.device | str) -> Any:
    """Never falls back to full unpickling: what the restricted loader refuses stays unread."""
    try:
        return torch.load(path, map_location=map_location, weights_only=True)
    except Exception as e:  # torch raises pickle, zip and runtime errors here
        reason = str(e).strip().splitlines()[0] if str(e).strip() else type(e).__name__
        raise InvalidCheckpointError(f"{path} is damaged or holds more than plain data, refused: {reason}") from e


@dataclass(frozen=True)
class SavedCheckpoint:
    """A verified checkpoint on disk; its files are read on demand."""

    path: Path
    manifest: dict[str, Any]

    @property
    def step(self) -> int:
        return self.manifest["step"]

    @property
    def adapter_dir(self) -> Path | None:
        """Directory in PEFT's format, None when no adapter was saved."""
        return self.path / "peft_adapter" if self.has("peft_adapter/adapter_config.json") else None

    @property
    def base(self) -> ReleasedBase | None:
        """The published files that model.pt leaves entries to; None when it is complete."""
        return ReleasedBase.from_json((self.path / BASE).read_text(encoding="utf-8")) if self.has(BASE) else None

    def has(self, name: str) -> bool:
        return any(f["name"] == name for f in self.manifest["files"])

    def read(self, name: str, map_location: torch.device | str = "cpu") -> Any:
        """Object of one listed file, e.g. "model.pt", "training_state.pt", "metrics.pt", "buffer_rank0.pt"."""
        if not self.has(name):
            raise InvalidCheckpointError(f"{self.path} holds no {name}")
        return _load(self.path / name, map_location)


@dataclass(frozen=True)
class LoadedCheckpoint:
    """What `CheckpointManager.load` gives to one rank."""

    saved: SavedCheckpoint
    model: dict[str, torch.Tensor]
    training: dict[str, Any]
    metrics: dict[str, Any]
    per_rank: dict[str, Any] | None  # None when the number of processes changed: derive streams from the seed anew
    rank: int

    @property
    def step(self) -> int:
        return self.saved.step

    def rank_file(self, name: str) -> Any:
        """This rank's object of `CheckpointState.rank_files`, None when the number of processes changed."""
        return None if self.per_rank is None else self.saved.read(f"{name}_rank{self.rank}.pt")


def _newest_valid(run_dir: Path) -> tuple[SavedCheckpoint | None, list[str]]:
    """The newest checkpoint that verifies, and what was wrong with the ones passed over."""
    complaints: list[str] = []
    for directory in checkpoint_dirs(run_dir):
        try:
            return SavedCheckpoint(directory, verify(directory)), complaints
        except InvalidCheckpointError as e:
            complaints.append(str(e))
    return None, complaints


def open_checkpoint(path: Path) -> SavedCheckpoint:
    """A verified checkpoint for reading; `path` is a checkpoint-n or a run directory (its newest valid one).

    Raises ValueError naming the damaged file, or that there is none.
    """
    path = Path(path).expanduser().resolve()
    if step_of(path) is not None:
        if not path.is_dir():
            raise ValueError(f"checkpoint {path} does not exist")
        return SavedCheckpoint(path, verify(path))
    found, complaints = _newest_valid(path)
    if found is None:
        what = f"no valid checkpoint: {'; '.join(complaints)}" if complaints else "no directory checkpoint-N"
        raise ValueError(f"{path} holds {what}; name a run directory or one of its checkpoints")
    for c in complaints:
        log.warning("damaged checkpoint passed over, using %s instead: %s", found.path.name, c)
    return found


class CheckpointManager:
    """Saves, verifies, prunes and finds the checkpoints of one run. Every method is collective."""

    def __init__(self, run_dir: Path, keep: int, world: ParallelContext, extra: dict[str, Any] | None = None) -> None:
        """`extra` (JSON data: config fingerprint, code commit) goes into every manifest. Removes crash leftovers."""
        if keep < 2:
            raise ValueError(f"training.keep_checkpoints is {keep}; keep at least 2, one may turn out damaged")
        self._run_dir, self._keep, self._world = Path(run_dir), keep, world
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        self._extra = {"versions": versions, **(extra or {})}
        self._verified: set[Path] = set()  # in this process, so that pruning need not hash old files again
        if world.is_main and self._run_dir.is_dir():
            for leftover in self._run_dir.iterdir():
                if leftover.name.startswith(_HIDDEN) and leftover.is_dir() and not leftover.is_symlink():
                    log.info("removing %s, left over from an interrupted run", leftover)
                    shutil.rmtree(leftover)
        world.barrier()

    # --- saving ----------------------------------------------------------------------------------------------------

    def save(self, step: int, state: CheckpointState, replace: bool = False) -> Path:
        """Writes checkpoint-{step}; on any failure of any rank all raise CheckpointError and older ones are intact.

        `replace`: an existing checkpoint-{step} (of a run that was stopped within that step) gives way to this one.
        """
        target = self._run_dir / f"checkpoint-{step}"
        tmp = self._run_dir / f".tmp-checkpoint-{step}-{uuid.uuid4().hex[:8]}"
        tmp = self._world.broadcast_object(tmp)
        try:
            self._everywhere(
                lambda: self._sizes(state), then=lambda sizes: self._begin(target, tmp, sum(sizes), replace)
            )
            per_rank = self._world.gather_objects(state.per_rank)
            self._everywhere(
                lambda: self._write_part(tmp, state, per_rank),
                then=lambda parts: self._commit(step, target, tmp, [f for part in parts for f in part], replace),
            )
        except CheckpointError as e:
            if self._world.is_main:
                shutil.rmtree(tmp, ignore_errors=True)
            self._world.barrier()
            raise CheckpointError(f"could not save {target}: {e}; older checkpoints are intact") from e
        if self._world.is_main:
            self._prune()
        self._world.barrier()
        return target

    def _everywhere(self, own: Callable[[], Any], then: Callable[[list[Any]], None]) -> None:
        """Runs `own` on all ranks, then `then` with their results on rank 0; one failure is everybody's failure."""
        result, error = None, None
        try:
            result = own()
        except Exception as e:  # noqa: BLE001 - raised again below, on every rank
            error = f"{type(e).__name__}: {e}"
        reports = self._world.gather_objects((result, error))
        errors = [f"rank {r}: {e}" for r, (_, e) in enumerate(reports) if e is not None]
        if not errors and self._world.is_main:
            try:
                then([r for r, _ in reports])
            except Exception as e:  # noqa: BLE001 - raised again below, on every rank
                errors = [f"{type(e).__name__}: {e}"]
        errors = self._world.broadcast_object(errors)
        if errors:
            raise CheckpointError("; ".join(errors))

    def _sizes(self, state: CheckpointState) -> int:
        """Bytes this rank will write; refuses state that could not be loaded back."""
        own = {"per_rank": state.per_rank, "rank_files": state.rank_files}
        if self._world.is_main:
            own |= {"model": state.stored_model, "training": state.training, "metrics": state.metrics}
        return sum(plain_bytes(v, k) for k, v in own.items())

    def _begin(self, target: Path, tmp: Path, size: int, replace: bool) -> None:
        if target.exists() and not replace:
            raise FileExistsError(f"{target} exists already")
        previous = next(iter(checkpoint_dirs(self._run_dir)), None)
        if previous is not None:
            size = max(size, sum(f.stat().st_size for f in previous.rglob("*") if f.is_file()))
        needed = int(size * 1.2) + (1 << 20)
        free = shutil.disk_usage(self._run_dir).free
        if free < needed:
            raise OSError(f"{needed} bytes needed, {free} free on the disk of {self._run_dir}; free space")
        tmp.mkdir()
        _fault_point("tmp_dir_made")

    def _write_part(self, tmp: Path, state: CheckpointState, per_rank: list[dict[str, Any]]) -> list[FileEntry]:
        """Files of this rank, fsynced, as manifest entries."""
        written = []
        if self._world.is_main:
            _save(state.stored_model, tmp / "model.pt")
            if state.base is not None:
                (tmp / BASE).write_text(state.base.to_json(), encoding="utf-8")
                fsync_file(tmp / BASE)
                written.append(tmp / BASE)
            _fault_point("model_written")
            if state.peft_adapter is not None:
                (tmp / "peft_adapter").mkdir()
                state.peft_adapter(tmp / "peft_adapter")
                written += sorted(f for f in (tmp / "peft_adapter").rglob("*") if f.is_file())
                for f in written:
                    fsync_file(f)
                fsync_dir(tmp / "peft_adapter")
                _fault_point("peft_adapter_written")
            _save({**state.training, "per_rank": per_rank}, tmp / "training_state.pt")
            _fault_point("training_state_written")
            _save(state.metrics, tmp / "metrics.pt")
            _fault_point("metrics_written")
            written += [tmp / "model.pt", tmp / "training_state.pt", tmp / "metrics.pt"]
        for name, value in state.rank_files.items():
            assert name.isidentifier(), name
            path = tmp / f"{name}_rank{self._world.rank}.pt"
            _save(value, path)
            written.append(path)
        _fault_point("rank_files_written")
        return [describe(tmp, f) for f in written]

    def _commit(self, step: int, target: Path, tmp: Path, files: list[FileEntry], replace: bool) -> None:
        for f in files:
            if not (tmp / f.name).is_file():
                raise FileNotFoundError(f"{f.name} of another rank is not visible here: share the run directory")
        manifest = tmp / MANIFEST
        manifest.write_text(manifest_text(step, self._world.world_size, files, self._extra), encoding="utf-8")
        fsync_file(manifest)
        _fault_point("manifest_written")
        fsync_dir(tmp)
        _fault_point("tmp_dir_synced")
        if replace and target.exists():
            os.rename(target, target.with_name(f"{SUPERSEDED}{target.name}-{uuid.uuid4().hex[:8]}"))
        if target.exists():  # rename onto an empty directory would succeed silently
            raise FileExistsError(f"{target} appeared meanwhile")
        os.rename(tmp, target)
        _fault_point("renamed")
        fsync_dir(self._run_dir)
        _fault_point("committed")
        self._verified.add(target)

    def _prune(self) -> None:
        """Keeps the newest `keep` checkpoints that verify; damaged ones are neither counted nor deleted."""
        good = [d for d in checkpoint_dirs(self._run_dir) if self._is_valid(d)]
        superseded = [d for d in self._run_dir.iterdir() if d.name.startswith(SUPERSEDED) and not d.is_symlink()]
        for old in [*good[self._keep :], *superseded]:
            trash = self._run_dir / f".trash-{uuid.uuid4().hex[:8]}"
            os.rename(old, trash)
            _fault_point("trash_renamed")
            shutil.rmtree(trash)
        _fault_point("pruned")

    def _is_valid(self, directory: Path) -> bool:
        if directory not in self._verified:
            try:
                verify(directory)
            except ValueError as e:
                log.warning("not counting %s among the kept checkpoints: %s", directory.name, e)
                return False
            self._verified.add(directory)
        return True

    # --- loading ---------------------------------------------------------------------------------------------------

    def load(self, path: Path | None = None) -> LoadedCheckpoint | None:
        """Checkpoint to continue from: `path`, or the newest valid one of the run (None when it has none at all).

        Newer checkpoints of this run are set aside (hidden, deleted after the next save), so their numbers are free
        again. Raises CheckpointError on all ranks when nothing valid is left or a file is refused.
        """
        found: list[SavedCheckpoint | None] = [None]
        self._everywhere(lambda: None, then=lambda _: found.__setitem__(0, self._choose(path)))
        saved = self._world.broadcast_object(found[0])
        if saved is None:
            return None
        parts: list[Any] = []
        self._everywhere(lambda: parts.extend(self._read_all(saved)), then=lambda _: self._set_newer_aside(saved))
        model, training, metrics = parts
        per_rank = training.pop("per_rank")
        if len(per_rank) != self._world.world_size and self._world.is_main:
            log.warning(
                "%s was written by %d processes, now there are %d: random streams and environments start anew from "
                "(seed, rank, step)", saved.path.name, len(per_rank), self._world.world_size,
            )  # fmt: skip
        own = per_rank[self._world.rank] if len(per_rank) == self._world.world_size else None
        return LoadedCheckpoint(saved, model, training, metrics, own, self._world.rank)

    def _choose(self, path: Path | None) -> SavedCheckpoint | None:
        if path is not None:
            return open_checkpoint(path)
        found, complaints = _newest_valid(self._run_dir)
        for c in complaints:
            log.warning("DAMAGED CHECKPOINT passed over: %s", c)
        if found is None and complaints:
            raise ValueError(f"{self._run_dir} has no valid checkpoint ({complaints[0]}); start anew with --overwrite")
        if complaints and found is not None:
            log.warning("continuing from the older %s", found.path)
        return found

    def _read_all(self, saved: SavedCheckpoint) -> list[Any]:
        return [saved.read(name, "cpu") for name in ("model.pt", "training_state.pt", "metrics.pt")]

    def _set_newer_aside(self, saved: SavedCheckpoint) -> None:
        self._verified.add(saved.path)
        if saved.path.parent != self._run_dir.resolve():
            return
        for directory in checkpoint_dirs(self._run_dir):
            step = step_of(directory)
            assert step is not None
            if step > saved.step:
                aside = directory.with_name(f"{SUPERSEDED}{directory.name}-{uuid.uuid4().hex[:8]}")
                os.rename(directory, aside)
                log.warning("%s is newer than the resumed step: set aside until the next save", directory.name)
        fsync_dir(self._run_dir)
