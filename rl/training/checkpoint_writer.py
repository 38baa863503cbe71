"""The files of one checkpoint as one rank writes them, in the training thread or beside it, and where a test may kill.

Nothing here talks to other ranks: agreement and the commit are in `checkpoint.py`, always in the training thread.
"""

import os
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch

from rl.training.atomic_io import atomic_path, fsync_dir, fsync_file
from rl.training.checkpoint_files import BASE, FileEntry, describe
from rl.training.checkpoint_state import CheckpointState, plain_bytes

T = TypeVar("T")
ADAPTER = "peft_adapter"

# Steps of a save, in order, at which a test may kill the process (environment variable FAULT_POINT).
FAULT_POINTS = (
    "tmp_dir_made",
    "state_copied",
    "model_written",
    "peft_adapter_written",
    "training_state_written",
    "metrics_written",
    "rank_files_written",
    "manifest_written",
    "tmp_dir_synced",
    "old_set_aside",  # only where a checkpoint of the same number gives way
    "renamed",
    "committed",
    "trash_renamed",
    "pruned",
)


def fault_point(name: str) -> None:
    assert name in FAULT_POINTS, name
    if os.environ.get("FAULT_POINT") == name:
        os.kill(os.getpid(), signal.SIGKILL)


def save_file(value: Any, path: Path) -> None:
    """Writes and fsyncs."""
    with path.open("wb") as f:
        torch.save(value, f)
        f.flush()
        os.fsync(f.fileno())


def save_plain(value: Any, path: Path) -> None:
    """Atomic single file of tensors and plain data outside a checkpoint (a batch to inspect, exported weights)."""
    plain_bytes(value, path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        save_file(value, temporary)


class Task(Generic[T]):
    """One call, made at once or in a thread beside the caller's; `result()` returns or raises what it did."""

    def __init__(self, call: Callable[[], T], background: bool) -> None:
        self._call = call
        self._value: T | None = None
        self._error: Exception | None = None
        self._done = threading.Event()
        self.seconds = 0.0
        if background:
            # A daemon: a run that crashes does not wait for a checkpoint that it could not commit anyway.
            threading.Thread(target=self._run, name="checkpoint", daemon=True).start()
        else:
            self._run()

    def _run(self) -> None:
        start = time.monotonic()
        try:
            self._value = self._call()
        except Exception as e:  # noqa: BLE001 - raised again by `result`
            self._error = e
        self.seconds = time.monotonic() - start
        self._done.set()

    @property
    def done(self) -> bool:
        return self._done.is_set()

    def wait(self) -> None:
        self._done.wait()

    def result(self) -> T:
        """Waits for the end."""
        self.wait()
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]


@dataclass(frozen=True)
class RankPart:
    """What one rank adds to the checkpoint in `tmp`; the state belongs to nobody else any more."""

    tmp: Path
    rank: int
    state: CheckpointState
    per_rank: list[dict[str, Any]]  # of all ranks

    def write_adapter(self) -> None:
        """PEFT's files come from the live model, so they are written before it trains on; synced with the others."""
        if self.rank == 0 and self.state.peft_adapter is not None:
            (self.tmp / ADAPTER).mkdir()
            self.state.peft_adapter(self.tmp / ADAPTER)

    def write(self) -> list[FileEntry]:
        """All files of this rank, fsynced, as manifest entries."""
        written = self._write_main() if self.rank == 0 else []
        for name, value in self.state.rank_files.items():
            assert name.isidentifier(), name
            path = self.tmp / f"{name}_rank{self.rank}.pt"
            save_file(value, path)
            written.append(path)
        fault_point("rank_files_written")
        return [describe(self.tmp, f) for f in written]

    def _write_main(self) -> list[Path]:
        tmp, state = self.tmp, self.state
        written = [tmp / "model.pt"]
        save_file(state.stored_model, tmp / "model.pt")
        if state.base is not None:
            (tmp / BASE).write_text(state.base.to_json(), encoding="utf-8")
            fsync_file(tmp / BASE)
            written.append(tmp / BASE)
        fault_point("model_written")
        if state.peft_adapter is not None:
            adapter = sorted(f for f in (tmp / ADAPTER).rglob("*") if f.is_file())
            for f in adapter:
                fsync_file(f)
            fsync_dir(tmp / ADAPTER)
            written += adapter
            fault_point("peft_adapter_written")
        save_file({**state.training, "per_rank": self.per_rank}, tmp / "training_state.pt")
        fault_point("training_state_written")
        save_file(state.metrics, tmp / "metrics.pt")
        fault_point("metrics_written")
        return [*written, tmp / "training_state.pt", tmp / "metrics.pt"]
