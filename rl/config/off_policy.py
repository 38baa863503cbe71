"""What learning from replay needs whatever the algorithm: SAC and the diffusion policy share these keys."""

from dataclasses import dataclass
from enum import StrEnum


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
