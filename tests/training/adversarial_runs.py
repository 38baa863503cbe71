"""Whole runs of phase 3 of the smallest size."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rl.training.world_model_player import WorldModelPlayer
from tests.training import student_runs

MODULE = "rl.training.train_adversarial_rl"
# Two iterations of warm-up, so that iterations 3 and 4 have both players; everything that is due now and then is due.
SETTINGS = student_runs.SETTINGS | {
    "training.batch_size": 4, "training.num_envs": 2, "teacher.burn_in": 1, "teacher.latent_batch_size": 4,
    "adversarial.schedule_iterations": 4, "adversarial.warmup_iterations": 1, "adversarial.wm_updates_per_iter": 3,
    "adversarial.explorer_updates_per_iter": 2, "adversarial.wm_warmup_updates": 2,
    "adversarial.reward_refresh_every": 2, "adversarial.pool_every": 1, "adversarial.pool_size": 2,
    "adversarial.replay.initial_random_rounds": 1, "adversarial.held_out.every": 2, "adversarial.held_out.episodes": 1,
    "logging.tensorboard": "false",
}  # fmt: skip


def flags(teacher: Path | None, student: Path | None, output_dir: Path, iterations: int, *extra: str) -> list[str]:
    """Command line of one run; `extra` replaces settings of the same key."""
    replaced = {e.split("=")[0] for e in extra}
    overrides = [f"{k}={v}" for k, v in SETTINGS.items() if k not in replaced]
    preset = [] if "--model_config" in extra else ["--model_config", "debug_test"]
    source = [] if teacher is None else ["--teacher_checkpoint", str(teacher)]
    source += [] if student is None else ["--student_checkpoint", str(student)]
    place = ["--device", "cpu", "--output_dir", str(output_dir), "--total_iterations", str(iterations)]
    return [*preset, *source, *place, *overrides, *extra]


@contextmanager
def sigterm_after(updates: int) -> Iterator[None]:
    """A run in this process sends itself SIGTERM at the end of its world-model update of that number."""
    update = WorldModelPlayer.update

    def counted(self: WorldModelPlayer, progress: float) -> dict[str, float]:
        line = update(self, progress)
        if self.updates == updates:
            os.kill(os.getpid(), signal.SIGTERM)
        return line

    WorldModelPlayer.update = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        WorldModelPlayer.update = update  # type: ignore[method-assign]
