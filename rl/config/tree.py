"""The whole tree, what it refuses, and where the files lie."""

from dataclasses import dataclass, field
from pathlib import Path

from rl.config.phases import (
    HELD_OUT_SEED,
    AdversarialConfig,
    EvaluationConfig,
    StudentConfig,
    TeacherConfig,
    TokenizerTrainingConfig,
)
from rl.config.run import EnvironmentConfig, LoggingConfig, ModelConfig, TrainingConfig

REPO_ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG_DIR = REPO_ROOT / "configs"


@dataclass
class Config:
    """configs/rl_config.yaml: all phases."""

    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    tokenizer: TokenizerTrainingConfig = field(default_factory=TokenizerTrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


def validate(cfg: Config) -> None:
    """Refuses values that no run can use. Raises ValueError naming the key and the remedy."""
    t, e = cfg.training, cfg.environment
    for name, value, least in [
        ("training.num_envs", t.num_envs, 1),
        ("training.num_episodes", t.num_episodes, 1),
        ("training.steps_per_episode", t.steps_per_episode, 2),
        ("training.batch_size", t.batch_size, 1),
        ("training.bptt_length", t.bptt_length, 1),
        ("training.gradient_accumulation_steps", t.gradient_accumulation_steps, 1),
        ("training.keep_checkpoints", t.keep_checkpoints, 2),
        ("training.save_every", t.save_every, 1),
        ("training.log_every", t.log_every, 1),
        ("environment.scene_reset_interval", e.scene_reset_interval, 1),
        ("environment.physics_steps", e.physics_steps, 1),
        ("teacher.buffer_episodes", cfg.teacher.buffer_episodes, 1),
        ("teacher.updates_per_episode", cfg.teacher.updates_per_episode, 1),
    ]:
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    if not 0 <= t.seed < HELD_OUT_SEED:
        raise ValueError(
            f"training.seed is {t.seed}; use 0 to {HELD_OUT_SEED - 1}, later seeds are held out for evaluation"
        )
    for name, value in [("environment.vlm_size", e.vlm_size), ("environment.wm_size", e.wm_size)]:
        if not 64 <= value <= 256:
            raise ValueError(f"{name} is {value} px; it must lie between 64 and 256")
    for name, p in [
        ("teacher.view_dropout", cfg.teacher.view_dropout),
        ("teacher.action_dropout", cfg.teacher.action_dropout),
    ]:
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"{name} is {p}; a probability lies between 0 and 1")
