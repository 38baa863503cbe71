"""What two ranks do together, for test_parallel_utils."""

import os
from typing import Any

import torch

from rl.config import TrainingConfig
from rl.training import process_end, rng
from rl.training.parallel_utils import ParallelContext, RankMismatchError, parameter_hash


def everything(world: ParallelContext) -> dict[str, Any]:
    """One launch for many facts, since a launch costs seconds."""
    rng.seed_all(0)
    model = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(2.0)
    wrapped, optimizer = world.prepare(model, torch.optim.SGD(model.parameters(), lr=0.1))
    # loss = w * x with x = 1 on rank 0 and 3 on rank 1: the mean gradient is 2
    loss = wrapped(torch.tensor([[1.0 + 2.0 * world.rank]])).sum()
    world.backward(loss)
    norm = world.clip_grad_norm(model.parameters(), 1.0)
    optimizer.step()
    world.assert_ranks_equal(wrapped, "after a step")
    equal_hash = parameter_hash(wrapped)
    bad = torch.nn.Module()
    bad.register_parameter("a", torch.nn.Parameter(torch.tensor([1.0])))
    bad.register_parameter("b", torch.nn.Parameter(torch.tensor([float(world.rank)])))
    errors = []
    for check in (lambda: world.assert_ranks_equal(bad, "at start"), lambda: world.mean({f"only_{world.rank}": 1.0})):
        try:
            check()
        except RankMismatchError as e:
            errors.append(str(e))
    return {
        "rank": world.rank,
        "world_size": world.world_size,
        "is_main": world.is_main,
        "grad_norm": norm.item(),
        "weight": model.weight.item(),
        "hash": equal_hash,
        "errors": errors,
        "mean": world.mean({"b": float(world.rank), "a": 1.0}),
        "any_of_one": world.any_rank(world.rank == 1),
        "any_of_none": world.any_rank(False),
        "all_of_one": world.all_true(world.rank == 1),
        "all_of_all": world.all_true(True),
        "gathered": world.gather_objects({"rank": world.rank}),
        "broadcast": world.broadcast_object(f"from {world.rank}"),
        "seed": world.seed_for(0, "env"),
        "threads": torch.get_num_threads(),
    }


def leave_groups(world: ParallelContext, ports: list[int]) -> int:
    """Leaves a group of its own at each port right after a collective, with a wrapped model that owns the group."""
    world.close()
    os.environ["TORCHELASTIC_USE_AGENT_STORE"] = "False"
    for port in ports:
        os.environ["MASTER_PORT"] = str(port)
        context = ParallelContext.create(TrainingConfig(device="cpu"), timeout_s=30)
        linear = torch.nn.Linear(4, 4)
        model, _ = context.prepare(linear, torch.optim.SGD(linear.parameters(), 0.1))
        context.backward(model(torch.ones(2, 4)).sum())
        context.barrier()
        context.close()
        del model
    return len(ports)


def abandon(world: ParallelContext) -> list[bool]:
    """Whether a rank that fails keeps its group, so that its process ends without freeing it."""
    before = bool(process_end._left)
    world.abandon()
    return [before, bool(process_end._left)]
