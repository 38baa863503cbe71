"""`train.sh student`: phase 2, the explorer."""

import logging

from f1_vla.config import F1Config
from rl.config import Config
from rl.training import cli
from rl.training.checkpoint_files import checkpoint_dirs
from rl.training.explorer_setup import check_student
from rl.training.launch import run_phase
from rl.training.model_setup import check_sizes
from rl.training.parallel_utils import ParallelContext
from rl.training.run_dir import ResumeMode
from rl.training.student_phase import StudentPhase
from rl.training.teacher_source import Teacher, find_teacher, frozen_policy, load_teacher

log = logging.getLogger("rl.training.train_student_rl")


def resumes(args: cli.Args) -> bool:
    """The run goes on from a checkpoint of its own, which holds everything: the teacher is not read again."""
    if args.resume is ResumeMode.auto:
        return bool(checkpoint_dirs(args.output_dir.expanduser().resolve()))
    return args.resume is ResumeMode.path


def check(cfg: Config, arch: F1Config) -> None:
    """What the configuration alone gives away. Raises ValueError naming the key."""
    check_sizes(cfg, arch)
    check_student(cfg, arch)


def build(args: cli.Args, ctx: ParallelContext, teacher: Teacher | None) -> StudentPhase:
    policy = frozen_policy(args.config, args.arch, ctx.device)
    states, origin = None, {}
    if teacher is not None:
        states, origin = load_teacher(teacher, policy), teacher.origin()
        log.info("world model of %s (%d episodes)", origin["path"], origin["episodes"])
    phase = StudentPhase(args.config, policy, states, origin, ctx)
    phase.named_teacher = ("--teacher_path", args.teacher)
    return phase


def main(args: cli.Args) -> None:
    """What is wrong with configuration or teacher is refused before anything is written or a simulator starts."""
    check(args.config, args.arch)
    teacher = None if resumes(args) else find_teacher(args.teacher, args.config, args.arch)
    run_phase(
        args, lambda a, ctx: build(a, ctx, teacher), args.config.training.num_episodes, check=lambda cfg, arch: None
    )


if __name__ == "__main__":
    cli.run_main("student", main)
