"""Soft actor-critic (Haarnoja et al. 2018) and FastSAC (Seo et al. 2025, arXiv 2512.01996), one by configuration.

Entropy, its temperature and its target are of actions in [-1, 1], whatever units the environment has.
Letters: N critics, B batch, A action dims.
"""

import math
from copy import deepcopy

import gymnasium as gym
import torch
from torch import Tensor, nn

from rl.algorithms.compiled import compiled
from rl.algorithms.flat_parameters import FlatParameters
from rl.algorithms.guarded_step import Stepped, Total, step_with
from rl.algorithms.replay_learner import ReplayLearner, ReplayNetworks
from rl.config import (
    ActorReduce,
    AlphaOn,
    CriticHead,
    LogStdMode,
    NetworkNorm,
    SACConfig,
    SACOptimizer,
    TargetReduce,
    check_sac,
)
from rl.data.replay import ReplayBatch
from rl.models.features import Features
from rl.models.q_networks import CriticEnsemble, Value
from rl.models.running_norm import ObservationNormalizer
from rl.models.tanh_gaussian import Gaussian, TanhGaussianActor, sample
from rl.types import TensorTree

ADVICE_AFTER = 1000  # updates
MIN_SPREAD = 5.0  # standard deviation of returns over the distance of two atoms
MAX_EDGE_MASS = 0.1


class QFunction(nn.Module):
    """Critics on features of their own."""

    def __init__(self, features: Features, head: CriticEnsemble) -> None:
        super().__init__()
        self.features, self.head = features, head

    def forward(self, observation: TensorTree, action: Tensor) -> Value:
        return self.head(self.features(observation), action)


class SACNetworks(ReplayNetworks):
    """Where there are pictures the critics train the encoder."""

    def __init__(self, cfg: SACConfig, observation_space: gym.Space, action_dim: int) -> None:
        super().__init__()
        net = cfg.network
        layernorm = net.norm is NetworkNorm.layernorm
        self.normalizer = (
            ObservationNormalizer(observation_space, cfg.obs_norm_eps, True, None) if cfg.obs_norm else None
        )
        features = Features(observation_space, net.picture_features)
        self.actor = TanhGaussianActor(
            features.width, action_dim, net.actor_hidden, net.activation, layernorm,
            (net.log_std_min, net.log_std_max), net.log_std_mode is LogStdMode.tanh, net.zero_init_heads,
        )  # fmt: skip
        atoms = torch.linspace(net.v_min, net.v_max, net.num_atoms) if net.critic_head is CriticHead.c51 else None
        self.critic = QFunction(
            features,
            CriticEnsemble(
                features.width, action_dim, net.critic_hidden, net.num_critics, net.activation, layernorm, atoms
            ),
        )
        self.target = deepcopy(self.critic).requires_grad_(False)
        self.log_alpha = nn.Parameter(torch.tensor(math.log(cfg.alpha_init)))

    def policy(self, observation: TensorTree) -> Gaussian:
        """For raw observations."""
        return self.actor(self.critic.features(self.normalize(observation)))

    def forward(self, observation: TensorTree) -> Tensor:
        """The deterministic policy: raw observations (B, ...) -> actions (B, A) in [-1, 1]."""
        return torch.tanh(self.policy(observation).mean)


class SAC(ReplayLearner):
    """Losses and updates. `update(batch)` is one gradient step of everything that is due."""

    def __init__(
        self, cfg: SACConfig, observation_space: gym.Space, action_dim: int, device: torch.device | str = "cpu",
        generator: torch.Generator | None = None, autocast: torch.dtype | None = None,
        total: Total | None = None, world_size: int = 1,
    ) -> None:  # fmt: skip
        """For the rest see `ReplayLearner`. Raises ValueError for settings nothing can train with."""
        check_sac(cfg)
        self.cfg, device = cfg, torch.device(device)
        self.networks = nets = SACNetworks(cfg, observation_space, action_dim).to(device)
        ratio = -cfg.target_entropy_ratio * action_dim
        self.target_entropy = ratio if cfg.target_entropy is None else cfg.target_entropy
        self._flat = {"actor": FlatParameters(nets.actor), "critic": FlatParameters(nets.critic)}
        self._fast, self._slow = self._flat["critic"].vector, FlatParameters(nets.target).vector
        optimizers = {
            "actor": self._optimizer(self._flat["actor"].vector, cfg.actor_lr, cfg.weight_decay),
            "critic": self._optimizer(self._flat["critic"].vector, cfg.critic_lr, cfg.weight_decay),
            "alpha": self._optimizer(nets.log_alpha, cfg.alpha_lr, 0.0),
        }
        super().__init__(
            cfg, nets, optimizers, cfg.lr_final_fraction, action_dim, device, generator, autocast, total, world_size
        )
        self._losses = self._critic_loss, self._actor_loss
        if cfg.compile:
            critic, actor = (compiled(loss, cfg.compile_mode, device, "sac") for loss in self._losses)
            self._losses = critic, actor

    def _optimizer(self, parameter: nn.Parameter, lr: float, weight_decay: float) -> torch.optim.Optimizer:
        betas = (self.cfg.beta1, self.cfg.beta2)
        if self.cfg.optimizer is SACOptimizer.adam:
            return torch.optim.Adam([parameter], lr, betas, fused=True)
        return torch.optim.AdamW([parameter], lr, betas, weight_decay=weight_decay, fused=True)

    # --- acting ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, observation: TensorTree, deterministic: bool = False) -> Tensor:
        """(B, A) in [-1, 1]."""
        if deterministic:
            return self.networks(observation)
        policy = self.networks.policy(observation)
        return sample(policy, self._noise(len(policy.mean)))[0]

    # --- learning --------------------------------------------------------------------------------------------------

    def update(self, batch: ReplayBatch) -> dict[str, Tensor]:
        """One critic step, and as often as `policy_delay` says one of actor and temperature; scalars on the device.

        Where a gradient is not finite that step changes nothing; `finite` is 0 then, on all ranks.
        """
        cfg, nets = self.cfg, self.networks
        now, after = self._observations(batch)
        with torch.no_grad():
            alpha = nets.log_alpha.exp()
        rows, (critic_loss, actor_loss) = len(batch.reward), self._losses
        with self._precision():
            loss, log_prob, metrics = critic_loss(
                now, batch.action, batch.reward * cfg.reward_scale, batch.discount, after, alpha, self._noise(rows)
            )
        metrics |= self._step("critic", loss)
        if cfg.alpha_on is AlphaOn.next:
            metrics |= self._alpha_step(log_prob)
        if self.updates % cfg.policy_delay == 0:
            with self._precision():
                loss, log_prob = actor_loss(now, alpha, self._noise(rows))
            metrics |= self._step("actor", loss) | {"entropy": -log_prob.mean()}
            if cfg.alpha_on is AlphaOn.current:
                metrics |= self._alpha_step(log_prob)
        self._move_target()
        self.updates += 1
        finite = [v for k, v in metrics.items() if k.startswith("finite_")]
        metrics = {k: v for k, v in metrics.items() if not k.startswith("finite_")}
        return metrics | {"alpha": alpha, "finite": torch.stack(finite).amin()}

    def _critic_loss(
        self, now: TensorTree, action: Tensor, reward: Tensor, discount: Tensor, after: TensorTree, alpha: Tensor,
        noise: Tensor,
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:  # fmt: skip
        """Equation 5 of SAC with the entropy of the next action in the target; loss, log-prob (B,), metrics."""
        nets = self.networks
        with torch.no_grad():
            next_action, log_prob = sample(nets.actor(nets.critic.features(after)), noise)
            next_value = nets.target(after, next_action)
            soft_reward = reward - discount * alpha * log_prob
            target = next_value.target(soft_reward, discount, self.cfg.target_reduce is TargetReduce.own)
            returns = next_value.target_mean(target)
            metrics = {"target_mean": returns.mean(), "target_std": returns.std()}
            if self.cfg.network.critic_head is CriticHead.c51:
                metrics["edge_mass"] = (target[..., 0] + target[..., -1]).mean()
        value = nets.critic(now, action)
        return value.loss(target), log_prob, metrics | {"q_mean": value.mean().detach().mean()}

    def _actor_loss(self, now: TensorTree, alpha: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Equation 7 of SAC; loss and log-prob (B,)."""
        nets = self.networks
        features = nets.critic.features(now).detach()
        action, log_prob = sample(nets.actor(features), noise)
        q_NB = nets.critic.head(features, action, frozen=True).mean()
        q = q_NB.amin(0) if self.cfg.actor_reduce is ActorReduce.min else q_NB.mean(0)
        return (alpha * log_prob - q).mean(), log_prob.detach()

    def _alpha_step(self, log_prob: Tensor) -> dict[str, Tensor]:
        """The loss is -log_alpha * mean(log_prob + target entropy)."""
        gradient = -(log_prob.mean() + self.target_entropy)
        loss = self.networks.log_alpha.detach() * gradient
        return self._stepped(
            "alpha", loss, step_with(self.optimizers["alpha"], (gradient,), 0.0, self._total, self.world_size)
        )

    def _step(self, name: str, loss: Tensor) -> dict[str, Tensor]:
        gradient = self._flat[name].gradient(loss)
        stepped = step_with(self.optimizers[name], (gradient,), self.cfg.max_grad_norm, self._total, self.world_size)
        return self._stepped(name, loss.detach(), stepped)

    @staticmethod
    def _stepped(name: str, loss: Tensor, stepped: Stepped) -> dict[str, Tensor]:
        return {f"{name}_loss": loss, f"{name}_grad_norm": stepped.norm, f"finite_{name}": stepped.finite}

    @torch.no_grad()
    def _move_target(self) -> None:
        self._slow.lerp_(self._fast, self.cfg.tau)

    def advice(self, metrics: dict[str, float]) -> str | None:
        """What is wrong with the atoms for the returns that were seen (means of `update`), or None."""
        net = self.cfg.network
        if net.critic_head is not CriticHead.c51 or self.updates < ADVICE_AFTER:
            return None
        spread = metrics["target_std"] / ((net.v_max - net.v_min) / (net.num_atoms - 1))
        if spread < MIN_SPREAD:
            return (
                f"returns spread over {spread:.2g} atoms of the critic only (less than {MIN_SPREAD:g}): it cannot tell "
                "them apart; raise sac.reward_scale, or narrow sac.network.v_min and v_max"
            )
        if metrics["edge_mass"] > MAX_EDGE_MASS:
            return (
                f"{metrics['edge_mass']:.0%} of the returns lie at the ends of [{net.v_min:g}, {net.v_max:g}]: "
                "lower sac.reward_scale, or widen sac.network.v_min and v_max"
            )
        return None
