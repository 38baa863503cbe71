"""`train.sh teacher`: phase 1, the world model."""

import logging

from rl.training import cli
from rl.training.launch import run_phase
from rl.training.model_setup import build_world_model
from rl.training.parallel_utils import ParallelContext
from rl.training.teacher_phase import TeacherPhase

log = logging.getLogger("rl.training.train_teacher_rl")


def build(args: cli.Args, ctx: ParallelContext) -> TeacherPhase:
    model = build_world_model(args.config, args.arch, args.config.teacher.freeze, ctx)
    return TeacherPhase(args.config, model, ctx)


def main(args: cli.Args) -> None:
    run_phase(args, build, args.config.training.num_episodes)


if __name__ == "__main__":
    cli.run_main("teacher", main)
