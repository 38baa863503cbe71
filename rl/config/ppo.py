"""PPO and A2C: every axis on which the well-known implementations differ. Presets are files under configs/algo."""

from dataclasses import dataclass, field
from enum import StrEnum

from rl.config.compiling import CompileMode


class TimeoutBootstrap(StrEnum):
    final_obs = "final_obs"  # value of the true last observation
    current_value = "current_value"  # value of the observation before the last step (rsl_rl)
    none = "none"  # as if the episode had terminated (the 37 details)


class Minibatches(StrEnum):
    shuffled = "shuffled"  # a new permutation of all rows every epoch
    one_permutation = "one_permutation"  # the first epoch's permutation serves all (rsl_rl)
    contiguous = "contiguous"  # slices in time order, the same in every epoch (skrl)
    by_environment = "by_environment"  # whole environments in time order; recurrent policies


class AdvantageNorm(StrEnum):
    rollout = "rollout"
    minibatch = "minibatch"
    none = "none"


class LearningRate(StrEnum):
    constant = "constant"
    linear = "linear"  # to `final_lr_fraction` of the base at the end
    adaptive_kl = "adaptive_kl"  # rsl_rl: / 1.5 above 2 x desired_kl, * 1.5 below half of it


class StdKind(StrEnum):
    log = "log"  # the parameter is log(std)
    scalar = "scalar"  # the parameter is std itself (rsl_rl)


class InitKind(StrEnum):
    orthogonal = "orthogonal"  # gain sqrt(2) hidden, 0.01 actor head, 1 critic head and LSTM, bias 0
    torch = "torch"


class ObservationNorm(StrEnum):
    none = "none"
    stored = "stored"  # the rollout holds observations as they were normalised when acting
    raw = "raw"  # the rollout holds raw ones; updates normalise them with the newest statistics (rsl_rl up to 5.4)
    frozen = "frozen"  # the same, statistics move only after an update (rsl_rl 5.5)


class ValueLoss(StrEnum):
    half_mse = "half_mse"  # 0.5 * squared error, before value_coef
    mse = "mse"


class GradClip(StrEnum):
    joint = "joint"
    separate = "separate"  # actor and critic each by its own norm (rsl_rl)


class OptimizerKind(StrEnum):
    adam = "adam"
    rmsprop = "rmsprop"


class Encoder(StrEnum):
    auto = "auto"  # cnn for a picture (uint8, three dims), else none
    none = "none"
    cnn = "cnn"  # the Nature network (Mnih et al. 2015)
    keypoints = "keypoints"  # spatial soft-argmax (Levine et al. 2016): where things are, for reaching


@dataclass
class PPONetworkConfig:
    hidden: list[int] = field(default_factory=lambda: [64, 64])
    activation: str = "tanh"  # tanh | elu | relu | silu
    shared: bool = False  # one trunk for actor and critic
    encoder: Encoder = Encoder.auto
    cnn_width: int = 512
    lstm: int = 0  # width of an LSTM after the encoder, shared by actor and critic; 0: none
    # Width of the hidden layer that estimates, from what the actor sees, what the critic alone is shown. Trained on the
    # truth (ppo.estimator_coef); the actor is given the estimate (Ji et al. 2022, "Concurrent training of a control
    # policy and a state estimator"). 0: none.
    estimator: int = 0
    init: InitKind = InitKind.orthogonal
    std: StdKind = StdKind.log
    init_std: float = 1.0


@dataclass
class PPOConfig:
    """Mixed precision and micro-batches of a minibatch are those of the block `training`."""

    num_envs: int = 32  # environments per process
    n_steps: int = 32  # of every environment in one rollout
    minibatch_size: int = 256  # rows (the last one may be smaller); 0: rollout / num_minibatches
    num_minibatches: int = 1  # only with minibatch_size 0; rows that do not divide are left out
    n_epochs: int = 10
    minibatches: Minibatches = Minibatches.shuffled
    gamma: float = 0.99
    gae_lambda: float = 0.95
    timeout_bootstrap: TimeoutBootstrap = TimeoutBootstrap.final_obs
    advantage_norm: AdvantageNorm = AdvantageNorm.minibatch
    clip_range: float = 0.2
    clip_range_final_fraction: float = 1.0  # linear anneal of the clip range; 1: constant
    value_clip: float | None = None
    value_loss: ValueLoss = ValueLoss.mse
    value_coef: float = 0.5
    entropy_coef: float = 0.0
    estimator_coef: float = 1.0  # of the mean squared error of ppo.network.estimator, of normalised observations
    max_grad_norm: float = 0.5
    grad_clip: GradClip = GradClip.joint
    kl_stop: float | None = None  # ends the update when approx_kl of a minibatch exceeds it
    optimizer: OptimizerKind = OptimizerKind.adam
    optimizer_eps: float = 1e-5
    rmsprop_alpha: float = 0.99
    learning_rate: float = 3e-4
    schedule: LearningRate = LearningRate.constant
    final_lr_fraction: float = 0.0  # of `linear`
    desired_kl: float = 0.01  # of `adaptive_kl`
    min_learning_rate: float = 1e-5
    max_learning_rate: float = 1e-2
    observation_norm: ObservationNorm = ObservationNorm.none
    observation_norm_eps: float = 1e-8
    observation_norm_eps_on_std: bool = False  # (x - mean) / (std + eps) as in rsl_rl, else / sqrt(var + eps)
    observation_clip: float | None = 10.0  # of normalised observations
    reward_norm: bool = False  # divides by the running std of the discounted return
    reward_clip: float | None = 10.0  # of normalised rewards
    clip_actions: bool = True  # to the bounds, only when sent to the environment
    rescale_actions: bool = False  # the policy acts in [-1, 1], the environment gets its own bounds
    compile: bool = False  # torch.compile of the update (losses, and gradients of the network)
    compile_mode: CompileMode = CompileMode.kernels  # kernels | cuda_graphs (on a GPU)
    network: PPONetworkConfig = field(default_factory=PPONetworkConfig)

    def validate(self) -> None:
        """Raises ValueError naming the key and the remedy."""
        for name, value, least in [
            ("num_envs", self.num_envs, 1),
            ("n_steps", self.n_steps, 1),
            ("n_epochs", self.n_epochs, 1),
            ("num_minibatches", self.num_minibatches, 1),
            ("minibatch_size", self.minibatch_size, 0),
            ("network.lstm", self.network.lstm, 0),
            ("network.estimator", self.network.estimator, 0),
            ("network.cnn_width", self.network.cnn_width, 1),
            *(("network.hidden", width, 1) for width in self.network.hidden),
        ]:
            if value < least:
                raise ValueError(f"ppo.{name} is {value}; it must be at least {least}")
        if self.minibatch_size > 0 and self.num_minibatches > 1:
            raise ValueError(
                "ppo.minibatch_size and ppo.num_minibatches are both set; set minibatch_size to 0 or "
                "num_minibatches to 1"
            )
        for name, share in [
            ("gamma", self.gamma), ("gae_lambda", self.gae_lambda), ("rmsprop_alpha", self.rmsprop_alpha),
        ]:  # fmt: skip
            if not 0 <= share <= 1:
                raise ValueError(f"ppo.{name} is {share}; it must lie between 0 and 1")
        for name, number in [
            ("clip_range", self.clip_range),
            ("learning_rate", self.learning_rate),
            ("network.init_std", self.network.init_std),
            ("max_grad_norm", self.max_grad_norm),
            ("value_clip", self.value_clip),
            ("kl_stop", self.kl_stop),
            ("desired_kl", self.desired_kl),
            ("min_learning_rate", self.min_learning_rate),
            ("observation_norm_eps", self.observation_norm_eps),
            ("observation_clip", self.observation_clip),
            ("reward_clip", self.reward_clip),
        ]:
            if number is not None and not number > 0:
                raise ValueError(f"ppo.{name} is {number}; it must be positive")
        for name, factor in [
            ("value_coef", self.value_coef),
            ("entropy_coef", self.entropy_coef),
            ("estimator_coef", self.estimator_coef),
            ("optimizer_eps", self.optimizer_eps),
            ("final_lr_fraction", self.final_lr_fraction),
            ("clip_range_final_fraction", self.clip_range_final_fraction),
        ]:
            if not factor >= 0:
                raise ValueError(f"ppo.{name} is {factor}; it must not be negative")
        if not self.min_learning_rate <= self.max_learning_rate:
            raise ValueError(
                f"ppo.min_learning_rate {self.min_learning_rate} lies above ppo.max_learning_rate "
                f"{self.max_learning_rate}"
            )
        if self.network.lstm and self.minibatches is not Minibatches.by_environment:
            raise ValueError("ppo.network.lstm needs rows in time order; set ppo.minibatches=by_environment")
        if self.grad_clip is GradClip.separate and (self.network.shared or self.network.lstm):
            raise ValueError("ppo.grad_clip=separate needs an actor and a critic that share no layer; use joint")
