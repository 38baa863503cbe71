"""Diffusion-transformer policy trained online from replay: Q-weighted variational policy optimisation (QVPO)."""

from dataclasses import dataclass, field

from rl.config.off_policy import OffPolicyConfig
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
