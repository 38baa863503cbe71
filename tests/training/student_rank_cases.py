"""Two ranks of the student, for test_student_two_ranks: one launch, because each costs seconds."""

from pathlib import Path
from typing import Any

import torch

from rl.training import cli
from rl.training.explorer_update import ExplorerBatch, ExplorerUpdate
from rl.training.parallel_utils import ParallelContext, parameter_hash
from rl.training.student_phase import StudentPhase
from rl.training.train_student_rl import main
from tests.training.student_runs import flags


def straight_and_resumed(world: ParallelContext, teacher: str, place: str) -> dict[str, Any]:
    """Eight episodes at once, and four and four after a resume; two environments a rank."""
    close, phase_close, update = ParallelContext.close, StudentPhase.close, StudentPhase.update
    run_update = ExplorerUpdate.run
    seen: list[dict[str, Any]] = []
    rewards: list[float] = []
    advantages: list[list[float]] = []  # of every update, as the losses see them

    def learned(self: ExplorerUpdate, batch: ExplorerBatch, *args: Any, **kwargs: Any) -> dict[str, float]:
        advantages.append(batch.advantage.flatten().tolist())
        return run_update(self, batch, *args, **kwargs)

    def counted(phase: StudentPhase, progress: float) -> dict[str, float]:
        rewards.append(float(phase.reward_REN.sum()))
        return update(phase, progress)

    def note(phase: StudentPhase) -> None:
        found = {
            "hash": parameter_hash(phase.model.wrapped), "rewards": list(rewards),
            "advantages": list(advantages), "scale": phase.scale.mean.tolist(),
            "indices": [e.index for e in phase.buffer.episodes], "count": phase.scale.count,
            "frames": [int(e.ids_FL.long().sum()) for e in phase.buffer.episodes],
            "optimizer": float(sum(s["exp_avg"].double().abs().sum() for s in phase.model.optimizer.state.values())),
        }  # fmt: skip
        seen.append(found)
        rewards.clear()
        advantages.clear()
        phase_close(phase)

    ParallelContext.close = lambda self: None  # type: ignore[method-assign]
    StudentPhase.close, StudentPhase.update = note, counted  # type: ignore[method-assign]
    ExplorerUpdate.run = learned  # type: ignore[method-assign]
    codes = []
    try:
        for run, episodes, extra in [("straight", 8, []), ("resumed", 4, []), ("resumed", 8, ["--auto_resume"])]:
            torch.manual_seed(world.rank)  # ranks must not depend on equal global generators
            try:
                argv = flags(Path(teacher), Path(place) / run, episodes, "training.num_envs=2", *extra)
                cli.run_main("student", main, argv)
            except SystemExit as e:
                codes.append(e.code)
    finally:
        ExplorerUpdate.run = run_update  # type: ignore[method-assign]
        ParallelContext.close = close  # type: ignore[method-assign]
        StudentPhase.close, StudentPhase.update = phase_close, update  # type: ignore[method-assign]
    return {"codes": codes, "runs": seen}
