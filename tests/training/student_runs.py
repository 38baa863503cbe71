"""Whole student runs of the smallest size, and the teacher they start from.

As a program (`student_runs.py STOP_AFTER flags...`) it trains and sends itself SIGTERM after that many iterations.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rl.training import cli
from rl.training.student_phase import StudentPhase
from rl.training.train_student_rl import main
from tests.training import teacher_runs

STEPS, ENVS, HEADS = 6, 2, 2
SETTINGS = {
    "training.num_threads": 1, "training.steps_per_episode": STEPS, "training.bptt_length": 3,
    "training.num_envs": ENVS, "training.save_every": 2, "training.sample_save_every": 2,
    "training.video_save_every": 2, "training.schedule_episodes": 4, "environment.num_objects": 2,
    "arch.world_model.ensemble_heads": HEADS, "arch.world_model.ensemble_features": 8,
    "student.episodes_per_iteration": 1, "student.ppo.minibatches": 2, "student.ppo.epochs": 2,
    "student.flow.num_steps": 2, "student.learning_rate": 1e-3, "student.ppo.kl_stop": 100.0,
}  # fmt: skip


def teacher_flags(tokenizer: Path, run: Path) -> list[str]:
    """Two episodes of a teacher with ensemble heads."""
    return teacher_runs.flags(
        tokenizer, run, 2, f"training.steps_per_episode={STEPS}", "training.save_every=2",
        f"arch.world_model.ensemble_heads={HEADS}", "arch.world_model.ensemble_features=8",
        "training.video_save_every=0", "training.sample_save_every=0", "logging.tensorboard=false",
    )  # fmt: skip


def make_teacher(place: Path, tokenizer: Path) -> None:
    """The run directory `place`/run."""
    code, output = teacher_runs.run_process(teacher_flags(tokenizer, place / "run"))
    assert code == 0, output


def flags(teacher: Path | None, output_dir: Path, episodes: int, *extra: str) -> list[str]:
    """Command line of one run; `extra` replaces settings of the same key."""
    replaced = {e.split("=")[0] for e in extra}
    overrides = [f"{k}={v}" for k, v in SETTINGS.items() if k not in replaced]
    preset = [] if "--model_config" in extra else ["--model_config", "debug_test"]
    source = [] if teacher is None else ["--teacher_path", str(teacher)]
    place = ["--device", "cpu", "--output_dir", str(output_dir), "--num_episodes", str(episodes)]
    return [*preset, *source, *place, *overrides, *extra]


@contextmanager
def sigterm_after(iterations: int) -> Iterator[None]:
    """A student in this process sends itself SIGTERM at the end of that iteration's update."""
    update = StudentPhase.update

    def counted(self: StudentPhase, progress: float) -> dict[str, float]:
        line = update(self, progress)
        if self.updates == iterations:
            os.kill(os.getpid(), signal.SIGTERM)
        return line

    StudentPhase.update = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        StudentPhase.update = update  # type: ignore[method-assign]


if __name__ == "__main__":
    with sigterm_after(int(sys.argv[1])):
        cli.run_main("student", main, sys.argv[2:])
