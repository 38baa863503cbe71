"""`train.sh evaluate`."""

from dataclasses import dataclass, field
from enum import StrEnum

HELD_OUT_SEED = 1_000_000  # scenes from this seed on are never trained on


class ActingPolicy(StrEnum):
    explorer = "explorer"
    random = "random"  # uniform actions, as the teacher collects
    zero = "zero"  # the arm stands still


@dataclass
class EvaluationConfig:
    num_episodes: int = 40
    seed: int = HELD_OUT_SEED
    bootstrap_samples: int = 2000
    policy: ActingPolicy | None = None  # who acts; null: the explorer where the checkpoint has one, else random
    voxel_size: float = 0.05  # m, of a visited wrist position
    direction_cell: float = 0.5  # of the wrist's axes (unit vectors): coarse orientation
    moved_distance: float = 0.02  # m from where an object stood first, from which on it counts as moved
    novelty_scales: int = 2  # coarse token scales that are compared
    novelty_overlap: float = 0.6  # share of their tokens that a map known from random actions has in common
    worst_share: float = 0.1  # of frames, by loss
    probe_every: int = 5  # steps between the memory states that are probed
    probe_folds: int = 5
    probe_penalty: float = 100.0  # of the ridge probe
    # Kinds of scenes unlike those of training, each the overrides of the environment that make it, separated by
    # spaces. Training draws light and textures at random, so other colours alone hardly surprise the world model.
    unfamiliar: list[str] = field(
        default_factory=lambda: ["domain_randomization.random_appearance=true", "num_objects=24", "action_scale=0.3"]
    )
    unfamiliar_episodes: int = 20  # of each kind; 0: none
    video: bool = False  # beside the file of --json
    videos: int = 2  # episodes of each policy


def check_evaluation(e: EvaluationConfig) -> None:
    """Raises ValueError naming key and remedy."""
    for name, least in [
        ("num_episodes", 2), ("bootstrap_samples", 1), ("novelty_scales", 1), ("probe_every", 1), ("probe_folds", 2),
        ("unfamiliar_episodes", 0), ("videos", 1),
    ]:  # fmt: skip
        if getattr(e, name) < least:
            raise ValueError(f"evaluation.{name} is {getattr(e, name)}; it must be at least {least}")
    for name in ("voxel_size", "direction_cell", "moved_distance", "probe_penalty"):
        if not getattr(e, name) > 0:
            raise ValueError(f"evaluation.{name} is {getattr(e, name)}; it must be positive")
    for name in ("worst_share", "novelty_overlap"):
        if not 0 < getattr(e, name) <= 1:
            raise ValueError(f"evaluation.{name} is {getattr(e, name)}; it is a share above 0 and at most 1")
