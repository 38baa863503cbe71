"""States and actions that the checkpoint tests also run in other processes."""

import os
from pathlib import Path
from typing import Any

import torch

from rl.config import TrainingConfig
from rl.training.checkpoint import CheckpointManager, CheckpointState
from rl.training.errors import CheckpointError
from rl.training.parallel_utils import ParallelContext


def write_adapter(directory: Path) -> None:
    (directory / "adapter_config.json").write_text("{}")
    (directory / "adapter_model.safetensors").write_bytes(bytes(range(64)))


def state_of(step: int, rank: int = 0) -> CheckpointState:
    """Every part filled with values derived from step and rank."""
    return CheckpointState(
        model={"weight": torch.full((2, 3), float(step))},
        training={"episode": step, "optimizer": {"state": {0: {"exp_avg": torch.ones(2) * step}}}},
        metrics={"loss": 1.0 / (step + 1)},
        per_rank={"rank": rank},
        rank_files={"buffer": torch.full((4,), step + 100 * rank)},
        peft_adapter=write_adapter,
    )


def save_and_die(run_dir: Path, step: int, fault_point: str) -> None:
    """Own process: saves one more checkpoint and is killed at `fault_point`."""
    os.environ["FAULT_POINT"] = fault_point
    world = ParallelContext.create(TrainingConfig(device="cpu"))
    CheckpointManager(run_dir, 2, world).save(step, state_of(step))


def two_ranks(world: ParallelContext, run_dir: str) -> dict[str, Any]:
    """Both ranks save, one rank fails to save, both load."""
    manager = CheckpointManager(Path(run_dir), 2, world)
    manager.save(1, state_of(1, world.rank))
    failing = state_of(2, world.rank)
    if world.rank == 1:
        failing.per_rank["bad"] = Path("/")  # not plain data
    message = "saved"
    try:
        manager.save(2, failing)
    except CheckpointError as e:
        message = str(e)
    names = sorted(p.name for p in Path(run_dir).iterdir())
    manager.save(3, state_of(3, world.rank))
    loaded = manager.load()
    assert loaded is not None
    return {
        "message": message,
        "names_after_failure": names,
        "step": loaded.step,
        "weight": loaded.model["weight"].sum().item(),
        "rank": (loaded.per_rank or {})["rank"],
        "buffer": loaded.rank_file("buffer").tolist(),
    }
