"""Every configuration key with its only default, and the only reader of YAML.

`load(...)` merges defaults <- YAML file <- command line (`block.key=value`) into a typed tree; a key that does not
exist or a value of the wrong type raises ValueError naming the nearest key or the expected type.
"""

from f1_vla.config import F1Config
from rl.config.loading import (
    DictConfig,
    as_config,
    as_node,
    environment_from_dict,
    fingerprint,
    load,
    load_model,
    read_dict,
    to_dict,
    to_yaml,
)
from rl.config.phases import (
    HELD_OUT_SEED,
    AdversarialConfig,
    EvaluationConfig,
    StudentConfig,
    StudentRewardsConfig,
    TeacherConfig,
    TokenizerTrainingConfig,
)
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
from rl.config.tree import CONFIG_DIR, REPO_ROOT, Config, validate

__all__ = [
    "AdversarialConfig",
    "CONFIG_DIR",
    "Config",
    "DictConfig",
    "DomainRandomizationConfig",
    "EnvironmentConfig",
    "EvaluationConfig",
    "F1Config",
    "FreezeConfig",
    "HELD_OUT_SEED",
    "Isolation",
    "LoggingConfig",
    "LoraConfig",
    "LoraMode",
    "MixedPrecision",
    "ModelConfig",
    "REPO_ROOT",
    "StudentConfig",
    "StudentRewardsConfig",
    "TeacherConfig",
    "TokenizerTrainingConfig",
    "TrainingConfig",
    "Visuals",
    "as_config",
    "as_node",
    "environment_from_dict",
    "fingerprint",
    "load",
    "load_model",
    "read_dict",
    "to_dict",
    "to_yaml",
    "validate",
]
