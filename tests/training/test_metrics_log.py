import json
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rl.training.metrics_log import FILE_NAME, MetricsLog, truncate_jsonl


def lines(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / FILE_NAME).read_text().splitlines()]


def test_each_write_is_one_line_on_disk_at_once(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, tensorboard=False)
    log.write(1, {"teacher/loss": 0.5, "teacher/tokens": 85})
    assert lines(tmp_path) == [{"episode": 1, "teacher/loss": 0.5, "teacher/tokens": 85}]
    log.close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_values_without_a_json_word_become_null(value: float, tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, tensorboard=False)
    log.write(1, {"teacher/loss": value})
    log.close()
    assert lines(tmp_path) == [{"episode": 1, "teacher/loss": None}]


def test_a_resume_drops_lines_beyond_the_restored_step_and_continues(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, tensorboard=False)
    for n in (1, 2, 3, 4):
        log.write(n, {"x": n})
    log.close()
    log = MetricsLog(tmp_path, tensorboard=False, resumed_at=2)
    log.write(3, {"x": 30})
    log.close()
    assert lines(tmp_path) == [{"episode": 1, "x": 1}, {"episode": 2, "x": 2}, {"episode": 3, "x": 30}]


def test_a_torn_last_line_is_dropped_and_another_broken_line_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / FILE_NAME
    path.write_text('{"iteration": 1}\n{"iteration": 2}\n{"iterat')
    assert truncate_jsonl(path, "iteration", 5) == 1
    assert path.read_text() == '{"iteration": 1}\n{"iteration": 2}\n'
    path.write_text('{"iteration": 1}\nbroken\n{"iteration": 2}\n')
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        truncate_jsonl(path, "iteration", 5)


def test_a_new_run_starts_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_text('{"episode": 1}\n')
    MetricsLog(tmp_path, tensorboard=False).close()
    assert lines(tmp_path) == []


def test_tensorboard_shows_the_same_numbers(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path)
    log.write(3, {"teacher/loss": 0.25, "note": "text", "teacher/nan": float("nan")})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["teacher/loss"]
    assert [(e.step, e.value) for e in events.Scalars("teacher/loss")] == [(3, 0.25)]


def test_a_failing_tensorboard_is_reported_once_and_stops_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = MetricsLog(tmp_path)

    def fail(*_: object) -> None:
        raise OSError("disk quota")

    monkeypatch.setattr(log._board, "add_scalar", fail)
    with caplog.at_level(logging.WARNING):
        log.write(1, {"x": 1.0})
        log.write(2, {"x": 2.0})
    log.close()
    assert caplog.text.count("disk quota") == 1
    assert [line["x"] for line in lines(tmp_path)] == [1.0, 2.0]


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path, enabled=False)
    log.write(1, {"x": 1.0})
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_weights_and_biases_sees_the_numbers_that_are_numbers_and_continues_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[object] = []

    class Run:
        def log(self, values: dict[str, float], step: int) -> None:
            logged.append((values, step))

        def finish(self) -> None:
            logged.append("finished")

    def init(**kwargs: object) -> Run:
        logged.append((kwargs["name"], kwargs["id"], kwargs["resume"]))
        return Run()

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init))
    for step in (1, 2):
        log = MetricsLog(tmp_path, wandb=True, resumed_at=None if step == 1 else 1)
        log.write(step, {"a/loss": 0.5, "a/word": "x", "a/none": float("nan")})
        log.close()
    assert logged[1:3] == [({"a/loss": 0.5}, 1), "finished"] and logged[4] == ({"a/loss": 0.5}, 2)
    assert logged[0] == logged[3] and logged[0][2] == "allow"  # type: ignore[index]
    assert not (tmp_path / "tensorboard").exists()
