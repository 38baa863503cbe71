"""The whole tree, what it refuses, and where the files lie."""

from dataclasses import dataclass, field
from pathlib import Path

from rl.config.adversarial import AdversarialConfig
from rl.config.arm import ArmConfig, check_arm
from rl.config.atari import AtariConfig, check_atari
from rl.config.checkpoint import CheckpointConfig
from rl.config.diffusion import DiffusionConfig
from rl.config.evaluation import HELD_OUT_SEED, EvaluationConfig, check_evaluation
from rl.config.gr00t import GR00TConfig, check_gr00t
from rl.config.isaaclab import IsaacLabConfig, check_isaaclab
from rl.config.numbers import NumbersConfig, check_numbers
from rl.config.phases import TeacherConfig, TokenizerTrainingConfig
from rl.config.pipeline import PipelineConfig, check_pipeline
from rl.config.play import PlayConfig, check_play
from rl.config.policy_run import check_policy_run
from rl.config.ppo import PPOConfig
from rl.config.rl_tasks import RLConfig, check_rl
from rl.config.run import EnvironmentConfig, LoggingConfig, ModelConfig, TrainingConfig
from rl.config.sac import SACConfig
from rl.config.student import StudentConfig
from rl.config.supervision import check_supervision

REPO_ROOT = Path(__file__).resolve().parent.parent.parent
CONFIG_DIR = REPO_ROOT / "configs"


@dataclass
class Config:
    """configs/rl_config.yaml: all phases."""

    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    numbers: NumbersConfig = field(default_factory=NumbersConfig)
    environment: EnvironmentConfig = field(default_factory=EnvironmentConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    student: StudentConfig = field(default_factory=StudentConfig)
    adversarial: AdversarialConfig = field(default_factory=AdversarialConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    sac: SACConfig = field(default_factory=SACConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    arm: ArmConfig = field(default_factory=ArmConfig)
    rl: RLConfig = field(default_factory=RLConfig)
    atari: AtariConfig = field(default_factory=AtariConfig)
    gr00t: GR00TConfig = field(default_factory=GR00TConfig)
    isaaclab: IsaacLabConfig = field(default_factory=IsaacLabConfig)
    play: PlayConfig = field(default_factory=PlayConfig)
    tokenizer: TokenizerTrainingConfig = field(default_factory=TokenizerTrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)


# Blocks that only `train.sh arm`, `rl` and `play` read; the phases of F1 do not.
POLICY_BLOCKS = ("ppo", "sac", "diffusion", "arm", "rl", "atari", "gr00t", "isaaclab", "play")


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
    for name, number in [("training.learning_rate", t.learning_rate), ("training.max_grad_norm", t.max_grad_norm)]:
        if not 0 < number < float("inf"):
            raise ValueError(f"{name} is {number}; it must be positive and finite")
    for name, value in [("environment.vlm_size", e.vlm_size), ("environment.wm_size", e.wm_size)]:
        if not 64 <= value <= 256:
            raise ValueError(f"{name} is {value} px; it must lie between 64 and 256")
    for name, p in [
        ("teacher.view_dropout", cfg.teacher.view_dropout),
        ("teacher.action_dropout", cfg.teacher.action_dropout),
        ("teacher.bootstrap_probability", cfg.teacher.bootstrap_probability),
        ("teacher.screen_share", cfg.teacher.screen_share),
    ]:
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"{name} is {p}; a probability lies between 0 and 1")
    if cfg.teacher.screen_share > 0 and not e.domain_randomization.noisy_screen:
        raise ValueError(
            f"teacher.screen_share is {cfg.teacher.screen_share}, but no screen is in the scene; set "
            "environment.domain_randomization.noisy_screen=true"
        )
    check_supervision(e.supervision)
    check_numbers(cfg.numbers)
    cfg.ppo.validate()
    check_policy_run("arm", cfg.arm)
    check_arm(cfg.arm)
    check_policy_run("rl", cfg.rl)
    check_rl(cfg.rl)
    check_atari(cfg.atari)
    check_isaaclab(cfg.isaaclab)
    check_gr00t(cfg.gr00t)
    check_play(cfg.play)
    check_evaluation(cfg.evaluation)
    check_pipeline(cfg.pipeline)
