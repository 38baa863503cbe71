"""`environment.isolation: process`: when an environment counts as lost, and how often that may happen."""

from dataclasses import dataclass


@dataclass
class SupervisionConfig:
    start_timeout_s: float = 300.0  # to build an environment
    step_timeout_s: float = 60.0  # for a step, a reset or a picture
    max_failures: int = 5  # environments of a process that may be lost within `window` steps; one more stops the run
    window: int = 1000  # steps


def check_supervision(cfg: SupervisionConfig) -> None:
    """Raises ValueError naming key and remedy."""
    for name in ("start_timeout_s", "step_timeout_s"):
        if getattr(cfg, name) <= 0:
            raise ValueError(f"environment.supervision.{name} is {getattr(cfg, name)} s; it must be positive")
    for name, least in (("max_failures", 0), ("window", 1)):
        if getattr(cfg, name) < least:
            raise ValueError(f"environment.supervision.{name} is {getattr(cfg, name)}; it must be at least {least}")
