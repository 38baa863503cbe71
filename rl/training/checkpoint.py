"""Checkpoints that survive a crash at any line. Only these checkpoint files call torch.save and torch.load in `rl`.

    checkpoint-{n}/ model.pt  training_state.pt  metrics.pt  peft_adapter/  {name}_rank{r}.pt  base.json  manifest.json

Writing: everything goes to a hidden `.tmp-checkpoint-n-*` directory of the run, each file is fsynced, the manifest
(sizes and sha256) comes last, the directory is renamed and its parent fsynced; only then are older checkpoints pruned.
With `asynchronous` the files are written from a copy while training goes on; copying and committing stay in the
training thread, where the ranks agree. All ranks must see the run directory (a shared file system on several nodes).
Reading: the newest checkpoint that verifies wins; what was wrong with newer ones is said loudly.
"""

import logging
import os
import platform
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from rl.data.free_memory import free_bytes
from rl.training.atomic_io import fsync_dir, fsync_file
from rl.training.checkpoint_files import (
    MANIFEST,
    REPLACED,
    FileEntry,
    checkpoint_dirs,
    describe,
    manifest_text,
    step_of,
    verify,
)
from rl.training.checkpoint_reader import LoadedCheckpoint, SavedCheckpoint, load_plain, newest_valid, open_checkpoint
from rl.training.checkpoint_state import CheckpointState, load_strict, plain_bytes
from rl.training.checkpoint_writer import FAULT_POINTS, RankPart, Task, fault_point, save_plain
from rl.training.errors import CheckpointError
from rl.training.parallel_utils import ParallelContext

__all__ = [
    "FAULT_POINTS",
    "CheckpointManager",
    "CheckpointState",
    "LoadedCheckpoint",
    "SavedCheckpoint",
    "describe",
    "load_plain",
    "load_strict",
    "open_checkpoint",
    "save_plain",
]

log = logging.getLogger(__name__)

_HIDDEN = (".tmp-checkpoint-", ".trash-")  # leftovers of a crash, removed at start
SUPERSEDED = ".superseded-"  # what a resumed or overwriting run replaces; removed after its first own checkpoint
LONG_SAVE_S = 15.0  # half of what launchers leave between SIGTERM and SIGKILL


@dataclass
class _Pending:
    """A save whose files are being written."""

    step: int
    target: Path
    tmp: Path
    replace: bool
    part: Task[list[FileEntry]]  # of this rank
    blocked: float  # seconds that training waited so far


class CheckpointManager:
    """Saves, verifies, prunes and finds the checkpoints of one run. Every method is collective."""

    def __init__(
        self, run_dir: Path, keep: int, world: ParallelContext, extra: dict[str, Any] | None = None,
        asynchronous: bool = False, go_on: bool = False,
    ) -> None:  # fmt: skip
        """`extra` (JSON data: config fingerprint, code commit) goes into every manifest. Removes crash leftovers.

        `asynchronous`, `go_on`: see `save`.
        """
        if keep < 2:
            raise ValueError(f"training.keep_checkpoints is {keep}; keep at least 2, one may turn out damaged")
        self._run_dir, self._keep, self._world, self._go_on = Path(run_dir), keep, world, go_on
        self._asynchronous = asynchronous
        versions = {"torch": torch.__version__, "python": platform.python_version()}
        self._extra = {"versions": versions, **(extra or {})}
        self._verified: set[Path] = set()  # in this process, so that pruning need not hash old files again
        self._pending: _Pending | None = None
        if world.is_main and self._run_dir.is_dir():
            self._clean_up()
        world.barrier()

    def _clean_up(self) -> None:
        counted = checkpoint_dirs(self._run_dir)
        for leftover in self._run_dir.iterdir():
            replaced = leftover.name.startswith(REPLACED) and leftover not in counted
            if (replaced or leftover.name.startswith(_HIDDEN)) and leftover.is_dir() and not leftover.is_symlink():
                log.info("removing %s, left over from an interrupted run", leftover)
                shutil.rmtree(leftover)

    # --- saving ----------------------------------------------------------------------------------------------------

    def save(self, step: int, state: CheckpointState, replace: bool = False, wait: bool = True) -> Path:
        """Writes checkpoint-{step}; on any failure of any rank all raise CheckpointError and older ones are intact.

        `replace`: an existing checkpoint-{step} (of a run that was stopped within that step) gives way to this one.
        `wait` False: with `asynchronous` returns as soon as the state is copied, and a later `poll`, `settle` or
        `save` commits it or raises; with `go_on` a failure is only logged.
        """
        with self._tolerating(wait or self._go_on):  # the one before; a last one replaces it
            self.settle()
        start = time.monotonic()
        target = self._run_dir / f"checkpoint-{step}"
        with self._tolerating(self._go_on and not wait):
            tmp = self._world.broadcast_object(self._run_dir / f".tmp-checkpoint-{step}-{uuid.uuid4().hex[:8]}")
            part = self._write(target, tmp, state, replace, wait)
            self._pending = _Pending(step, target, tmp, replace, part, time.monotonic() - start)
            if wait or not self._asynchronous:
                self.settle()
        return target

    def _write(
        self, target: Path, tmp: Path, state: CheckpointState, replace: bool, wait: bool
    ) -> Task[list[FileEntry]]:
        """Begins to write this rank's files."""
        started: list[Task[list[FileEntry]]] = []
        try:
            self._everywhere(
                lambda: self._sizes(state), then=lambda sizes: self._begin(target, tmp, sum(sizes), replace)
            )
            part = RankPart(tmp, self._world.rank, state, self._world.gather_objects(state.per_rank))
            self._everywhere(lambda: started.append(self._start(part, wait)), then=lambda _: None)
        except CheckpointError as e:
            for task in started:  # another rank failed to begin
                task.wait()
            self._give_up(target, tmp, e)
        return started[0]

    @contextmanager
    def _tolerating(self, allowed: bool) -> Iterator[None]:
        try:
            yield
        except CheckpointError as e:
            if not allowed:
                raise
            log.error("CHECKPOINT NOT SAVED, going on without it: %s", e)

    def poll(self) -> None:
        """Commits the save in flight if every rank has written its files by now; costs one reduction, else nothing."""
        if self._pending is not None and self._world.all_true(self._pending.part.done):
            with self._tolerating(self._go_on):
                self.settle()

    def settle(self) -> None:
        """Waits for the save in flight and commits it; nothing when there is none."""
        pending, self._pending = self._pending, None
        if pending is None:
            return
        start, target, tmp = time.monotonic(), pending.target, pending.tmp
        try:
            self._everywhere(
                pending.part.result,
                then=lambda parts: self._commit(pending, [f for part in parts for f in part]),
            )
        except CheckpointError as e:
            self._give_up(target, tmp, e)
        if self._world.is_main:
            self._prune()
        self._world.barrier()
        blocked = pending.blocked + time.monotonic() - start
        log.info("saved %s (training waited %.2f s, files took %.2f s)", target, blocked, pending.part.seconds)
        if pending.part.seconds > LONG_SAVE_S:
            log.warning(
                "writing a checkpoint takes %.0f s; a stop signal needs as long, so ask your scheduler for a longer "
                "notice than that", pending.part.seconds,
            )  # fmt: skip

    def keep_in_flight(self, alone: bool) -> None:
        """After an error of the run: commits the save in flight, where that is possible. `alone`: of this rank only,
        so nothing may be agreed with others."""
        if alone and self._world.world_size > 1:
            return
        with self._tolerating(True):
            self.settle()

    def _give_up(self, target: Path, tmp: Path, error: CheckpointError) -> NoReturn:
        if self._world.is_main:
            shutil.rmtree(tmp, ignore_errors=True)
        self._world.barrier()
        raise CheckpointError(f"could not save {target}: {error}; older checkpoints are intact") from error

    def _start(self, part: RankPart, wait: bool) -> Task[list[FileEntry]]:
        """Writes this rank's part: at once, or from a copy beside training."""
        part.write_adapter()
        background = self._asynchronous and not wait
        if background and not self._fits_twice(part.state):
            log.warning("no memory for a copy of the state: training waits for checkpoint %s", part.tmp.name)
            background = False
        if background:
            part = RankPart(part.tmp, part.rank, part.state.host_copy(self._world.is_main), part.per_rank)
        fault_point("state_copied")

        def write() -> list[FileEntry]:
            written = part.write()
            if self._world.is_main:  # now rather than when pruning, which training waits for
                for directory in checkpoint_dirs(self._run_dir):
                    self._is_valid(directory)
            return written

        return Task(write, background)

    def _fits_twice(self, state: CheckpointState) -> bool:
        local_ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        return self._sizes(state) * local_ranks < free_bytes(torch.device("cpu")) // 2

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
        fault_point("tmp_dir_made")

    def _commit(self, pending: _Pending, files: list[FileEntry]) -> None:
        target, tmp = pending.target, pending.tmp
        for f in files:
            if not (tmp / f.name).is_file():
                raise FileNotFoundError(f"{f.name} of another rank is not visible here: share the run directory")
        manifest = tmp / MANIFEST
        manifest.write_text(manifest_text(pending.step, self._world.world_size, files, self._extra), encoding="utf-8")
        fsync_file(manifest)
        fault_point("manifest_written")
        fsync_dir(tmp)
        fault_point("tmp_dir_synced")
        if pending.replace and target.exists():  # until the next rename it stands in for itself under that name
            os.rename(target, target.with_name(f"{REPLACED}{target.name}"))
            fault_point("old_set_aside")
        if target.exists():  # rename onto an empty directory would succeed silently
            raise FileExistsError(f"{target} appeared meanwhile")
        os.rename(tmp, target)
        fault_point("renamed")
        fsync_dir(self._run_dir)
        fault_point("committed")
        self._verified.add(target)

    def _prune(self) -> None:
        """Keeps the newest `keep` checkpoints that verify; damaged ones are neither counted nor deleted. What cannot
        be deleted is left for the next time."""
        good = [d for d in checkpoint_dirs(self._run_dir) if self._is_valid(d)]
        hidden = [d for d in self._run_dir.iterdir() if d.name.startswith((SUPERSEDED, REPLACED))]
        given_up = [d for d in hidden if not d.is_symlink() and d not in good[: self._keep]]
        for old in [*(d for d in good[self._keep :] if d not in given_up), *given_up]:
            try:
                trash = self._run_dir / f".trash-{uuid.uuid4().hex[:8]}"
                os.rename(old, trash)
                fault_point("trash_renamed")
                shutil.rmtree(trash)
            except OSError as e:
                log.warning("%s could not be deleted: %s", old, e)
        fault_point("pruned")

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
        found, complaints = newest_valid(self._run_dir)
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
