"""Phase 2: the explorer, its flow policy, its rewards and its PPO. Phase 3 reads the same blocks."""

from dataclasses import dataclass, field
from enum import StrEnum

from f1_vla.config import FlowKind, StochasticSteps


class DivergenceSign(StrEnum):
    seek = "seek"  # rewarded for states where the head camera knows more than the wrist camera
    close = "close"  # rewarded for making the wrist camera know as much: imitates the full view


class Uncertainty(StrEnum):
    disagreement = "disagreement"  # of the ensemble: what the world model does not know
    # Disagreement / entropy: Theil's uncertainty coefficient. An ensemble of finite training disagrees a little about
    # noise, too, the more the more is possible there; its share of what is uncertain is small.
    share = "share"
    entropy = "entropy"  # of its prediction: noise counts, too


@dataclass
class StudentRewardsConfig:
    """Weights of the normalised components; their raw values are always logged."""

    memory_divergence_weight: float = 0.5
    divergence_sign: DivergenceSign = DivergenceSign.seek
    wm_uncertainty_weight: float = 0.5
    uncertainty: Uncertainty = Uncertainty.disagreement
    action_rate_weight: float = 0.02  # penalty: times the mean squared change of the normalised action, not normalised
    clip: float = 5.0  # of a component divided by the running std of its discounted return


@dataclass
class FlowPolicyConfig:
    """How the explorer draws actions (f1_vla.flow_likelihood)."""

    kind: FlowKind = FlowKind.sde
    num_steps: int = 4  # denoise steps
    noise_level: float = 0.7  # n of Flow-SDE
    stochastic_steps: StochasticSteps = StochasticSteps.all
    min_std: float = 0.08  # of Flow-Noise
    max_std: float = 0.16
    chunk_size: int | None = None  # actions drawn at once; null: arch.chunk_size


@dataclass
class FlowPPOConfig:
    """PPO of the explorer. A row is one decision (a chunk)."""

    epochs: int = 1
    minibatches: int = 4  # of an epoch and process; whole episodes, so at most the episodes of an iteration
    gamma: float = 0.95  # per decision
    gae_lambda: float = 0.3  # the value head explains most of the return; longer sums add noise
    clip_range: float = 0.2
    value_clip: float | None = None
    value_coef: float = 0.5
    value_epochs: int = 16  # of the value head alone, after those of the policy (also when kl_stop has ended them)
    entropy_coef: float = 0.0  # acts on Flow-Noise only: the std of Flow-SDE is fixed
    # Ends the update when approx_kl of a minibatch exceeds it. Of the whole chain: denoise steps x action dims.
    kl_stop: float | None = 2.0


@dataclass
class StudentConfig:
    output_dir: str = "./outputs/student_rl"
    learning_rate: float = 2e-4
    value_learning_rate: float = 1e-3
    min_learning_rate: float = 5e-5
    episodes_per_iteration: int = 4  # of every environment between two updates; 16 episodes in all learn well
    chunk_exec_steps: int = 1  # actions of a chunk that are carried out
    value_hidden: int = 128
    rewards: StudentRewardsConfig = field(default_factory=StudentRewardsConfig)
    flow: FlowPolicyConfig = field(default_factory=FlowPolicyConfig)
    ppo: FlowPPOConfig = field(default_factory=FlowPPOConfig)


def check_explorer(student: StudentConfig) -> None:
    """Raises ValueError naming the key for numbers that no explorer can use or that contradict each other."""
    r, f, p = student.rewards, student.flow, student.ppo
    for name, value in [
        ("memory_divergence_weight", r.memory_divergence_weight),
        ("wm_uncertainty_weight", r.wm_uncertainty_weight),
        ("action_rate_weight", r.action_rate_weight),
    ]:
        if not 0.0 <= value < float("inf"):
            hint = "; student.rewards.divergence_sign turns it round" if name == "memory_divergence_weight" else ""
            raise ValueError(f"student.rewards.{name} is {value}; a weight is not negative{hint}")
    if r.memory_divergence_weight == 0 and r.wm_uncertainty_weight == 0:
        raise ValueError(
            "student.rewards.memory_divergence_weight and student.rewards.wm_uncertainty_weight are both 0: the "
            "explorer would have nothing to seek; make one positive"
        )
    for name, count, least in [
        ("episodes_per_iteration", student.episodes_per_iteration, 1),
        ("chunk_exec_steps", student.chunk_exec_steps, 1),
        ("value_hidden", student.value_hidden, 1),
        ("flow.num_steps", f.num_steps, 1),
        ("ppo.epochs", p.epochs, 1),
        ("ppo.value_epochs", p.value_epochs, 0),
        ("ppo.minibatches", p.minibatches, 1),
    ]:
        if count < least:
            raise ValueError(f"student.{name} is {count}; it must be at least {least}")
    for name, number in [
        ("learning_rate", student.learning_rate), ("value_learning_rate", student.value_learning_rate),
        ("flow.noise_level", f.noise_level), ("rewards.clip", r.clip), ("ppo.clip_range", p.clip_range),
        ("flow.min_std", f.min_std), ("ppo.value_clip", p.value_clip), ("ppo.kl_stop", p.kl_stop),
    ]:  # fmt: skip
        if number is not None and not 0 < number < float("inf"):
            raise ValueError(f"student.{name} is {number}; it must be positive and finite")
    for name, value in [("value_coef", p.value_coef), ("entropy_coef", p.entropy_coef)]:
        if not value >= 0:
            raise ValueError(f"student.ppo.{name} is {value}; it must not be negative")
    if f.max_std < f.min_std:
        raise ValueError(f"student.flow.max_std {f.max_std} lies below student.flow.min_std {f.min_std}")
    for name, value in [("gamma", p.gamma), ("gae_lambda", p.gae_lambda)]:
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"student.ppo.{name} is {value}; it lies between 0 and 1")
