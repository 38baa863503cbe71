"""Two ranks of phase 3, for test_adversarial_two_ranks: one launch, because each costs seconds."""

from pathlib import Path
from typing import Any

import torch

from rl.training import cli
from rl.training.adversarial_phase import AdversarialPhase
from rl.training.parallel_utils import ParallelContext, parameter_hash
from rl.training.train_adversarial_rl import main
from tests.training.adversarial_runs import flags

SETTINGS = (
    "training.sample_save_every=0", "training.video_save_every=0", "training.num_envs=2",
    "adversarial.held_out.every=1",
)  # fmt: skip


def straight_and_resumed(world: ParallelContext, teacher: str, student: str, place: str) -> dict[str, Any]:
    """Three iterations at once, and two and one after a resume; two environments a rank."""
    close, phase_close = ParallelContext.close, AdversarialPhase.close
    seen: list[dict[str, Any]] = []

    def note(phase: AdversarialPhase) -> None:
        versions = [*phase.explorer.pool.ring, phase.explorer.slow.version, phase.world_model.good]
        found = {
            "hash": parameter_hash(phase.explorer.model.explorer), "leash": phase.explorer.leash.weight,
            "versions": [float(sum(t.double().sum() for t in v.values())) for v in versions],
            "indices": [e.index for e in phase.replay.buffer.episodes], "best": phase.world_model.best,
            "frames": [int(e.ids_FL.long().sum()) for e in phase.replay.buffer.episodes],
            "suites": {k: int(v[0].ids_FL.long().sum()) for k, v in phase.held_out.episodes.items()},
        }  # fmt: skip
        seen.append(found)
        phase_close(phase)

    ParallelContext.close = lambda self: None  # type: ignore[method-assign]
    AdversarialPhase.close = note  # type: ignore[method-assign]
    codes = []
    try:
        for run, iterations, extra in [("straight", 3, []), ("resumed", 2, []), ("resumed", 3, ["--auto_resume"])]:
            torch.manual_seed(world.rank)  # ranks must not depend on equal global generators
            try:
                argv = flags(Path(teacher), Path(student), Path(place) / run, iterations, *SETTINGS, *extra)
                cli.run_main("adversarial", main, argv)
            except SystemExit as e:
                codes.append(e.code)
    finally:
        ParallelContext.close = close  # type: ignore[method-assign]
        AdversarialPhase.close = phase_close  # type: ignore[method-assign]
    return {"codes": codes, "runs": seen}
