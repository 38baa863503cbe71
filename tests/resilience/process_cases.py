"""Ranks that do not do the same, for test_processes."""

import time
from pathlib import Path
from typing import Any

from rl.training.checkpoint import CheckpointManager
from rl.training.parallel_utils import ParallelContext
from tests.training.checkpoint_cases import state_of


def one_rank_saves(world: ParallelContext, run_dir: str) -> dict[str, Any]:
    """Rank 0 begins a checkpoint that rank 1 knows nothing of: rank 1 is late until the group gives up."""
    manager = CheckpointManager(Path(run_dir), 2, world)
    manager.save(1, state_of(1, world.rank))
    started, error = time.monotonic(), "none"
    try:
        if world.rank == 0:
            manager.save(2, state_of(2))
        else:
            time.sleep(8)
            world.any_rank(True)
    except Exception as e:  # noqa: BLE001 - whatever the backend raises
        error = type(e).__name__
    return {"error": error, "seconds": time.monotonic() - started}
