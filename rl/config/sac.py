"""SAC and FastSAC: one learner, every axis on which the well-known implementations differ. Presets: configs/algo."""

from dataclasses import dataclass, field
from enum import StrEnum
from math import inf

from rl.config.compiling import CompileMode
from rl.config.off_policy import SMALL, OffPolicyConfig, check_off_policy, require_ranges


class CriticHead(StrEnum):
    scalar = "scalar"
    c51 = "c51"  # categorical distribution over fixed atoms (Bellemare et al. 2017)


class TargetReduce(StrEnum):
    min = "min"  # of the target critics (c51: the distribution of the critic with the smaller mean)
    own = "own"  # every critic learns from its own target network


class ActorReduce(StrEnum):
    min = "min"
    mean = "mean"


class NetworkNorm(StrEnum):
    none = "none"
    layernorm = "layernorm"  # after every hidden linear layer, before the activation


class LogStdMode(StrEnum):
    clamp = "clamp"  # cut to [log_std_min, log_std_max]
    tanh = "tanh"  # squashed into it


class AlphaOn(StrEnum):
    current = "current"  # entropy at the states of the batch; learned with the actor
    next = "next"  # at their next states; learned with the critic, no extra forward


class SACOptimizer(StrEnum):
    adam = "adam"
    adamw = "adamw"


@dataclass
class SACNetworkConfig:
    actor_hidden: list[int] = field(default_factory=lambda: [256, 256])
    critic_hidden: list[int] = field(default_factory=lambda: [256, 256])
    activation: str = "relu"  # tanh | elu | relu | silu
    norm: NetworkNorm = NetworkNorm.none
    zero_init_heads: bool = False  # of the actor: mean 0, log_std in the middle of its range (tanh mode)
    log_std_mode: LogStdMode = LogStdMode.clamp
    log_std_min: float = -20.0
    log_std_max: float = 2.0
    num_critics: int = 2
    critic_head: CriticHead = CriticHead.scalar
    num_atoms: int = 101  # of c51, evenly spaced over [v_min, v_max], in scaled reward
    v_min: float = -20.0
    v_max: float = 20.0
    picture_features: int = 128  # width after the convolutions, where observations hold pictures


@dataclass
class SACConfig(OffPolicyConfig):
    tau: float = 0.005  # share of the online critics that enters the target critics at each gradient step
    target_reduce: TargetReduce = TargetReduce.min
    actor_reduce: ActorReduce = ActorReduce.min
    policy_delay: int = 1  # critic updates for each actor update
    # Entropy is that of actions in [-1, 1] whatever the environment's units; target = -ratio * action dims.
    alpha_init: float = 1.0
    alpha_on: AlphaOn = AlphaOn.current
    target_entropy_ratio: float = 1.0
    target_entropy: float | None = None  # nats; overrides the ratio
    optimizer: SACOptimizer = SACOptimizer.adam
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    alpha_lr: float = 3e-4
    beta1: float = 0.9
    beta2: float = 0.999
    weight_decay: float = 0.0  # of adamw; never on alpha
    lr_final_fraction: float = 1.0  # all learning rates fall linearly to this share of themselves
    max_grad_norm: float = 0.0  # 0: no clipping
    obs_norm: bool = False  # running mean and std of what the environments showed
    obs_norm_eps: float = 1e-2  # added to the std
    reward_scale: float = 1.0
    compile: bool = False  # torch.compile of losses and their gradients
    compile_mode: CompileMode = CompileMode.kernels  # kernels | cuda_graphs (on a GPU)
    network: SACNetworkConfig = field(default_factory=SACNetworkConfig)


def check_sac(cfg: SACConfig) -> None:
    """Raises ValueError naming the key that no run can use."""
    check_off_policy("sac", cfg)
    net = cfg.network
    if not net.actor_hidden or not net.critic_hidden:
        raise ValueError("sac.network.actor_hidden and critic_hidden need at least one layer")
    require_ranges("sac", [
        ("tau", cfg.tau, 0, 1), ("policy_delay", cfg.policy_delay, 1, 1000), ("alpha_init", cfg.alpha_init, 1e-9, 1e9),
        ("actor_lr", cfg.actor_lr, 0, inf), ("critic_lr", cfg.critic_lr, 0, inf), ("alpha_lr", cfg.alpha_lr, 0, inf),
        ("lr_final_fraction", cfg.lr_final_fraction, 0, 1), ("beta1", cfg.beta1, 0, 1 - SMALL),
        ("beta2", cfg.beta2, 0, 1 - SMALL), ("weight_decay", cfg.weight_decay, 0, inf),
        ("max_grad_norm", cfg.max_grad_norm, 0, inf), ("obs_norm_eps", cfg.obs_norm_eps, SMALL, inf),
        ("reward_scale", cfg.reward_scale, SMALL, inf), ("network.num_critics", net.num_critics, 1, 100),
        ("network.num_atoms", net.num_atoms, 2, 10_001), ("network.picture_features", net.picture_features, 1, inf),
        *(("network.actor_hidden", width, 1, inf) for width in net.actor_hidden),
        *(("network.critic_hidden", width, 1, inf) for width in net.critic_hidden),
    ])  # fmt: skip
    if not (net.v_min < net.v_max and net.log_std_min < net.log_std_max):
        raise ValueError("sac.network: v_min must lie below v_max, and log_std_min below log_std_max")
