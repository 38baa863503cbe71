"""Every command that writes metrics refuses a view of them whose package is missing, before anything is written."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rl.config import LoggingConfig
from rl.training import pipeline, train_adversarial_rl, train_arm, train_rl, train_student_rl, train_teacher_rl
from rl.training.metrics_log import check_board
from tests.training.run_here import run_here

MAINS: dict[str, Callable[..., Any]] = {
    "teacher": train_teacher_rl.main, "student": train_student_rl.main, "adversarial": train_adversarial_rl.main,
    "pipeline": pipeline.main, "arm": train_arm.main, "rl": train_rl.main,
}  # fmt: skip


@pytest.fixture
def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package wandb is not installed, whatever this machine has."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "wandb" else find(name, *a))


def test_only_the_view_that_is_asked_for_is_looked_for(missing: None) -> None:
    check_board(LoggingConfig(tensorboard=True))
    with pytest.raises(ValueError, match="needs the package wandb"):
        check_board(LoggingConfig(wandb=True))


@pytest.mark.parametrize(
    ("phase", "asked"), [*((phase, ["logging.wandb=true"]) for phase in MAINS), ("rl", ["--logger", "wandb"])]
)
def test_weights_and_biases_without_its_package_is_refused_and_leaves_nothing(
    missing: None, phase: str, asked: list[str], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    # A run that goes on needs no world model and no explorer to start from.
    place = ["--resume" if phase in ("student", "adversarial") else "--output_dir", str(tmp_path / "run")]
    assert run_here(MAINS[phase], [*place, *asked], phase) == 4
    told = capfd.readouterr().err
    assert "logging.wandb=true (train.sh rl: --logger wandb) needs the package wandb" in told, told
    assert not any(tmp_path.iterdir())
