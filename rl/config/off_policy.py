"""What learning from replay needs whatever the algorithm: SAC and the diffusion policy share these keys."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from math import inf


class Warmup(StrEnum):
    random = "random"  # uniform actions until learning starts
    policy = "policy"


class ReplayDtype(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"  # observations other than pictures, halved


@dataclass
class OffPolicyConfig:
    num_envs: int = 1  # environments per process
    # Rounds of the training loop: `vector_steps` steps of all environments, then their gradient steps.
    vector_steps: int = 1
    updates_per_step: int = 1  # gradient steps for each vector step
    batch_size: int = 256  # transitions of one gradient step, over all processes
    buffer_size: int = 1_000_000  # transitions kept, over all processes
    replay_dtype: ReplayDtype = ReplayDtype.float32
    learning_starts: int = 100  # environment steps before the first gradient step, over all processes
    warmup: Warmup = Warmup.random
    gamma: float = 0.99
    n_step: int = 1
    amp: bool = False  # losses under bfloat16 autocast; training.mixed_precision=bf16 switches it on, too
    random_shift: int = 4  # px by which pictures are moved at random in updates (DrQ); 0: not at all
    report_episodes: int = 0  # prints the average of the last 10 returns whenever so many episodes are over; 0: never
    # Lower and upper bound of every action dim (or one for all), where the environment's action space has none.
    action_low: list[float] | None = None
    action_high: list[float] | None = None


SMALL = 1e-12  # stands for more than 0


def require_ranges(block: str, ranges: Iterable[tuple[str, float, float, float]]) -> None:
    """Raises ValueError for the first (name, value, lowest, highest) whose value lies outside, naming its key."""
    for name, value, low, high in ranges:
        if not low <= value <= high:
            raise ValueError(f"{block}.{name} is {value}; it must lie between {low} and {high}")


def check_off_policy(block: str, cfg: OffPolicyConfig) -> None:
    """Raises ValueError naming the key that no run can use."""
    require_ranges(block, [
        ("num_envs", cfg.num_envs, 1, 10**6), ("vector_steps", cfg.vector_steps, 1, 100_000),
        ("updates_per_step", cfg.updates_per_step, 0, 10_000), ("batch_size", cfg.batch_size, 1, 10**7),
        ("buffer_size", cfg.buffer_size, 1, inf), ("learning_starts", cfg.learning_starts, 0, inf),
        ("gamma", cfg.gamma, 0, 1), ("n_step", cfg.n_step, 1, 1000), ("random_shift", cfg.random_shift, 0, 1000),
        ("report_episodes", cfg.report_episodes, 0, inf),
    ])  # fmt: skip
