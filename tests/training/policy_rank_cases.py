"""Two ranks of an arm run, for test_policy_two_ranks: one launch, because each costs seconds."""

from pathlib import Path
from typing import Any

from rl.training import cli
from rl.training.parallel_utils import ParallelContext, parameter_hash
from rl.training.policy_phase import PolicyPhase
from rl.training.train_arm import main
from tests.training.policy_runs import flags


def run_both(world: ParallelContext, place: str) -> dict[str, Any]:
    """PPO and FASTSAC, 256 steps each, in the group of the launch."""
    close, phase_close = ParallelContext.close, PolicyPhase.close
    hashes, codes = [], []

    def note(phase: PolicyPhase) -> None:
        hashes.append(parameter_hash(phase.inner.greedy))
        phase_close(phase)

    ParallelContext.close, PolicyPhase.close = lambda self: None, note  # type: ignore[method-assign,assignment]
    try:
        for algorithm in ("PPO", "FASTSAC"):
            extra = ["--steps", "256", "arm.save_every=128", "arm.eval_every=128", "arm.log_every=128"]
            try:
                cli.run_main("arm", main, flags("arm", algorithm, Path(place) / algorithm, *extra))
            except SystemExit as e:
                codes.append(e.code)
    finally:
        ParallelContext.close, PolicyPhase.close = close, phase_close  # type: ignore[method-assign]
    return {"codes": codes, "hashes": hashes}
