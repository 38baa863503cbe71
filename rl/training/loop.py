"""The one training loop. A phase says what to collect and how to update; when to log, save and stop is decided here."""

import logging
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rl.config import TrainingConfig
from rl.training import rng
from rl.training.checkpoint import CheckpointManager, CheckpointState, LoadedCheckpoint, save_plain
from rl.training.errors import NumericalError, Preempted
from rl.training.metrics_log import MetricsLog
from rl.training.parallel_utils import ParallelContext
from rl.training.preemption import StopFlag
from rl.training.progress import Progress
from rl.training.run_dir import RunDir

log = logging.getLogger(__name__)
HISTORY = 100  # lines of metrics in a checkpoint


class Phase(Protocol):
    """One training phase. `collect` and `update` are collective."""

    name: str
    unit: str  # what `step` counts: episodes, or iterations
    units_per_iteration: int  # over all ranks
    updates_per_iteration: int

    def collect(self, step: int) -> dict[str, float]:
        """Gathers data of one iteration; `step` units are done before it. Returns its metrics."""
        ...

    def update(self, progress: float) -> dict[str, float]:
        """One optimizer step (all micro-batches); `progress` in units, for the schedule. Returns its metrics."""
        ...

    def boundary(self, step: int) -> None:
        """Called at every checkpoint, saved or restored: environments start afresh from here."""
        ...

    def media(self, run_dir: Path, step: int, last: bool) -> None:
        """Rank 0: writes what pictures and videos are due."""
        ...

    def checkpoint(self) -> CheckpointState:
        """Everything needed to continue, without RNG and loop state."""
        ...

    def restore(self, saved: LoadedCheckpoint) -> None: ...

    def last_batch(self) -> Any:
        """Tensors of the last update, for inspection after a step that was not finite."""
        ...


@dataclass
class LoopState:
    """Where the loop stands; saved with every checkpoint."""

    step: int = 0  # finished units, and the running iteration's once it has collected
    env_steps: int = 0
    updates: int = 0  # optimizer steps since the run began
    updates_done: int = 0  # in the running iteration; 0 between iterations
    collected: dict[str, float] = field(default_factory=dict)  # metrics of the running iteration
    sums: dict[str, float] = field(default_factory=dict)


class Loop:
    """Runs a phase to `total` units. Every method is collective."""

    def __init__(
        self, phase: Phase, cfg: TrainingConfig, total: int, ctx: ParallelContext, run: RunDir,
        manager: CheckpointManager, stop: StopFlag, tensorboard: bool,
    ) -> None:  # fmt: skip
        self.phase, self.cfg, self.total, self.ctx = phase, cfg, total, ctx
        self.run_dir, self.manager, self.stop, self.tensorboard = run, manager, stop, tensorboard
        self.state = LoopState()
        self.saved_at: int | None = None
        self.history: deque[dict[str, float]] = deque(maxlen=HISTORY)  # the newest lines of the metrics file

    def restore(self, saved: LoadedCheckpoint) -> None:
        self.phase.restore(saved)
        self.state = LoopState(**saved.training["loop"])
        self.history.extend(saved.training["metrics_history"])
        self.saved_at = saved.step
        if saved.per_rank is not None:
            for note in rng.restore(saved.per_rank["rng"], self.ctx.device):
                log.warning(note)
        elif self.state.updates_done > 0:
            log.warning("the number of processes changed: what was left of the interrupted iteration is dropped")
            self.state.updates_done = 0
        if self.state.updates_done == 0:
            self.phase.boundary(self.state.step)

    def run(self) -> None:
        """Trains until `total`. Raises Preempted after a stop signal, with everything saved."""
        s, resumed = self.state, self.saved_at
        if resumed is not None and s.step >= self.total and s.updates_done == 0:
            log.info(
                "nothing to do: %d of %d %ss are done; raise the total to go on", s.step, self.total, self.phase.unit
            )
            self.run_dir.status("done", s.step, self.total, 0)
            return
        metrics = MetricsLog(
            self.run_dir.path, self.phase.unit, self.tensorboard, self.ctx.is_main,
            None if resumed is None else (s.step if s.updates_done == 0 else s.step - self.phase.units_per_iteration),
        )  # fmt: skip
        progress = Progress(self.total, s.step, self.phase.unit, self.cfg.log_every, self.ctx.is_main)
        self.run_dir.status("running", s.step, self.total)
        first_env_steps = s.env_steps
        try:
            while s.step < self.total or s.updates_done > 0:
                line = self._iteration()
                metrics.write(s.step, line)
                self.history.append(line)
                progress.update(s.step, s.env_steps - first_env_steps, _headline(line, self.phase.name))
                self.run_dir.status("running", s.step, self.total)
                last = s.step >= self.total
                if self.ctx.is_main:
                    self.phase.media(self.run_dir.path, s.step, last)
                stopping = self.ctx.any_rank(self.stop.stop_requested())
                if last or stopping or self._crossed(self.cfg.save_every):
                    self._save()
                if stopping and not last:
                    raise self._preempted()
        except NumericalError:
            path = self.run_dir.path / f"not_finite_batch_rank{self.ctx.rank}.pt"
            save_plain(self.phase.last_batch(), path)
            log.error("the batch of the step that was not finite is in %s", path)
            raise
        finally:
            progress.close()
            metrics.close()
        self.run_dir.status("done", s.step, self.total, 0)

    def _iteration(self) -> dict[str, float]:
        """Collects and updates; after a stop in the middle, what was left of it."""
        s, p = self.state, self.phase
        if s.updates_done == 0:
            s.collected = p.collect(s.step)
            s.env_steps += int(s.collected.pop("env_steps"))
            s.step += p.units_per_iteration
            s.sums = {}
        while s.updates_done < p.updates_per_iteration:
            share = s.updates_done / p.updates_per_iteration
            for name, value in p.update(s.step - p.units_per_iteration * (1 - share)).items():
                s.sums[name] = s.sums.get(name, 0.0) + value
            s.updates += 1
            s.updates_done += 1
            if s.updates_done < p.updates_per_iteration and self.ctx.any_rank(self.stop.stop_requested()):
                self._save()
                raise self._preempted()
        done, s.updates_done = s.updates_done, 0
        line = {**s.collected, **{k: v / done for k, v in s.sums.items()}}
        return {**{f"{p.name}/{k}": v for k, v in line.items()}, "env_steps": s.env_steps, "updates": s.updates}

    def _crossed(self, every: int) -> bool:
        """True when this iteration stepped over a multiple of `every`."""
        before = self.state.step - self.phase.units_per_iteration
        return self.state.step // every > before // every

    def _save(self) -> None:
        s = self.state
        state = self.phase.checkpoint()
        state.training = {**state.training, "loop": {**vars(s)}, "metrics_history": list(self.history)}
        state.metrics = dict(self.history[-1]) if self.history else {}
        state.per_rank = {**state.per_rank, "rng": rng.capture(self.ctx.device)}
        # A run stopped within this iteration left a checkpoint of the same number; this one has more updates.
        path = self.manager.save(s.step, state, replace=self.saved_at == s.step)
        self.saved_at = s.step
        log.info("saved %s", path)
        if s.updates_done == 0:
            self.phase.boundary(s.step)

    def _preempted(self) -> Preempted:
        name = self.stop.signal_name or "a signal on another rank"
        self.run_dir.status("preempted", self.state.step, self.total, 75)
        return Preempted(
            f"{name} received, everything is saved in {self.run_dir.path}/checkpoint-{self.state.step}; "
            "the same command with --auto_resume continues"
        )


def _headline(line: Mapping[str, float], phase: str) -> dict[str, float]:
    """The few numbers of the console."""
    names = ("loss", "accuracy", "copy_accuracy", "train_steps_per_s")
    shown = {n: line[f"{phase}/{n}"] for n in names if f"{phase}/{n}" in line}
    return {k: v for k, v in shown.items() if math.isfinite(v)}
