"""One output directory, one run: lock, resume and overwrite policy, saved configuration, status.

config.yaml  model_config.yaml  provenance.jsonl  status.json  run.lock
(+ what metrics_log, media and checkpoint write)
"""

import fcntl
import json
import os
import re
import shutil
import socket
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from f1_vla.config import F1Config
from rl import config as rl_config
from rl.training import provenance
from rl.training.atomic_io import fsync_dir, remove_partial, write_atomic
from rl.training.checkpoint import SUPERSEDED
from rl.training.checkpoint_files import checkpoint_dirs, step_of
from rl.training.config_drift import check_drift
from rl.training.disk import require_writable
from rl.training.errors import CollectiveError, Preempted, exit_code_of
from rl.training.parallel_utils import ParallelContext

# A launcher that restarts (scripts/supervise.py) is told here where the run lies, and says how often it has restarted.
RUN_DIR_FILE, RESTARTS = "RL_RUN_DIR_FILE", "RL_RESTARTS"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ResumeMode(StrEnum):
    never = "never"  # a new run; an existing one is refused
    auto = "auto"  # --auto_resume: continue when there is something to continue, else start
    path = "path"  # --resume DIR


def check_run_name(name: str) -> str:
    """Experiment and run names become directories; ValueError unless letters, digits, dot, dash, underscore."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"run name {name!r}: use 1 to 64 of A-Z a-z 0-9 . _ - and begin with a letter or digit")
    return name


def holds_run(path: Path) -> bool:
    """True when the directory has a configuration or a checkpoint of an earlier run."""
    return (path / "config.yaml").exists() or bool(checkpoint_dirs(path))


@dataclass
class RunDir:
    """An opened (locked) run directory: `with RunDir.open(...) as run:` also records in status.json how it ended."""

    path: Path
    phase: str
    resume_from: Path | None  # argument of CheckpointManager.load when `resuming`
    resuming: bool  # False: a new run, do not load anything
    is_main: bool
    notes: list[str]  # benign configuration changes, for the log once it is set up
    _lock: IO[str] | None = None
    _status: dict[str, Any] = field(default_factory=dict)
    _reached: dict[str, Any] = field(default_factory=dict)  # step and last_advanced before a resume
    _discarded: bool = False

    @classmethod
    def open(
        cls, output_dir: str | Path, phase: str, config: rl_config.Config, arch: F1Config | None,
        world: ParallelContext,
        resume: ResumeMode = ResumeMode.never, resume_path: Path | None = None, overwrite: bool = False,
        allow_drift: Sequence[str] = (),
    ) -> "RunDir":  # fmt: skip
        """Collective: rank 0 does everything, its complaint (CollectiveError) is raised on all ranks.

        Refuses an existing run unless told what to do with it, a run that another process holds, and a resume with a
        changed configuration (except for the keys of `allow_drift`); nothing is written before all of that is checked.
        """
        path = Path(output_dir).expanduser().resolve()
        run, error = None, None
        if world.is_main:
            try:
                run = cls._open_main(path, phase, config, arch, resume, resume_path, overwrite, allow_drift)
            except (ValueError, OSError) as e:
                error = str(e) if isinstance(e, ValueError) else f"output directory {path}: {e.strerror or e}"
        shared = (run.resume_from, run.resuming, run.notes) if run is not None else None
        shared, error = world.broadcast_object((shared, error))
        if error is not None:
            raise CollectiveError(error)
        assert shared is not None
        if RUN_DIR_FILE in os.environ and os.environ.get("LOCAL_RANK", "0") == "0":
            Path(os.environ[RUN_DIR_FILE]).write_text(f"{path}\n", encoding="utf-8")
        return run if run is not None else cls(path, phase, shared[0], shared[1], False, shared[2])

    @classmethod
    def _open_main(
        cls, path: Path, phase: str, config: rl_config.Config, arch: F1Config | None,
        resume: ResumeMode, resume_path: Path | None, overwrite: bool, allow_drift: Sequence[str],
    ) -> "RunDir":  # fmt: skip
        if overwrite and resume is not ResumeMode.never:
            raise ValueError("--overwrite and resuming contradict each other; give only one")
        if path.exists() and not path.is_dir():
            raise ValueError(f"output directory {path} is a file; choose another --output_dir")
        require_writable(path)
        source = _resume_source(path, resume, resume_path)
        existing = holds_run(path)
        lock = _acquire(path) if existing else None
        try:
            # A resume of another run's checkpoint that crashed before its first own one is repeated by the launcher.
            repeated = _restarts() > 0 and resume is ResumeMode.path and not checkpoint_dirs(path)
            if existing and not repeated and source != path and not overwrite and resume is not ResumeMode.auto:
                raise ValueError(
                    f"{path} holds a run already; continue it with --auto_resume, replace it with --overwrite, "
                    "or choose another --output_dir"
                )
            notes = [] if source is None else _compare_config(source, phase, config, arch, allow_drift)
        except ValueError:
            if lock is not None:
                lock.close()
            raise
        if lock is not None and overwrite:
            lock = _replace(path, lock)
        elif lock is None:
            path.mkdir(parents=True, exist_ok=True)
            lock = _acquire(path)
        remove_partial(path)
        _adopt_superseded(path)
        run = cls(path, phase, resume_path, source is not None, True, notes, lock)
        run._reached = _reached(path) if source == path else {}
        write_atomic(path / "config.yaml", rl_config.to_yaml(config))
        if arch is not None:
            write_atomic(path / "model_config.yaml", rl_config.to_yaml(arch))
        with (path / "provenance.jsonl").open("a", encoding="utf-8") as f:
            f.write(json.dumps(provenance.collect()) + "\n")
        run.status("starting")
        return run

    def status(
        self, state: str, step: int | None = None, total: int | None = None, exit_code: int | None = None
    ) -> None:
        """Writes status.json (rank 0). `state`: starting, running, done, preempted or failed (a launcher that restarts
        also writes restarting); times in Unix seconds."""
        if not self.is_main or self._discarded:
            return
        now = time.time()
        if not self._status:
            self._status = {
                "phase": self.phase, "state": state, "step": 0, "total": None, "started": now, "last_advanced": now,
                "pid": os.getpid(), "host": socket.gethostname(), "exit_code": None,
                "restarts": _restarts(), **self._reached,
            }  # fmt: skip
        if step is not None:
            if step > self._status["step"]:
                self._status["last_advanced"] = now
            self._status["step"] = step
        if total is not None:
            self._status["total"] = total
        self._status |= {"state": state, "exit_code": exit_code}
        write_atomic(self.path / "status.json", json.dumps(self._status, indent=1) + "\n")

    def discard(self) -> None:
        """Takes back what `open` wrote, because the run was refused before it began: a corrected command finds the
        directory as it was, with the run that --overwrite had set aside. Nothing happens to a resumed run."""
        if not self.is_main or self.resuming:
            return
        self._discarded = True
        for name in ("config.yaml", "model_config.yaml", "provenance.jsonl", "status.json", "run.lock"):
            (self.path / name).unlink(missing_ok=True)
        shutil.rmtree(self.path / "logs", ignore_errors=True)
        superseded = [d for d in self.path.iterdir() if d.name.startswith(SUPERSEDED)]
        if len(superseded) == 1 and len(list(self.path.iterdir())) == 1:
            aside = self.path.with_name(superseded[0].name)
            os.rename(superseded[0], aside)
            self.path.rmdir()
            os.rename(aside, self.path)
        elif not superseded and not any(self.path.iterdir()):
            self.path.rmdir()

    def __enter__(self) -> "RunDir":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        state = "done" if error is None else "preempted" if isinstance(error, Preempted) else "failed"
        self.status(state, exit_code=exit_code_of(error))
        self.close()

    def close(self) -> None:
        """Gives the lock back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _restarts() -> int:
    """How often a launcher has started this run again."""
    return int(os.environ.get(RESTARTS, "0"))


def _reached(path: Path) -> dict[str, Any]:
    """How far the run had come and when, by its status; nothing when that is not readable."""
    try:
        status = json.loads((path / "status.json").read_text(encoding="utf-8"))
        return {"step": int(status["step"]), "last_advanced": float(status["last_advanced"])}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _compare_config(
    source: Path, phase: str, config: rl_config.Config, arch: F1Config | None, allowed: Sequence[str]
) -> list[str]:
    new, old = rl_config.to_dict(config), rl_config.read_dict(source / "config.yaml")
    if arch is not None:
        new["arch"] = rl_config.to_dict(arch)
        old["arch"] = rl_config.read_dict(source / "model_config.yaml")
    return check_drift(old, new, phase, str(source / "config.yaml"), allowed)


def _resume_source(path: Path, resume: ResumeMode, resume_path: Path | None) -> Path | None:
    """Run directory to load from; None to start anew, also when the run was stopped before its first checkpoint."""
    if resume is ResumeMode.auto:
        return path if checkpoint_dirs(path) else None
    if resume is ResumeMode.never:
        return None
    assert resume_path is not None
    resume_path = Path(resume_path).expanduser().resolve()
    source = resume_path.parent if step_of(resume_path) is not None else resume_path
    if not checkpoint_dirs(source) or not resume_path.is_dir():
        raise ValueError(f"--resume {resume_path}: no checkpoint there; name a checkpoint-N or a run directory")
    return source


def _replace(path: Path, old_lock: IO[str]) -> IO[str]:
    """Moves the old run, whole, aside. It is deleted only after the new run has saved its first checkpoint."""
    os.rename(path, path.with_name(f"{SUPERSEDED}{path.name}-{uuid.uuid4().hex[:8]}"))
    fsync_dir(path.parent)
    path.mkdir()
    lock = _acquire(path)
    old_lock.close()
    return lock


def _adopt_superseded(path: Path) -> None:
    """Brings a replaced run (also of a start that was killed in between) inside, where `CheckpointManager` finds it."""
    for old in path.parent.glob(f"{SUPERSEDED}{path.name}-????????"):
        os.rename(old, path / old.name)
    fsync_dir(path.parent)


def _acquire(path: Path) -> IO[str]:
    """Exclusive lock for the life of this process; a second process is refused with the holder's host and pid."""
    # Not "w": opening must not erase the holder's name before the lock is ours.
    file = (path / "run.lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        file.seek(0)
        holder = file.read().strip() or "an unknown process"
        file.close()
        raise ValueError(f"{path} is in use by {holder}; stop it or choose another --output_dir") from e
    file.truncate(0)
    file.write(f"pid {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return file
