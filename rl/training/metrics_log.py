"""Metrics of a run: one JSON line each (the record that counts) and TensorBoard or Weights & Biases (a view of it).

Rank 0 only.
"""

import hashlib
import importlib.util
import json
import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from rl.config import LoggingConfig
from rl.training.atomic_io import write_atomic

log = logging.getLogger(__name__)
FILE_NAME = "episode_metrics.jsonl"


def truncate_jsonl(path: Path, unit: str, last_step: int) -> int:
    """Drops lines beyond `last_step` and a torn last line; returns how many were dropped. A resume repeats them."""
    if not path.is_file():
        return 0
    lines = path.read_bytes().decode("utf-8", errors="replace").splitlines()
    kept = []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except ValueError as e:
            if number == len(lines):  # torn by a crash
                break
            raise ValueError(f"{path}: line {number} is not JSON; repair or remove that line") from e
        if entry[unit] <= last_step:
            kept.append(line)
    write_atomic(path, "".join(f"{line}\n" for line in kept))
    return len(lines) - len(kept)


def check_board(cfg: LoggingConfig) -> None:
    """Raises ValueError when the package of the view that is asked for is not installed."""
    if cfg.wandb and importlib.util.find_spec("wandb") is None:
        raise ValueError(
            "logging.wandb=true (train.sh rl: --logger wandb) needs the package wandb, which is not installed; "
            "`pip install wandb`, or leave it out"
        )


class WandbBoard:
    """Weights & Biases behind the calls of TensorBoard's writer; WANDB_MODE and the like are read by the package."""

    def __init__(self, run_dir: Path) -> None:
        import wandb  # optional: only when asked for

        identity = hashlib.sha256(str(run_dir).encode()).hexdigest()[:16]  # a resumed run continues its curves
        self._run = wandb.init(project="f1-vla", name=run_dir.name, dir=str(run_dir), id=identity, resume="allow")

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self._run.log({name: value}, step=step)

    def flush(self) -> None:
        """It sends by itself."""

    def close(self) -> None:
        self._run.finish()


class MetricsLog:
    """`write(step, {"phase/name": value})`; NaN and infinity are written as null, which JSON has a word for."""

    def __init__(
        self, run_dir: Path, unit: str = "episode", tensorboard: bool = True, enabled: bool = True,
        resumed_at: int | None = None, wandb: bool = False,
    ) -> None:  # fmt: skip
        """`unit` names the step in each line. `resumed_at`: the restored step; None starts an empty file.

        `wandb`: Weights & Biases instead of TensorBoard.
        """
        self._unit = unit
        self._file = None
        self._board: Any = None
        if not enabled:
            return
        path = run_dir / FILE_NAME
        dropped = truncate_jsonl(path, unit, -1 if resumed_at is None else resumed_at)
        if dropped:
            log.info("%s: %d lines beyond the restored %s %s dropped", path.name, dropped, unit, resumed_at)
        self._file = path.open("a", encoding="utf-8")
        if wandb:
            self._open_board(lambda: WandbBoard(run_dir))
        elif tensorboard:
            self._open_board(lambda: self._tensorboard(run_dir / "tensorboard", resumed_at))

    def _tensorboard(self, directory: Path, resumed_at: int | None) -> Any:
        from torch.utils.tensorboard import SummaryWriter  # a second to import: only when asked for

        return SummaryWriter(str(directory), purge_step=None if resumed_at is None else resumed_at + 1)

    def _open_board(self, open_board: Callable[[], Any]) -> None:
        try:
            self._board = open_board()
        except Exception as e:  # noqa: BLE001 - a view must not stop the training
            self._lose_board(e)

    def _lose_board(self, error: Exception) -> None:
        log.warning("the view of the metrics is off for the rest of this run (%s is complete): %s", FILE_NAME, error)
        self._board = None

    def write(self, step: int, metrics: Mapping[str, float | int | bool | str | None]) -> None:
        if self._file is None:
            return
        plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in metrics.items()}
        self._file.write(json.dumps({self._unit: step, **plain}, allow_nan=False) + "\n")
        self._file.flush()
        if self._board is None:
            return
        try:
            for name, value in plain.items():
                if isinstance(value, int | float):
                    self._board.add_scalar(name, value, step)
            self._board.flush()
        except Exception as e:  # noqa: BLE001 - a view must not stop the training
            self._lose_board(e)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        if self._board is not None:
            self._board.close()
            self._board = None
