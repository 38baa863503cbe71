"""What every phase does around its loop: group, run directory, signals, logging, checkpoints, end."""

import contextlib
import logging
from collections.abc import Callable
from typing import Any, Protocol

import kernels
from f1_vla.config import F1Config
from rl import config as rl_config
from rl.suppress_logs import suppress_logs
from rl.training import cli, provenance, rng
from rl.training.checkpoint import CheckpointManager
from rl.training.errors import CollectiveError
from rl.training.gpu import setup_sapien_gpu
from rl.training.logging_setup import setup_logging
from rl.training.loop import Loop, Pace, Phase
from rl.training.loss_spikes import SpikeWatch
from rl.training.metrics_log import check_board
from rl.training.model_setup import check_model_files
from rl.training.parallel_utils import ParallelContext
from rl.training.preemption import StopFlag
from rl.training.run_dir import RunDir

log = logging.getLogger(__name__)
SHARDED_PHASES = ("teacher",)  # every call of what they train goes through the wrapped forward, on all ranks


class ClosablePhase(Phase, Protocol):
    def close(self) -> None: ...


def run_phase(
    args: cli.Args, build: Callable[[cli.Args, ParallelContext], ClosablePhase], total: int,
    check: Callable[[rl_config.Config, F1Config], None] = check_model_files, pace: Pace | None = None,
    finish: Callable[[Any, RunDir], None] | None = None,
) -> None:  # fmt: skip
    """Collective. Opens the run, builds the phase, restores what there is to restore and runs the loop to `total`.

    What can be refused without a model or a simulator is refused by `check` before the run directory is touched.
    `pace`: when to save and write, default that of `training`. `finish(phase, run)` is called when `total` is reached.
    """
    cfg = args.config
    check_board(cfg.logging)
    check(cfg, args.arch)
    stop = StopFlag()
    stop.install()
    setup_sapien_gpu()
    suppress_logs()
    ctx = ParallelContext.create(cfg.training)
    if ctx.sharded and args.phase not in SHARDED_PHASES:
        raise CollectiveError(
            f"phase {args.phase} acts with what it trains and keeps it whole on every rank; take "
            f"configs/accelerate/ddp.yaml (FSDP and DeepSpeed are for {', '.join(SHARDED_PHASES)})"
        )
    try:
        _run(args, build, total, ctx, stop, pace, finish)
    except BaseException:
        ctx.abandon()  # a broken group must not be waited for
        raise
    ctx.barrier()  # together, so that no rank leaves a peer behind
    ctx.close()


def _run(
    args: cli.Args, build: Callable[[cli.Args, ParallelContext], ClosablePhase], total: int, ctx: ParallelContext,
    stop: StopFlag, pace: Pace | None, finish: Callable[[Any, RunDir], None] | None,
) -> None:  # fmt: skip
    """Collective. The run, inside its group."""
    cfg = args.config
    arch = None if args.phase in cli.POLICY_RUNS else args.arch  # arm and rl have no F1 model
    run = RunDir.open(
        args.output_dir, args.phase, cfg, arch, ctx, args.resume, args.resume_path, args.overwrite, args.allow_drift
    )
    with run:
        setup_logging(cfg.logging, run.path, ctx.rank, ctx.world_size)
        for note in run.notes:
            log.info("configuration changed on resume: %s", note)
        extra = {
            "config_fingerprint": rl_config.fingerprint(cfg),
            "architecture_fingerprint": None if arch is None else rl_config.fingerprint(arch),
            "code_commit": provenance.git_commit(),
        }
        c = cfg.checkpoint
        go_on = c.on_failure is rl_config.SaveFailure.go_on
        manager = CheckpointManager(run.path, cfg.training.keep_checkpoints, ctx, extra, c.async_write, go_on)
        # Whatever draws from a global generator is a function of the seed, and what is saved of it can be compared.
        rng.seed_all(ctx.seed_for(cfg.training.seed, "run"))
        try:
            phase = build(args, ctx)
        except ValueError:
            run.discard()
            raise
        if ctx.is_main:
            kernels.record_decisions(run.path / "attention.json")
        with contextlib.closing(phase):
            pace = pace or Pace(cfg.training.save_every, cfg.training.log_every)
            loop = Loop(phase, pace, total, ctx, run, manager, stop, cfg.logging.tensorboard, cfg.logging.wandb)
            loop.spikes = SpikeWatch(cfg.numbers)
            saved = manager.load(run.resume_from) if run.resuming else None
            if saved is not None:
                loop.restore(saved)
                log.info("continuing from %s", saved.saved.path)
            loop.run()
            if finish is not None:
                finish(phase, run)
