"""The one training loop. A phase says what to collect and how to update; when to log, save and stop is decided here."""

import logging
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from rl.data.free_memory import is_out_of_memory
from rl.training import rng
from rl.training.checkpoint import CheckpointManager, CheckpointState, LoadedCheckpoint, save_plain
from rl.training.errors import (
    CheckpointError,
    NumericalError,
    OutOfMemoryError,
    Preempted,
    out_of_memory_text,
)
from rl.training.loss_spikes import SpikeWatch
from rl.training.metrics_log import MetricsLog
from rl.training.parallel_utils import ParallelContext
from rl.training.preemption import StopFlag
from rl.training.progress import Progress
from rl.training.run_dir import RunDir

log = logging.getLogger(__name__)
HISTORY = 100  # lines of metrics in a checkpoint


class Intervals(Protocol):
    """What `Pace` says, or the block `training`."""

    save_every: int
    log_every: int


@dataclass
class Pace:
    """When to save and write, in units of the phase."""

    save_every: int
    log_every: int  # lines on a console that is no terminal
    metrics_every: int = 1  # lines of metrics, each the mean over the iterations since the one before


class Phase(Protocol):
    """One training phase. `collect` and `update` are collective."""

    name: str
    unit: str  # what `step` counts: episodes, or iterations
    units_per_iteration: int  # over all ranks

    @property
    def updates_per_iteration(self) -> int: ...

    def collect(self, step: int) -> dict[str, float]:
        """Gathers data of one iteration; `step` units are done before it. Returns its metrics; `save_due` among them,
        when not 0, asks for a checkpoint after the iteration, on all ranks alike."""
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
    save_due: bool = False  # the running iteration asked for a checkpoint
    collected: dict[str, float] = field(default_factory=dict)  # metrics of the running iteration
    sums: dict[str, float] = field(default_factory=dict)  # of the updates' numbers in the running iteration
    counts: dict[str, int] = field(default_factory=dict)  # of the updates that had each of them
    unwritten: list[dict[str, float]] = field(default_factory=list)  # lines of the iterations since the written one


class Loop:
    """Runs a phase to `total` units. Every method is collective."""

    def __init__(
        self, phase: Phase, cfg: Intervals, total: int, ctx: ParallelContext, run: RunDir,
        manager: CheckpointManager, stop: StopFlag, tensorboard: bool, wandb: bool = False,
    ) -> None:  # fmt: skip
        self.phase, self.cfg, self.total, self.ctx = phase, cfg, total, ctx
        self.run_dir, self.manager, self.stop, self.tensorboard = run, manager, stop, tensorboard
        self.wandb = wandb
        self.metrics_every = cfg.metrics_every if isinstance(cfg, Pace) else 1
        self.state = LoopState()
        self.saved_at: int | None = None
        self.spikes: SpikeWatch | None = None
        self.history: deque[dict[str, float]] = deque(maxlen=HISTORY)  # the newest lines of the metrics file

    def restore(self, saved: LoadedCheckpoint) -> None:
        self.phase.restore(saved)
        precision = saved.training.get("precision")  # None or empty: of an earlier version, or another precision
        if precision and self.ctx.scaled:
            self.ctx.load_precision_state(precision)
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
            self.wandb,
        )  # fmt: skip
        progress = Progress(self.total, s.step, self.phase.unit, self.cfg.log_every, self.ctx.is_main)
        self.run_dir.status("running", s.step, self.total)
        first_env_steps = s.env_steps
        try:
            while s.step < self.total or s.updates_done > 0:
                s.unwritten.append(self._iteration())
                last = s.step >= self.total
                stopping = self._stopping()
                due = last or s.save_due or self._crossed(self.cfg.save_every)
                if due or self._crossed(self.metrics_every):  # a stop does not show in the metrics
                    line = self._line()
                    metrics.write(s.step, line)
                    self.history.append(line)
                    if self.spikes is not None:
                        self.spikes.add(s.step, line)
                    progress.update(s.step, s.env_steps - first_env_steps, _headline(line, self.phase.name))
                    self.run_dir.status("running", s.step, self.total)
                with self.ctx.whole():
                    if self.ctx.is_main:
                        self.phase.media(self.run_dir.path, s.step, last)
                if due or stopping:
                    self._save(wait=last or stopping)
                if stopping and not last:
                    raise self._preempted()
        except NumericalError:
            path = self.run_dir.path / f"not_finite_batch_rank{self.ctx.rank}.pt"
            save_plain(self.phase.last_batch(), path)
            log.error("the batch of the step that was not finite is in %s", path)
            self.manager.keep_in_flight(alone=False)  # all ranks are here
            raise
        except (Preempted, CheckpointError):
            raise
        except Exception as e:
            self.manager.keep_in_flight(alone=True)
            if is_out_of_memory(e):
                raise OutOfMemoryError(out_of_memory_text(e)) from e
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
            s.save_due = bool(s.collected.pop("save_due", 0))
            s.step += p.units_per_iteration
            s.sums, s.counts = {}, {}
        while s.updates_done < p.updates_per_iteration:
            share = s.updates_done / p.updates_per_iteration
            for name, value in p.update(s.step - p.units_per_iteration * (1 - share)).items():
                s.sums[name] = s.sums.get(name, 0.0) + value
                s.counts[name] = s.counts.get(name, 0) + 1
            s.updates += 1
            s.updates_done += 1
            if s.updates_done < p.updates_per_iteration and self._stopping():
                self._save(wait=True)
                raise self._preempted()
        s.updates_done = 0
        line = {**s.collected, **{k: v / s.counts[k] for k, v in s.sums.items()}}
        return {**{f"{p.name}/{k}": v for k, v in line.items()}, "env_steps": s.env_steps, "updates": s.updates}

    def _line(self) -> dict[str, float]:
        """Means over the iterations that are not written yet; counters as they stand."""
        lines, self.state.unwritten = self.state.unwritten, []
        if len(lines) == 1:
            return lines[0]
        values: dict[str, list[float]] = {}
        for line in lines:
            for name, value in line.items():
                values.setdefault(name, []).append(value)
        means = {k: sum(finite) / len(finite) if (finite := _finite(v)) else math.nan for k, v in values.items()}
        return means | {k: lines[-1][k] for k in ("env_steps", "updates")}

    def _stopping(self) -> bool:
        """At a boundary between updates: commits a checkpoint that is written by now, then asks for stop signals."""
        self.manager.poll()
        return self.ctx.any_rank(self.stop.stop_requested())

    def _crossed(self, every: int) -> bool:
        """True when this iteration stepped over a multiple of `every`."""
        before = self.state.step - self.phase.units_per_iteration
        return self.state.step // every > before // every

    def _save(self, wait: bool) -> None:
        """wait: returns only when the checkpoint is on disk."""
        s = self.state
        with self.ctx.whole():
            state = self.phase.checkpoint()
            state.model, state.training = self.ctx.gathered(state.model), self.ctx.gathered(state.training)
        own = {"loop": {**vars(s)}, "metrics_history": list(self.history), "precision": self.ctx.precision_state()}
        state.training = {**state.training, **own}
        state.metrics = dict(self.history[-1]) if self.history else {}
        state.per_rank = {**state.per_rank, "rng": rng.capture(self.ctx.device)}
        # A run stopped within this iteration left a checkpoint of the same number; this one has more updates.
        self.manager.save(s.step, state, replace=self.saved_at == s.step, wait=wait)
        self.saved_at = s.step
        if s.updates_done == 0:
            self.phase.boundary(s.step)

    def _preempted(self) -> Preempted:
        name = self.stop.signal_name or "a signal on another rank"
        self.run_dir.status("preempted", self.state.step, self.total, 75)
        return Preempted(
            f"{name} received, everything is saved in {self.run_dir.path}/checkpoint-{self.state.step}; "
            "the same command with --auto_resume continues"
        )


def _finite(values: list[float]) -> list[float]:
    """Those that are numbers: a mean over no episode is none."""
    return [v for v in values if math.isfinite(v)]


def _headline(line: Mapping[str, float], phase: str) -> dict[str, float]:
    """The few numbers of the console."""
    names = (
        "loss", "accuracy", "copy_accuracy", "train_steps_per_s", "episode_return", "success_rate", "eval_return",
        "eval_success",
    )  # fmt: skip
    shown = {n: line[f"{phase}/{n}"] for n in names if f"{phase}/{n}" in line}
    return {k: v for k, v in shown.items() if math.isfinite(v)}
