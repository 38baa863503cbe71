"""Diffusion-transformer policy trained online from replay: Q-weighted variational policy optimisation (QVPO)."""

from dataclasses import dataclass, field
from math import inf

from rl.config.off_policy import SMALL, OffPolicyConfig, check_off_policy, require_ranges
from rl.config.sac import ActorReduce, TargetReduce


@dataclass
class DiffusionNetworkConfig:
    width: int = 128
    num_blocks: int = 4
    num_heads: int = 4
    mlp_ratio: int = 4
    state_tokens: int = 1  # that an observation becomes
    action_tokens: int = 1  # that the action vector is cut into
    critic_hidden: list[int] = field(default_factory=lambda: [256, 256])
    critic_activation: str = "silu"  # tanh | elu | relu | silu
    critic_layernorm: bool = True
    num_critics: int = 2
    picture_features: int = 128  # width after the convolutions, where observations hold pictures
    attention_backend: str = "auto"  # auto | reference | sdpa | flex | fa4 | triton


@dataclass
class DiffusionConfig(OffPolicyConfig):
    denoising_steps: int = 10
    learning_starts: int = 64
    report_episodes: int = 10
    actor_lr: float = 3e-4
    critic_lr: float = 3e-4
    lr_final_fraction: float = 1.0  # both learning rates fall linearly to this share of themselves
    max_grad_norm: float = 2.0  # of the actor
    tau: float = 0.005  # target critics
    ema_tau: float = 0.005  # of the actor; the average acts and gives the next actions of targets
    reward_scale: float = 1.0
    actor_delay: int = 1  # critic updates for each actor update
    actor_batch_size: int = 256  # states of an actor update, over all processes; at most batch_size
    # Actions drawn for each next state of a batch: the best one gives the target, and the actor learns the best one,
    # weighted by its advantage over all of them.
    train_samples: int = 16
    train_passes: int = 10  # denoising steps of these draws, evenly spaced out of denoising_steps
    # Near the best of them so many actions with Gaussian noise compete for what the actor learns; 0: published QVPO.
    nearby_samples: int = 0
    # Standard deviations (actions in [-1, 1]): that of every second one falls with `noise` from the first to the final.
    nearby_noise: float = 0.2
    nearby_noise_final: float = 0.05
    target_reduce: TargetReduce = TargetReduce.min
    actor_reduce: ActorReduce = ActorReduce.min  # of what the critics think when actions compete
    act_samples: int = 4  # when exploring: the best of so many
    eval_samples: int = 32  # when evaluated: the best of so many
    # Uniform actions are learned with this share of the weight, falling linearly over the run.
    entropy_weight: float = 0.02
    entropy_weight_final: float = 0.002
    entropy_actions: int = 10  # uniform actions for each state
    # Gaussian noise added to what explores (actions in [-1, 1]), falling linearly over `noise_share` of the run.
    noise: float = 0.2
    noise_final: float = 0.02
    noise_share: float = 0.5
    obs_norm: bool = False
    obs_norm_eps: float = 1e-2
    network: DiffusionNetworkConfig = field(default_factory=DiffusionNetworkConfig)


def check_diffusion(cfg: DiffusionConfig) -> None:
    """Raises ValueError naming the key that no run can use."""
    check_off_policy("diffusion", cfg)
    net = cfg.network
    require_ranges("diffusion", [
        ("denoising_steps", cfg.denoising_steps, 2, 1000), ("actor_lr", cfg.actor_lr, 0, inf),
        ("critic_lr", cfg.critic_lr, 0, inf), ("lr_final_fraction", cfg.lr_final_fraction, 0, 1),
        ("max_grad_norm", cfg.max_grad_norm, 0, inf), ("tau", cfg.tau, 0, 1), ("ema_tau", cfg.ema_tau, 0, 1),
        ("reward_scale", cfg.reward_scale, SMALL, inf), ("actor_delay", cfg.actor_delay, 1, 1000),
        ("actor_batch_size", cfg.actor_batch_size, 1, cfg.batch_size),
        ("train_samples", cfg.train_samples, 1 if cfg.nearby_samples else 2, 1000),
        ("train_passes", cfg.train_passes, 1, cfg.denoising_steps), ("nearby_samples", cfg.nearby_samples, 0, 1000),
        ("nearby_noise", cfg.nearby_noise, 0, inf), ("nearby_noise_final", cfg.nearby_noise_final, 0, inf),
        ("act_samples", cfg.act_samples, 1, 1000), ("eval_samples", cfg.eval_samples, 1, 1000),
        ("entropy_weight", cfg.entropy_weight, 0, inf), ("entropy_weight_final", cfg.entropy_weight_final, 0, inf),
        ("entropy_actions", cfg.entropy_actions, 0, 1000), ("noise", cfg.noise, 0, inf),
        ("noise_final", cfg.noise_final, 0, inf), ("noise_share", cfg.noise_share, 1e-6, 1),
        ("obs_norm_eps", cfg.obs_norm_eps, SMALL, inf), ("network.width", net.width, 1, inf),
        ("network.num_blocks", net.num_blocks, 1, inf), ("network.num_heads", net.num_heads, 1, inf),
        ("network.mlp_ratio", net.mlp_ratio, 1, inf), ("network.state_tokens", net.state_tokens, 1, inf),
        ("network.action_tokens", net.action_tokens, 1, inf), ("network.num_critics", net.num_critics, 1, 100),
        ("network.picture_features", net.picture_features, 1, inf),
        *(("network.critic_hidden", width, 1, inf) for width in net.critic_hidden),
    ])  # fmt: skip
