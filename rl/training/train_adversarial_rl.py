"""`train.sh adversarial`: phase 3, world model and explorer against each other."""

import logging

from f1_vla.config import F1Config
from rl import config as rl_config
from rl.config import Config, check_adversarial
from rl.training import cli
from rl.training.adversarial_phase import AdversarialPhase
from rl.training.config_drift import flatten
from rl.training.explorer_player import explorer_config
from rl.training.explorer_setup import check_student
from rl.training.launch import run_phase
from rl.training.model_setup import check_sizes
from rl.training.parallel_utils import ParallelContext
from rl.training.student_source import Student, find_student, load_student
from rl.training.teacher_source import Teacher, find_teacher, frozen_policy, load_teacher
from rl.training.train_student_rl import resumes

log = logging.getLogger("rl.training.train_adversarial_rl")
TEACHER_FLAG = "--teacher_checkpoint"
# Settings of the other phases that this one does not read, and what it reads instead.
INSTEAD = {
    "training.learning_rate": "adversarial.wm_learning_rate",
    "training.min_learning_rate": "adversarial.wm_min_learning_rate",
    "training.max_grad_norm": "adversarial.wm_max_grad_norm and adversarial.explorer_max_grad_norm",
    "student.learning_rate": "adversarial.explorer_learning_rate",
    "student.value_learning_rate": "adversarial.explorer_value_learning_rate",
    "student.min_learning_rate": "adversarial.explorer_min_learning_rate",
    "student.ppo.epochs": "adversarial.explorer_updates_per_iter",
    "teacher.freeze.freeze_vision_encoder": "nothing: both players read stored outputs of the frozen encoder",
    "teacher.screen_share": "nothing: random episodes are plain ones",
}


def check(cfg: Config, arch: F1Config) -> None:
    """What the configuration alone gives away. Raises ValueError naming the key."""
    check_sizes(cfg, arch)
    check_adversarial(cfg.adversarial)
    check_student(explorer_config(cfg), arch)


def unread(cfg: Config) -> list[str]:
    """What the configuration says to no effect in this phase, a sentence each."""
    given, default = (flatten(rl_config.to_dict(c)) for c in (cfg, Config()))
    return [f"{k}={given[k]} is not read here, but {v}" for k, v in INSTEAD.items() if given[k] != default[k]]


def build(args: cli.Args, ctx: ParallelContext, teacher: Teacher | None, student: Student | None) -> AdversarialPhase:
    for sentence in unread(args.config) if ctx.is_main else ():
        log.warning("phase 3: %s", sentence)
    policy = frozen_policy(args.config, args.arch, ctx.device)
    states, origin = None, {}
    if teacher is not None:
        states, origin = load_teacher(teacher, policy), teacher.origin()
        log.info("world model of %s (%d episodes)", origin["path"], origin["episodes"])
    phase = AdversarialPhase(args.config, policy, states, origin, ctx)
    phase.explorer.named_teacher, phase.named_student = (TEACHER_FLAG, args.teacher), args.student
    if student is not None:
        try:
            load_student(student, phase.explorer.model.explorer)
        except ValueError:
            phase.close()
            raise
        phase.start_from(student.origin())
        log.info("explorer of %s (%d episodes)", phase.student["path"], phase.student["episodes"])
    return phase


def main(args: cli.Args) -> None:
    """What is wrong with configuration, teacher or student is refused before anything is written or a simulator
    starts. A resumed run needs neither: its checkpoints hold both players."""
    check(args.config, args.arch)
    teacher, student = None, None
    if not resumes(args):
        teacher = find_teacher(args.teacher, args.config, args.arch, TEACHER_FLAG)
        student = find_student(args.student, args.config, args.arch, teacher)
    run_phase(
        args, lambda a, ctx: build(a, ctx, teacher, student), args.config.adversarial.total_iterations,
        check=lambda cfg, arch: None,
    )  # fmt: skip


if __name__ == "__main__":
    cli.run_main("adversarial", main)
