"""Phase 3: world model and explorer against each other.

What the two players are is said by the blocks `teacher` (views, burn-in, losses of the world model) and `student`
(rewards, flow policy, PPO), which phase 3 reads as phases 1 and 2 do; here is what their game adds.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from rl.config.evaluation import HELD_OUT_SEED


class Player(StrEnum):
    world_model = "world_model"
    explorer = "explorer"


@dataclass
class AdversarialReplayConfig:
    """What the world model trains on; the share that is neither random nor past is the explorer's."""

    random_share: float = 0.5  # of the windows of an update: episodes of random actions
    past_share: float = 0.1  # episodes of past explorers
    random_episodes: int = 120  # kept, over all processes
    past_episodes: int = 120
    adversarial_episodes: int = 240
    initial_random_rounds: int = 8  # episodes of every environment before the first iteration
    random_rounds: int = 1  # episodes of every environment in each iteration
    past_rounds: int = 1
    priority_exponent: float = 0.6  # of a window of the explorer; 0: uniform
    max_episode_share: float = 0.1  # of the explorer's windows that one episode may take


@dataclass
class HeldOutConfig:
    """Fixed suites: random actions, the explorer of phase 2, the current one, random actions facing a noisy screen."""

    every: int = 5  # iterations
    episodes: int = 4  # of each suite and process
    seed: int = 2 * HELD_OUT_SEED  # of scenes neither trained on nor used by `train.sh evaluate`
    # Examinations in a row for which the explorer waits when the world model got no better on random and past together.
    max_wait: int = 1
    max_regression: float = 0.05  # of the loss on the random suite, against its best: the world model is rolled back


@dataclass
class LeashConfig:
    """Keeps the explorer near that of phase 2: weight x KL(explorer || phase 2), nats a decision."""

    target: float = 1.0
    weight: float = 0.05  # at the start; doubled when the KL exceeds 1.5 times the target, halved below 1 / 1.5 of it
    min_weight: float = 1e-4
    max_weight: float = 100.0


@dataclass
class CollapseConfig:
    """Bounds of the early signs of a collapse; outside, every iteration warns."""

    min_action_std: float = 0.05  # of executed actions, mean over dims; uniform actions have 0.58
    max_action_std: float = 0.95  # 1: always at a bound
    min_reward_std: float = 1e-3  # of the normalised reward
    # Of the raw components that are rewarded, the least against its std in the first iteration: the normalised reward
    # keeps its std when all of them shrink, as what it is divided by starts anew with every copy of the world model.
    min_raw_std_share: float = 0.1
    max_token_share: float = 0.5  # of the most used class among the tokens of the explorer's frames


@dataclass
class AdversarialConfig:
    output_dir: str = "./outputs/adversarial_rl"
    total_iterations: int = 100000
    # Iterations over which learning rates decay; null: total_iterations. Set it when those grow on a resume.
    schedule_iterations: int | None = None
    warmup_iterations: int = 5  # in which one player alone trains
    warmup_player: Player = Player.world_model
    wm_updates_per_iter: int = 20
    explorer_updates_per_iter: int = 4  # epochs of PPO on the episodes of the iteration (instead of student.ppo.epochs)
    wm_learning_rate: float = 1.5e-4
    wm_min_learning_rate: float = 1e-5
    wm_warmup_updates: int = 50
    wm_max_grad_norm: float = 1.0
    explorer_learning_rate: float = 3e-5
    explorer_value_learning_rate: float = 1e-3
    explorer_min_learning_rate: float = 5e-6
    explorer_max_grad_norm: float = 1.0
    reward_refresh_every: int = 5  # iterations; then rewards come from a fresh copy of the world model
    pool_size: int = 8  # past explorers, that of phase 2 not counted
    pool_every: int = 5  # iterations between two of them
    replay: AdversarialReplayConfig = field(default_factory=AdversarialReplayConfig)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    leash: LeashConfig = field(default_factory=LeashConfig)
    collapse: CollapseConfig = field(default_factory=CollapseConfig)


def check_adversarial(a: AdversarialConfig) -> None:
    """Raises ValueError naming the key for numbers that no game can use or that contradict each other."""
    r, h, k, c = a.replay, a.held_out, a.leash, a.collapse
    for name, count, least in [
        ("total_iterations", a.total_iterations, 1), ("warmup_iterations", a.warmup_iterations, 0),
        ("wm_updates_per_iter", a.wm_updates_per_iter, 1),
        ("explorer_updates_per_iter", a.explorer_updates_per_iter, 1), ("wm_warmup_updates", a.wm_warmup_updates, 0),
        ("reward_refresh_every", a.reward_refresh_every, 1), ("pool_size", a.pool_size, 1),
        ("pool_every", a.pool_every, 1), ("replay.random_episodes", r.random_episodes, 1),
        ("replay.past_episodes", r.past_episodes, 1), ("replay.adversarial_episodes", r.adversarial_episodes, 1),
        ("replay.initial_random_rounds", r.initial_random_rounds, 1), ("replay.random_rounds", r.random_rounds, 0),
        ("replay.past_rounds", r.past_rounds, 0), ("held_out.every", h.every, 1), ("held_out.episodes", h.episodes, 1),
        ("held_out.max_wait", h.max_wait, 0),
    ]:  # fmt: skip
        if count < least:
            raise ValueError(f"adversarial.{name} is {count}; it must be at least {least}")
    for name, value in [
        ("wm_learning_rate", a.wm_learning_rate), ("explorer_learning_rate", a.explorer_learning_rate),
        ("explorer_value_learning_rate", a.explorer_value_learning_rate), ("wm_max_grad_norm", a.wm_max_grad_norm),
        ("explorer_max_grad_norm", a.explorer_max_grad_norm), ("replay.random_share", r.random_share),
        ("replay.max_episode_share", r.max_episode_share), ("held_out.max_regression", h.max_regression),
        ("leash.target", k.target), ("leash.min_weight", k.min_weight),
    ]:  # fmt: skip
        if not 0 < value < float("inf"):
            raise ValueError(f"adversarial.{name} is {value}; it must be positive")
    for player in ("wm", "explorer"):
        low, high = (getattr(a, f"{player}_{which}learning_rate") for which in ("min_", ""))
        if not 0 <= low <= high:
            raise ValueError(
                f"adversarial.{player}_min_learning_rate is {low}; it lies between 0 and "
                f"adversarial.{player}_learning_rate {high}"
            )
    if a.schedule_iterations is not None and a.schedule_iterations < 1:
        raise ValueError(
            f"adversarial.schedule_iterations is {a.schedule_iterations}; it must be at least 1, or null for "
            "total_iterations"
        )
    if a.total_iterations <= a.warmup_iterations:
        raise ValueError(
            f"--total_iterations (adversarial.total_iterations) is {a.total_iterations}, not more than the "
            f"adversarial.warmup_iterations {a.warmup_iterations} in which one player alone trains: both would never "
            "play; raise the former or lower the latter"
        )
    if r.past_share < 0 or not 0.5 <= r.random_share + r.past_share <= 1:
        raise ValueError(
            f"adversarial.replay.random_share {r.random_share} and past_share {r.past_share} must not be negative and "
            "make 0.5 to 1 together: at least half of what the world model sees is not the explorer's"
        )
    if not 0 <= r.priority_exponent <= 1 or r.max_episode_share > 1:
        raise ValueError("adversarial.replay.priority_exponent and max_episode_share lie between 0 and 1")
    if h.seed < HELD_OUT_SEED:
        raise ValueError(f"adversarial.held_out.seed is {h.seed}; held-out seeds begin at {HELD_OUT_SEED}")
    if not k.min_weight <= k.weight <= k.max_weight:
        raise ValueError(
            f"adversarial.leash.weight is {k.weight}; it lies between min_weight {k.min_weight} and max_weight "
            f"{k.max_weight}"
        )
    if not 0 <= c.min_action_std < c.max_action_std:
        raise ValueError("adversarial.collapse.min_action_std must lie below max_action_std and not below 0")
    if not 0 <= c.min_raw_std_share < 1:
        raise ValueError(
            f"adversarial.collapse.min_raw_std_share is {c.min_raw_std_share}; a share of the std at the start of the "
            "game lies between 0 and 1"
        )
