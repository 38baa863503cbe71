"""What every phase does around its loop: group, run directory, signals, logging, checkpoints, end."""

import logging
from collections.abc import Callable
from typing import Protocol

from rl import config as rl_config
from rl.suppress_logs import suppress_logs
from rl.training import cli
from rl.training.checkpoint import CheckpointManager
from rl.training.errors import Preempted
from rl.training.gpu import setup_sapien_gpu
from rl.training.logging_setup import setup_logging
from rl.training.loop import Loop, Phase
from rl.training.parallel_utils import ParallelContext
from rl.training.preemption import StopFlag
from rl.training.run_dir import RunDir

log = logging.getLogger(__name__)


class ClosablePhase(Phase, Protocol):
    def close(self) -> None: ...


def run_phase(args: cli.Args, build: Callable[[cli.Args, ParallelContext], ClosablePhase], total: int) -> None:
    """Collective. Opens the run, builds the phase, restores what there is to restore and runs the loop to `total`."""
    cfg = args.config
    stop = StopFlag()
    stop.install()
    setup_sapien_gpu()
    suppress_logs()
    ctx = ParallelContext.create(cfg.training)
    run = RunDir.open(args.output_dir, args.phase, cfg, args.arch, ctx, args.resume, args.resume_path, args.overwrite)
    state, code = "failed", 1
    phase = None
    try:
        setup_logging(cfg.logging, run.path, ctx.rank, ctx.world_size)
        fingerprints = {"config": rl_config.fingerprint(cfg), "architecture": rl_config.fingerprint(args.arch)}
        manager = CheckpointManager(run.path, cfg.training.keep_checkpoints, ctx, fingerprints)
        phase = build(args, ctx)
        loop = Loop(phase, cfg.training, total, ctx, run, manager, stop, cfg.logging.tensorboard)
        if run.resuming:
            saved = manager.load(run.resume_from)
            if saved is not None:
                loop.restore(saved)
                log.info("continuing from %s", saved.saved.path)
        loop.run()
        state, code = "done", 0
    except Preempted:
        state, code = "preempted", 75
        raise
    finally:
        if state == "failed":
            run.status(state, exit_code=code)
        if phase is not None:
            phase.close()
        run.close()
        if state != "failed":  # a broken group must not be waited for
            ctx.close()
