"""The training loop with a phase that only counts: when it saves, stops, resumes and writes."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rl.config import Config, load_model
from rl.training.checkpoint import CheckpointManager, CheckpointState, LoadedCheckpoint, open_checkpoint
from rl.training.errors import NumericalError, Preempted
from rl.training.loop import Loop, Pace
from rl.training.parallel_utils import ParallelContext
from rl.training.preemption import StopFlag
from rl.training.run_dir import ResumeMode, RunDir


class CountingPhase:
    """`value` takes random numbers of torch's global generator, so a wrong resume shows."""

    name, unit = "toy", "episode"

    def __init__(self, units: int = 1, updates: int = 3, after_update: Callable[[int], None] = lambda n: None) -> None:
        self.units_per_iteration, self.updates_per_iteration, self.after_update = units, updates, after_update
        self.value = torch.zeros(1, dtype=torch.float64)
        self.updates = 0
        self.calls: list[Any] = []

    def collect(self, step: int) -> dict[str, float]:
        self.calls.append(("collect", step))
        return {"env_steps": 10 * self.units_per_iteration, "seen": step, "draw": float(torch.rand(()))}

    def update(self, progress: float) -> dict[str, float]:
        self.calls.append(("update", round(progress, 6)))
        self.value = self.value * 0.5 + torch.rand(1, dtype=torch.float64)
        self.updates += 1
        self.after_update(self.updates)
        return {"value": float(self.value), "number": self.updates}

    def boundary(self, step: int) -> None:
        self.calls.append(("boundary", step))

    def media(self, run_dir: Path, step: int, last: bool) -> None:
        self.calls.append(("media", step, last))

    def checkpoint(self) -> CheckpointState:
        return CheckpointState(model={"value": self.value.clone()}, training={"updates": self.updates})

    def restore(self, saved: LoadedCheckpoint) -> None:
        self.value, self.updates = saved.model["value"], saved.training["updates"]

    def last_batch(self) -> Any:
        return {"value": self.value}


class Stop(StopFlag):
    requested = False

    def stop_requested(self) -> bool:
        return self.requested


@pytest.fixture
def train(world: ParallelContext, tmp_path: Path) -> Callable[..., CountingPhase]:
    """Runs a phase in `tmp_path / name`, continuing what is there."""

    def run(
        name: str, total: int, phase: CountingPhase | None = None, save_every: int = 2, stop: Stop | None = None
    ) -> CountingPhase:
        phase = phase or CountingPhase()
        config = Config()
        config.training.save_every = save_every
        with RunDir.open(
            tmp_path / name, "teacher", config, load_model("debug_test"), world, ResumeMode.auto
        ) as directory:
            manager = CheckpointManager(directory.path, 10, world)
            loop = Loop(phase, config.training, total, world, directory, manager, stop or Stop(), False)
            saved = manager.load(directory.resume_from) if directory.resuming else None
            if saved is not None:
                loop.restore(saved)
            loop.run()
        return phase

    return run


def _lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "episode_metrics.jsonl").read_text().splitlines()]


def _steps(run: Path) -> list[int]:
    return sorted(int(p.name.removeprefix("checkpoint-")) for p in run.glob("checkpoint-*"))


def _state(run: Path, step: int) -> tuple[float, dict[str, Any]]:
    saved = open_checkpoint(run / f"checkpoint-{step}")
    return saved.read("model.pt")["value"].item(), saved.read("training_state.pt")["loop"]


def test_an_iteration_collects_updates_and_writes_one_line(train: Callable, tmp_path: Path) -> None:
    phase = train("run", 2)
    assert phase.calls == [
        ("collect", 0), ("update", 0.0), ("update", 0.333333), ("update", 0.666667), ("media", 1, False),
        ("collect", 1), ("update", 1.0), ("update", 1.333333), ("update", 1.666667), ("media", 2, True),
        ("boundary", 2),
    ]  # fmt: skip
    lines = _lines(tmp_path / "run")
    assert [(e["episode"], e["env_steps"], e["updates"], e["toy/seen"]) for e in lines] == [
        (1, 10, 3, 0),
        (2, 20, 6, 1),
    ]
    assert [e["toy/number"] for e in lines] == [2.0, 5.0]  # means of 1, 2, 3 and 4, 5, 6


def test_a_number_that_only_some_updates_have_is_their_mean(train: Callable, tmp_path: Path) -> None:
    """Also when the run is stopped between them."""

    class TwoKinds(CountingPhase):
        def update(self, progress: float) -> dict[str, float]:
            line = super().update(progress)
            return {"first": 8.0} if self.updates % 3 == 1 else {"later": line["number"]}

    train("straight", 1, TwoKinds())
    stop = Stop()
    with pytest.raises(Preempted):
        train("stopped", 1, TwoKinds(after_update=lambda n: setattr(stop, "requested", n == 2)), stop=stop)
    train("stopped", 1, TwoKinds())
    for name in ("straight", "stopped"):
        (line,) = _lines(tmp_path / name)
        assert (line["toy/first"], line["toy/later"]) == (8.0, 2.5)


@pytest.mark.parametrize(
    ("units", "total", "every", "expected"),
    [
        (1, 7, 3, [3, 6, 7]),
        (4, 12, 5, [8, 12]),  # 4 -> 8 steps over 5, 8 -> 12 over 10
        (4, 13, 4, [4, 8, 12, 16]),  # whole iterations, so the last one ends beyond the total
        (3, 6, 100, [6]),
    ],
)
def test_checkpoints_are_written_where_a_multiple_is_crossed_and_at_the_end(
    train: Callable, tmp_path: Path, units: int, total: int, every: int, expected: list[int]
) -> None:
    phase = train("run", total, CountingPhase(units, 1), every)
    assert _steps(tmp_path / "run") == expected
    assert [c[1] for c in phase.calls if c[0] == "boundary"] == expected


def test_a_checkpoint_carries_the_newest_lines(train: Callable, tmp_path: Path) -> None:
    train("run", 3)
    saved = open_checkpoint(tmp_path / "run")
    lines = [{k: v for k, v in e.items() if k != "episode"} for e in _lines(tmp_path / "run")]
    assert saved.read("metrics.pt") == lines[-1] and saved.read("training_state.pt")["metrics_history"] == lines


@pytest.mark.parametrize("stop_after", [3, 4, 5, 6, 14, 15], ids=lambda n: f"update_{n}")
def test_a_run_stopped_anywhere_and_resumed_equals_a_straight_one(
    train: Callable, tmp_path: Path, stop_after: int
) -> None:
    torch.manual_seed(0)
    train("straight", 5)
    stop = Stop()

    def request(update: int) -> None:
        stop.requested = update == stop_after

    torch.manual_seed(0)
    if stop_after == 15:  # in the last update: nothing is left to do, so the run is done
        train("stopped", 5, CountingPhase(after_update=request), stop=stop)
    else:
        with pytest.raises(Preempted, match=f"checkpoint-{-(-stop_after // 3)}; the same command with --auto_resume"):
            train("stopped", 5, CountingPhase(after_update=request), stop=stop)
        status = json.loads((tmp_path / "stopped" / "status.json").read_text())
        assert (status["state"], status["exit_code"]) == ("preempted", 75)
        assert len(_lines(tmp_path / "stopped")) == stop_after // 3
    torch.manual_seed(99)
    phase = train("stopped", 5)
    assert [c[0] for c in phase.calls if c[0] == "update"] == ["update"] * (15 - stop_after)
    assert _state(tmp_path / "stopped", 5) == _state(tmp_path / "straight", 5)
    assert _lines(tmp_path / "stopped") == _lines(tmp_path / "straight")
    assert json.loads((tmp_path / "stopped" / "status.json").read_text())["state"] == "done"


def test_a_run_stopped_twice_within_one_iteration_loses_nothing(train: Callable, tmp_path: Path) -> None:
    torch.manual_seed(0)
    train("straight", 2)
    torch.manual_seed(0)
    for stop_after in (1, 2):
        stop = Stop()

        def request(update: int, stop: Stop = stop, at: int = stop_after) -> None:
            stop.requested = update == at

        with pytest.raises(Preempted):
            train("stopped", 2, CountingPhase(after_update=request), stop=stop)
    phase = train("stopped", 2)
    assert phase.updates == 6
    assert _state(tmp_path / "stopped", 2) == _state(tmp_path / "straight", 2)
    assert _lines(tmp_path / "stopped") == _lines(tmp_path / "straight")


def test_a_finished_run_has_nothing_to_do_and_a_larger_total_continues_it(train: Callable, tmp_path: Path) -> None:
    train("run", 3)
    again = train("run", 3)
    assert again.calls == [("boundary", 3)] and _steps(tmp_path / "run") == [2, 3]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "done"
    more = train("run", 4)
    assert more.calls[:2] == [("boundary", 3), ("collect", 3)]
    assert [e["episode"] for e in _lines(tmp_path / "run")] == [1, 2, 3, 4]


def test_a_number_that_is_not_finite_keeps_the_batch_and_saves_nothing_new(train: Callable, tmp_path: Path) -> None:
    def fail(update: int) -> None:
        if update == 8:
            raise NumericalError("update 8: loss is not finite")

    with pytest.raises(NumericalError):
        train("run", 5, CountingPhase(after_update=fail))
    assert _steps(tmp_path / "run") == [2]
    assert set(torch.load(tmp_path / "run" / "not_finite_batch_rank0.pt", weights_only=True)) == {"value"}
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 3)


def test_lines_of_metrics_are_means_over_the_iterations_since_the_last_one(
    world: ParallelContext, tmp_path: Path
) -> None:
    class Sparse(CountingPhase):
        """Reports a number in every second iteration only, and none that is finite in the first."""

        def collect(self, step: int) -> dict[str, float]:
            extra = {"sometimes": float(step)} if step % 2 else {}
            return {**super().collect(step), "late": math.nan if step == 0 else 5.0, **extra}

    with RunDir.open(tmp_path / "run", "teacher", Config(), None, world) as directory:
        manager = CheckpointManager(directory.path, 10, world)
        Loop(Sparse(updates=1), Pace(5, 1, 4), 7, world, directory, manager, Stop(), False).run()
    found = _lines(tmp_path / "run")
    # Every fourth, before the checkpoint at 5, and the last.
    assert [line["episode"] for line in found] == [4, 5, 7]
    assert [line["toy/seen"] for line in found] == [1.5, 4.0, 5.5]  # of 0 to 3, 4, 5 and 6
    assert [line["toy/number"] for line in found] == [2.5, 5.0, 6.5]
    assert found[0]["toy/sometimes"] == 2.0 and found[0]["toy/late"] == 5.0
    assert [(line["env_steps"], line["updates"]) for line in found] == [(40, 4), (50, 5), (70, 7)]
    assert not (tmp_path / "run" / "model_config.yaml").exists()


@pytest.mark.parametrize("stop_in", [2, 3, 5])  # update of two in each iteration: at its end, in its middle
def test_a_stop_between_two_written_lines_does_not_show_in_the_metrics(
    world: ParallelContext, tmp_path: Path, stop_in: int
) -> None:
    """Written every third iteration; what was not yet written is in the checkpoint of the stop."""

    def run(name: str, stop_after: int | None = None) -> None:
        torch.manual_seed(5)
        stop = Stop()
        phase = CountingPhase(updates=2, after_update=lambda n: setattr(stop, "requested", n == stop_after))
        with RunDir.open(tmp_path / name, "arm", Config(), None, world, ResumeMode.auto) as directory:
            manager = CheckpointManager(directory.path, 10, world)
            loop = Loop(phase, Pace(100, 1, 3), 6, world, directory, manager, stop, False)
            saved = manager.load(directory.resume_from) if directory.resuming else None
            if saved is not None:
                loop.restore(saved)
            loop.run()

    run("straight")
    with pytest.raises(Preempted):
        run("stopped", stop_in)
    run("stopped")
    assert _lines(tmp_path / "stopped") == _lines(tmp_path / "straight")
    assert [line["episode"] for line in _lines(tmp_path / "stopped")] == [3, 6]
