"""One environment from the configuration."""

from typing import Any

from rl.config import EnvironmentConfig
from rl.f1_rl_env import PHASES, F1RLEnv, StudentEnv, TeacherEnv


def make_env(config: EnvironmentConfig, phase: str = "teacher", **options: Any) -> F1RLEnv:
    """The environment of a phase; `options` are those of `F1RLEnv`. Raises ValueError for an unknown phase."""
    if phase == "teacher":
        return TeacherEnv(config, **options)
    if phase == "student":
        return StudentEnv(config, **options)
    if phase in PHASES:
        return F1RLEnv(config, phase, **options)
    raise ValueError(f"phase '{phase}' is unknown; there are: {', '.join(PHASES)}")
