"""Every configuration key with its only default, and the only reader of YAML.

`load(...)` merges defaults <- YAML file <- command line (`block.key=value`) into a typed tree; a key that does not
exist or a value of the wrong type raises ValueError naming the nearest key or the expected type.
"""

from f1_vla.config import F1Config
from rl.config.adversarial import (
    AdversarialConfig,
    AdversarialReplayConfig,
    CollapseConfig,
    HeldOutConfig,
    LeashConfig,
    Player,
    check_adversarial,
)
from rl.config.arm import ArmConfig
from rl.config.atari import AtariConfig
from rl.config.checkpoint import CheckpointConfig, SaveFailure
from rl.config.compiling import CompileMode
from rl.config.diffusion import DiffusionConfig, DiffusionNetworkConfig, check_diffusion
from rl.config.evaluation import HELD_OUT_SEED, ActingPolicy, EvaluationConfig
from rl.config.gr00t import GR00TConfig
from rl.config.isaaclab import IsaacLabConfig, is_isaac_task
from rl.config.loading import (
    DictConfig,
    as_config,
    as_node,
    environment_from_dict,
    fingerprint,
    load,
    load_model,
    load_saved,
    read_dict,
    to_dict,
    to_yaml,
    with_overrides,
)
from rl.config.numbers import NumbersConfig, OnMemory, OnSpike
from rl.config.off_policy import OffPolicyConfig, ReplayDtype, Warmup
from rl.config.phases import TeacherConfig, TokenizerTrainingConfig
from rl.config.pipeline import PipelineConfig, PipelinePhase
from rl.config.play import PlayConfig
from rl.config.policy_run import ALGORITHMS, BLOCKS, MetricsLogger, PolicyRunConfig, nearest
from rl.config.ppo import (
    AdvantageNorm,
    Encoder,
    GradClip,
    InitKind,
    LearningRate,
    Minibatches,
    ObservationNorm,
    OptimizerKind,
    PPOConfig,
    PPONetworkConfig,
    StdKind,
    TimeoutBootstrap,
    ValueLoss,
)
from rl.config.presets import Intervals, intervals, policy_run, run_directory, task_of
from rl.config.rl_tasks import RLConfig
from rl.config.run import (
    DomainRandomizationConfig,
    EnvironmentConfig,
    FreezeConfig,
    Isolation,
    LoggingConfig,
    LoraConfig,
    LoraMode,
    MixedPrecision,
    ModelConfig,
    TrainingConfig,
    Visuals,
)
from rl.config.sac import (
    ActorReduce,
    AlphaOn,
    CriticHead,
    LogStdMode,
    NetworkNorm,
    SACConfig,
    SACNetworkConfig,
    SACOptimizer,
    TargetReduce,
    check_sac,
)
from rl.config.student import (
    DivergenceSign,
    FlowPolicyConfig,
    FlowPPOConfig,
    StudentConfig,
    StudentRewardsConfig,
    Uncertainty,
    check_explorer,
)
from rl.config.supervision import SupervisionConfig
from rl.config.tree import CONFIG_DIR, POLICY_BLOCKS, REPO_ROOT, Config, validate

__all__ = [
    "ALGORITHMS",
    "ActingPolicy",
    "POLICY_BLOCKS",
    "PipelineConfig",
    "PipelinePhase",
    "with_overrides",
    "BLOCKS",
    "ArmConfig",
    "MetricsLogger",
    "PlayConfig",
    "Player",
    "PolicyRunConfig",
    "RLConfig",
    "Intervals",
    "intervals",
    "is_isaac_task",
    "nearest",
    "policy_run",
    "run_directory",
    "task_of",
    "ActorReduce",
    "AdvantageNorm",
    "AdversarialConfig",
    "AdversarialReplayConfig",
    "AlphaOn",
    "AtariConfig",
    "CONFIG_DIR",
    "CheckpointConfig",
    "CompileMode",
    "Config",
    "CollapseConfig",
    "CriticHead",
    "DictConfig",
    "DiffusionConfig",
    "DiffusionNetworkConfig",
    "DivergenceSign",
    "DomainRandomizationConfig",
    "Encoder",
    "EnvironmentConfig",
    "EvaluationConfig",
    "F1Config",
    "FlowPPOConfig",
    "FlowPolicyConfig",
    "FreezeConfig",
    "GR00TConfig",
    "GradClip",
    "HELD_OUT_SEED",
    "HeldOutConfig",
    "InitKind",
    "IsaacLabConfig",
    "Isolation",
    "LearningRate",
    "LeashConfig",
    "LogStdMode",
    "LoggingConfig",
    "LoraConfig",
    "LoraMode",
    "Minibatches",
    "MixedPrecision",
    "ModelConfig",
    "NetworkNorm",
    "NumbersConfig",
    "ObservationNorm",
    "OffPolicyConfig",
    "OnMemory",
    "OnSpike",
    "OptimizerKind",
    "PPOConfig",
    "PPONetworkConfig",
    "REPO_ROOT",
    "ReplayDtype",
    "SACConfig",
    "SACNetworkConfig",
    "SACOptimizer",
    "StdKind",
    "SaveFailure",
    "StudentConfig",
    "StudentRewardsConfig",
    "SupervisionConfig",
    "TargetReduce",
    "TeacherConfig",
    "TimeoutBootstrap",
    "TokenizerTrainingConfig",
    "TrainingConfig",
    "Uncertainty",
    "ValueLoss",
    "Visuals",
    "Warmup",
    "as_config",
    "as_node",
    "check_adversarial",
    "check_diffusion",
    "check_explorer",
    "check_sac",
    "environment_from_dict",
    "fingerprint",
    "load",
    "load_model",
    "load_saved",
    "read_dict",
    "to_dict",
    "to_yaml",
    "validate",
]
