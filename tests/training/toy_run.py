"""A whole small run through every part of the machinery: DDP, dropout, AdamW, checkpoints, signals, resume.

toy_run.py OUTPUT_DIR TOTAL STOP_AT HASH_FILE [flags]     (rank 1 sends itself SIGTERM at step STOP_AT; 0: never)

In the environment: TOY_SAVE_EVERY (steps), TOY_TIMEOUT_S of collectives, TOY_FAULTS "kind:rank:step,...", each once:
kill (SIGKILL), raise, nan (NumericalError), wait (until somebody kills it).
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch

from rl.training import cli, rng
from rl.training.checkpoint import CheckpointManager, CheckpointState, load_strict
from rl.training.errors import NumericalError, Preempted
from rl.training.metrics_log import MetricsLog
from rl.training.parallel_utils import ParallelContext, parameter_hash
from rl.training.preemption import StopFlag
from rl.training.run_dir import RunDir

save_every = int(os.environ.get("TOY_SAVE_EVERY", "1000000"))
output_dir, total, stop_at, hash_file = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])


def train(args: cli.Args) -> None:
    stop = StopFlag()
    stop.install()
    world = ParallelContext.create(args.config.training, timeout_s=float(os.environ.get("TOY_TIMEOUT_S", "30")))
    settings = (
        args.output_dir,
        "teacher",
        args.config,
        args.arch,
        world,
        args.resume,
        args.resume_path,
        args.overwrite,
    )
    with RunDir.open(*settings) as run:
        train_in(run, args, world, stop)
    world.close()


def maybe_fail(step: int, world: ParallelContext) -> None:
    for fault in filter(None, os.environ.get("TOY_FAULTS", "").split(",")):
        kind, rank, at = fault.split(":")
        flag = hash_file.with_suffix(f".{kind}-{rank}-{at}")
        if (int(rank), int(at)) != (world.rank, step) or flag.exists():
            continue
        flag.touch()
        if kind == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if kind == "raise":
            raise RuntimeError("a bug on one rank")
        if kind == "nan":
            raise NumericalError("the loss is not finite")
        if kind == "wait":
            time.sleep(600)


def train_in(run: RunDir, args: cli.Args, world: ParallelContext, stop: StopFlag) -> None:
    manager = CheckpointManager(run.path, 2, world)
    rng.seed_all(world.seed_for(args.config.training.seed, "toy"))
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))
    wrapped, optimizer = world.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.01))
    loaded = manager.load(run.resume_from) if run.resuming else None
    if loaded is not None:
        load_strict(model, loaded.model, loaded.saved.path)
        optimizer.load_state_dict(loaded.training["optimizer"])
        assert loaded.per_rank is not None
        rng.restore(loaded.per_rank["rng"], world.device)
    first = 0 if loaded is None else loaded.step
    metrics = MetricsLog(
        run.path, tensorboard=False, enabled=world.is_main, resumed_at=None if loaded is None else first
    )
    world.assert_ranks_equal(wrapped, "at start")

    def save(step: int) -> None:
        rank_state = {"rng": rng.capture(world.device)}
        manager.save(step, CheckpointState(model.state_dict(), {"optimizer": optimizer.state_dict()}, {}, rank_state))

    for step in range(first + 1, total + 1):
        maybe_fail(step, world)
        loss = wrapped(torch.randn(5, 4)).square().mean()
        optimizer.zero_grad()
        world.backward(loss)
        world.clip_grad_norm(model.parameters(), 1.0)
        optimizer.step()
        metrics.write(step, world.mean({"toy/loss": loss.item()}))
        run.status("running", step=step, total=total)
        if step == stop_at and world.rank == world.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        if world.any_rank(stop.stop_requested()):
            save(step)
            raise Preempted(f"checkpoint-{step} saved")
        if step % save_every == 0 and step < total:
            save(step)
    save(total)
    world.assert_ranks_equal(wrapped, "at the end")
    if world.is_main:
        hash_file.write_text(parameter_hash(wrapped))
    if world.is_main and first:
        with hash_file.with_suffix(".resumed").open("a") as f:
            f.write(json.dumps(first) + "\n")


if __name__ == "__main__":
    cli.run_main("teacher", train, ["--device", "cpu", "--output_dir", output_dir, *sys.argv[5:]])
