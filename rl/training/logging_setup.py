"""Console and file logging of one rank: logs/rl_training_<time>.log holds everything this project says."""

import logging
import sys
from datetime import datetime
from pathlib import Path

from tqdm import tqdm

from rl.config import LoggingConfig

_PROJECT = ("rl", "f1_vla", "kernels")
_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class _ConsoleHandler(logging.Handler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def _level(value: str, key: str) -> int:
    if value not in _LEVELS:
        raise ValueError(f"logging.{key} is '{value}'; use one of {', '.join(_LEVELS)}")
    return getattr(logging, value)


def setup_logging(cfg: LoggingConfig, run_dir: Path | None = None, rank: int = 0, world_size: int = 1) -> Path | None:
    """Replaces the root handlers; returns the log file (None without `run_dir` or with file logging off).

    Rank 0 talks on the console, other ranks only warn there; every rank has its own file. Other packages are heard
    from INFO upwards.
    """
    prefix = f"[rank {rank}] " if world_size > 1 else ""
    pattern = f"%(asctime)s {prefix}%(levelname)s %(name)s: %(message)s"
    console = _ConsoleHandler()
    console.setLevel(max(_level(cfg.console_level, "console_level"), logging.DEBUG if rank == 0 else logging.WARNING))
    console.setFormatter(logging.Formatter(pattern, "%H:%M:%S"))
    handlers: list[logging.Handler] = [console]
    path = None
    if run_dir is not None and cfg.enable_file_logging:
        path = _new_file(run_dir / "logs", rank)
        file = logging.FileHandler(path, encoding="utf-8")
        file.setLevel(_level(cfg.file_level, "file_level"))
        file.setFormatter(logging.Formatter(pattern))
        handlers.append(file)
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(logging.INFO)
    for name in _PROJECT:
        logging.getLogger(name).setLevel(logging.DEBUG)
    return path


def _new_file(directory: Path, rank: int) -> Path:
    """An empty file of its own even when two runs start in the same second or the clock goes back."""
    directory.mkdir(parents=True, exist_ok=True)
    stem = f"rl_training_{datetime.now():%Y%m%d_%H%M%S}" + (f"_rank{rank}" if rank else "")
    number = 0
    while True:
        path = directory / (f"{stem}.log" if number == 0 else f"{stem}_{number}.log")
        try:
            path.open("x", encoding="utf-8").close()
        except FileExistsError:
            number += 1
        else:
            return path
