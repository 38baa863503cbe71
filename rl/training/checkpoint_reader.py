"""Reads what `checkpoint.py` wrote: verified first, then only plain data, never code."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rl.training.checkpoint_files import (
    BASE,
    InvalidCheckpointError,
    ReleasedBase,
    checkpoint_dirs,
    step_of,
    verify,
)
from rl.training.checkpoint_writer import ADAPTER

log = logging.getLogger(__name__)


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
        return self.path / ADAPTER if self.has(f"{ADAPTER}/adapter_config.json") else None

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


def newest_valid(run_dir: Path) -> tuple[SavedCheckpoint | None, list[str]]:
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
    found, complaints = newest_valid(path)
    if found is None:
        what = f"no valid checkpoint: {'; '.join(complaints)}" if complaints else "no directory checkpoint-N"
        raise ValueError(f"{path} holds {what}; name a run directory or one of its checkpoints")
    for c in complaints:
        log.warning("damaged checkpoint passed over, using %s instead: %s", found.path.name, c)
    return found
