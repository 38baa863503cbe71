"""`train.sh pipeline`: all phases one after another."""

from dataclasses import dataclass, field
from enum import StrEnum


class PipelinePhase(StrEnum):
    teacher = "teacher"
    student = "student"
    adversarial = "adversarial"
    evaluation = "evaluation"


@dataclass
class PipelineConfig:
    """Sizes of each phase, for about 23 minutes with `tiny` on two cores; the rest is as in the other blocks."""

    output_dir: str = "./outputs/pipeline"  # teacher/, student/, adversarial/, evaluation/ and report.html
    phases: list[PipelinePhase] = field(default_factory=lambda: list(PipelinePhase))
    teacher_episodes: int = 160
    student_episodes: int = 240
    # Of the student, instead of training.num_envs and student.episodes_per_iteration, of which the other phases want
    # less: 16 episodes an update learn well, and more environments at once collect faster. null: those.
    student_envs: int | None = 8
    student_rounds: int | None = 2
    adversarial_iterations: int = 12
    evaluation_episodes: int = 12
    checkpoints: int = 4  # of each phase, evenly over its length
    media: int = 4  # pictures and videos of each phase, evenly over its length


def check_pipeline(p: PipelineConfig) -> None:
    """Raises ValueError naming key and remedy."""
    if not p.phases:
        raise ValueError("pipeline.phases is empty; name at least one of " + ", ".join(PipelinePhase))
    if repeated := sorted({x.value for x in p.phases if p.phases.count(x) > 1}):
        raise ValueError(f"pipeline.phases names {', '.join(repeated)} twice")
    for name, least in [
        ("teacher_episodes", 1), ("student_episodes", 1), ("adversarial_iterations", 1), ("evaluation_episodes", 2),
        ("checkpoints", 1), ("media", 1),
    ]:  # fmt: skip
        if getattr(p, name) < least:
            raise ValueError(f"pipeline.{name} is {getattr(p, name)}; it must be at least {least}")
    for name in ("student_envs", "student_rounds"):
        if (count := getattr(p, name)) is not None and count < 1:
            raise ValueError(f"pipeline.{name} is {count}; it must be at least 1, or null")
