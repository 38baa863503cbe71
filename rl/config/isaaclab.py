"""Isaac Lab tasks (`train.sh rl --task Isaac-...`): which physics, which bounds, where robots come from."""

from dataclasses import dataclass

PREFIXES = ("Isaac-", "IsaacContrib-")


def is_isaac_task(task: str) -> bool:
    """By its id: Isaac Lab's own are known only once it is imported."""
    return task.startswith(PREFIXES)


@dataclass
class IsaacLabConfig:
    physics: str = "newton_mjwarp"  # preset of the task's physics; this one needs neither a GPU nor Isaac Sim
    # Isaac Lab's action spaces have no bounds: actions are clipped to [-action_limit, action_limit]. null: not at all,
    # as rsl_rl does.
    action_limit: float | None = 1.0
    random_phase: bool = True  # in training, first episodes begin somewhere within their time, so that ends spread out
    asset_root: str | None = None  # folder of robots; null: NVIDIA's server, or our own robots where it is out of reach


def check_isaaclab(cfg: IsaacLabConfig) -> None:
    """Raises ValueError naming key and remedy."""
    if cfg.action_limit is not None and not 0 < cfg.action_limit < float("inf"):
        raise ValueError(f"isaaclab.action_limit is {cfg.action_limit}; it must be positive, or null for no limit")
