"""Two ranks of the teacher, for test_teacher_two_ranks: one launch, because each costs seconds."""

from pathlib import Path
from typing import Any

from rl.training import cli
from rl.training.parallel_utils import ParallelContext, parameter_hash
from rl.training.teacher_phase import TeacherPhase
from rl.training.train_teacher_rl import main
from tests.training.teacher_runs import flags

EPISODES = 4


def straight_and_resumed(world: ParallelContext, tokenizer: str, place: str) -> dict[str, Any]:
    """Four episodes at once; two and two after a resume; the rest of a run that one process stopped in an iteration.
    The group of the launch serves all runs."""
    close, phase_close = ParallelContext.close, TeacherPhase.close
    seen: list[dict[str, Any]] = []

    def note(phase: TeacherPhase) -> None:
        frames = [int(e.ids_FL.long().sum()) for e in phase.buffer.episodes]
        actions = [float(e.actions_TA.sum()) for e in phase.buffer.episodes]
        indices = [e.index for e in phase.buffer.episodes]
        found = parameter_hash(phase.model.wrapped)
        seen.append({"hash": found, "frames": frames, "actions": actions, "indices": indices, "updates": phase.updates})
        phase_close(phase)

    ParallelContext.close, TeacherPhase.close = lambda self: None, note  # type: ignore[method-assign,assignment]
    codes = []
    try:
        for run, episodes, extra in [
            ("straight", EPISODES, []), ("resumed", 2, []), ("resumed", EPISODES, ["--auto_resume"]),
            ("interrupted_alone", EPISODES, ["--auto_resume"]),
        ]:  # fmt: skip
            schedule = [f"training.schedule_episodes={EPISODES}", "training.save_every=2"]
            try:
                cli.run_main("teacher", main, flags(Path(tokenizer), Path(place) / run, episodes, *schedule, *extra))
            except SystemExit as e:
                codes.append(e.code)
    finally:
        ParallelContext.close, TeacherPhase.close = close, phase_close  # type: ignore[method-assign]
    return {"codes": codes, "runs": seen}
