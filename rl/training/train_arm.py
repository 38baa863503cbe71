"""`train.sh arm`: an algorithm learns to reach, or all of them are compared."""

import time
from pathlib import Path

from rl import config as rl_config
from rl.envs import registry
from rl.training import arm_compare, cli, policies
from rl.training.launch import run_phase
from rl.training.loop import Pace
from rl.training.parallel_utils import ParallelContext
from rl.training.policy_phase import PolicyPhase
from rl.training.policy_results import finish
from rl.training.run_dir import check_run_name


def train(args: cli.Args) -> None:
    """Collective. One run of `arm` or `rl`."""
    started = time.monotonic()
    cfg, run = args.config, args.phase
    block = rl_config.policy_run(cfg, run)
    for name in (block.experiment_name, block.run_name):
        if name is not None:
            check_run_name(name)
    registry.check_task(rl_config.task_of(cfg, run))
    policies.check_settings(cfg, run)
    if block.export:
        policies.check_exportable(cfg, run)
    policies.prefer_small_machine(cfg, run)
    every = rl_config.intervals(cfg, run)

    def build(args: cli.Args, ctx: ParallelContext) -> PolicyPhase:
        return PolicyPhase(cfg, run, ctx, every.total, Path(args.output_dir), started)

    pace = Pace(every.save, every.log, every.log)
    run_phase(args, build, every.total, lambda *_: None, pace, lambda phase, place: finish(args, phase, place))


def main(args: cli.Args) -> None:
    if args.config.arm.compare:
        arm_compare.compare(args, train)
    else:
        train(args)


if __name__ == "__main__":
    cli.run_main("arm", main)
