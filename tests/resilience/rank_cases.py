"""What the tests of this folder run on two ranks."""

import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rl.training import cli, policies, train_arm
from rl.training.checkpoint import CheckpointManager
from rl.training.checkpoint_writer import RankPart
from rl.training.errors import CheckpointError, NumericalError
from rl.training.optim import guarded_step
from rl.training.parallel_utils import ParallelContext, parameter_hash
from rl.training.policy_phase import PolicyPhase
from tests.training import policy_runs
from tests.training.checkpoint_cases import state_of


def everything(world: ParallelContext, place: str) -> dict[str, Any]:
    return {
        "asynchronous": asynchronous(world, f"{place}/saves"), "gradients": one_bad_gradient(world),
        "rewards": bad_rewards(world, place),
    }  # fmt: skip


def asynchronous(world: ParallelContext, run_dir: str) -> dict[str, Any]:
    """Rank 1 writes late, then fails to write, then writes."""
    manager = CheckpointManager(Path(run_dir), 2, world, asynchronous=True)
    write, gate, broken = RankPart.write, threading.Event(), False

    def slow(part: RankPart) -> Any:
        if world.rank == 1:
            gate.wait(30)
            if broken:
                raise OSError(28, "No space left on device")
        return write(part)

    def visible() -> list[str]:
        names = sorted(p.name for p in Path(run_dir).iterdir() if not p.name.startswith("."))
        world.barrier()
        return names

    RankPart.write = slow  # type: ignore[method-assign]
    manager.save(1, state_of(1, world.rank), wait=False)
    manager.poll()
    waiting = visible()
    gate.set()
    while not visible():
        manager.poll()
    committed = visible()
    broken, message = True, "saved"
    manager.save(2, state_of(2, world.rank), wait=False)
    try:
        manager.settle()
    except CheckpointError as e:
        message = str(e)
    broken = False
    manager.save(3, state_of(3, world.rank), wait=False)
    manager.settle()
    loaded = manager.load()
    assert loaded is not None
    RankPart.write = write  # type: ignore[method-assign]
    return {
        "waiting": waiting, "committed": committed, "message": message, "after": visible(),
        "buffer": loaded.rank_file("buffer").tolist(),
    }  # fmt: skip


def one_bad_gradient(world: ParallelContext) -> dict[str, Any]:
    """A step whose loss, or only whose gradient, is not finite on rank 1 alone."""
    found = {}
    for bad in ("loss", "gradient"):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 1)
        wrapped, optimizer = world.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
        before = parameter_hash(model)
        out = wrapped(torch.ones(4, 3)).mean()
        if world.rank == 1:
            # sqrt is finite at 0, its slope is not
            out = out * float("nan") if bad == "loss" else out + (model.weight * 0).sum().abs().sqrt()
        world.backward(out)
        message = "stepped"
        try:
            guarded_step(world, optimizer, model.parameters(), out, 1.0, "update 7")
        except NumericalError as e:
            message = str(e)
        found[bad] = {"message": message, "untouched": parameter_hash(model) == before, "state": len(optimizer.state)}
    return found


def bad_rewards(world: ParallelContext, place: str) -> dict[str, Any]:
    """Whole arm runs in which the rewards of rank 1 turn into NaN in the second iteration."""
    close, phase_close, build = ParallelContext.close, PolicyPhase.close, policies.make_env
    codes, hashes = {}, {}

    def poisoned(cfg: Any, run: str, *args: Any, **kwargs: Any) -> Any:
        env = build(cfg, run, *args, **kwargs)
        step, count = env.step, [0]

        def bad(actions: Any) -> Any:
            count[0] += 1
            result = step(actions)
            return replace(result, reward=result.reward * float("nan")) if count[0] > 32 else result

        if world.rank == 1:
            env.step = bad
        return env

    def note(phase: PolicyPhase) -> None:
        # Statistics of PPO's observations are shared after an update, which did not take place.
        hashes[algorithm] = parameter_hash(phase.inner.policy if algorithm == "PPO" else phase.inner.greedy)
        phase_close(phase)

    ParallelContext.close, PolicyPhase.close = lambda self: None, note  # type: ignore[method-assign,assignment]
    policies.make_env = poisoned
    end, cli.end_process = cli.end_process, sys.exit  # a failed run of several ranks ends its process at once
    try:
        for algorithm in ("PPO", "FASTSAC"):
            extra = ["--steps", "1024", "arm.save_every=256", "arm.eval_every=100000", "arm.log_every=256"]
            argv = policy_runs.flags("arm", algorithm, Path(place) / algorithm, *extra, "checkpoint.async_write=true")
            try:
                cli.run_main("arm", train_arm.main, argv)
            except SystemExit as e:
                codes[algorithm] = e.code
    finally:
        ParallelContext.close, PolicyPhase.close = close, phase_close  # type: ignore[method-assign]
        policies.make_env, cli.end_process = build, end
    return {"codes": codes, "hashes": hashes}
