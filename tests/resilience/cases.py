"""The runs that are killed and continued: one line for each phase and algorithm, everything as small as it gets."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rl.training import train_adversarial_rl, train_arm, train_student_rl, train_teacher_rl
from tests.training import adversarial_runs, policy_runs, student_runs, teacher_runs

QUIET = ("logging.tensorboard=false", "training.num_threads=1")
NO_MEDIA = ("training.video_save_every=0", "training.sample_save_every=0")


@dataclass(frozen=True)
class Sources:
    """What phases start from."""

    tokenizer: Path
    teacher: Path
    student: Path


@dataclass(frozen=True)
class Case:
    """A run of `total` units that every start is given the same command line for."""

    phase: str
    entry: Callable[..., object]
    flags: Callable[[Sources, Path], list[str]]
    needs: tuple[str, ...] = ()  # of Sources


def _arm(algorithm: str, *extra: str, steps: int = 384, every: int = 64) -> Case:
    def flags(_: Sources, place: Path) -> list[str]:
        intervals = (f"arm.save_every={every}", f"arm.log_every={every}", f"arm.eval_every={2 * every}")
        settings = (*intervals, "arm.final_episodes=4", *QUIET, *extra)
        return policy_runs.flags("arm", algorithm, place, "--steps", str(steps), *settings)

    return Case("arm", train_arm.main, flags)


def _teacher(s: Sources, place: Path) -> list[str]:
    extra = ("training.save_every=2", "training.schedule_episodes=8", "training.num_envs=1", *QUIET, *NO_MEDIA)
    return teacher_runs.flags(s.tokenizer, place, 8, *extra)


def _student(s: Sources, place: Path) -> list[str]:
    extra = ("training.num_envs=2", "training.save_every=4", "training.schedule_episodes=16", *QUIET, *NO_MEDIA)
    return student_runs.flags(s.teacher, place, 16, *extra)


def _adversarial(s: Sources, place: Path) -> list[str]:
    extra = ("training.save_every=1", *QUIET, *NO_MEDIA)
    return adversarial_runs.flags(s.teacher, s.student, place, 4, *extra)


SMALL_PPO = ("ppo.n_steps=16", "ppo.minibatch_size=32")
CASES = {
    "ppo": _arm("PPO", *SMALL_PPO),
    "a2c": _arm("A2C"),
    "sac": _arm("SAC"),
    "fastsac": _arm("FASTSAC"),
    "dit": _arm("DIT", steps=192, every=48),
    "physics": _arm("PPO", *SMALL_PPO, "arm.physics=true"),
    "teacher": Case("teacher", train_teacher_rl.main, _teacher, ("tokenizer",)),
    "student": Case("student", train_student_rl.main, _student, ("teacher",)),
    "adversarial": Case("adversarial", train_adversarial_rl.main, _adversarial, ("teacher", "student")),
}
