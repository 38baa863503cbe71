"""Diffusion policy trained online from replay: Q-weighted variational policy optimisation (Ding et al. 2024, QVPO).

For each next state of a batch several actions are drawn from the policy: the best one gives the critics their target.
They and actions near the best of them compete, and the winner is learned with its advantage over the drawn ones as
weight of the denoising loss; uniform actions with a small share of that weight keep the policy spread out. So one
drawing serves both. No gradient goes through sampling. Unlike in the published code a time limit is not an end: its
target bootstraps.

Letters: B batch, K drawn actions, U uniform actions, A action dims, N critics, P passes of the sampler.
"""

from copy import deepcopy
from typing import cast

import gymnasium as gym
import torch
from torch import Tensor, nn

from rl.algorithms.guarded_step import Total, guarded_step
from rl.algorithms.replay_learner import ReplayLearner, ReplayNetworks
from rl.config import ActorReduce, DiffusionConfig, TargetReduce, check_diffusion
from rl.data.replay import ReplayBatch
from rl.models.ddpm import Diffusion
from rl.models.dit import DiffusionTransformer, repeat
from rl.models.features import Features
from rl.models.q_networks import CriticEnsemble
from rl.models.running_norm import ObservationNormalizer
from rl.types import TensorTree


class DiffusionNetworks(ReplayNetworks):
    """Where there are pictures the critics train the encoder."""

    greedy_noise: Tensor

    def __init__(self, cfg: DiffusionConfig, space: gym.Space, action_dim: int, device: torch.device) -> None:
        super().__init__()
        net = cfg.network
        self.normalizer = None
        if cfg.obs_norm:
            self.normalizer = ObservationNormalizer(space, cfg.obs_norm_eps, eps_on_std=True, clip=None)
        self.features = Features(space, net.picture_features)
        self.critic = CriticEnsemble(
            self.features.width, action_dim, net.critic_hidden, net.num_critics, net.critic_activation,
            net.critic_layernorm,
        )  # fmt: skip
        self.target_features = deepcopy(self.features).requires_grad_(False)
        self.target = deepcopy(self.critic).requires_grad_(False)
        self.actor = DiffusionTransformer(
            self.features.width, action_dim, cfg.denoising_steps, net.width, net.num_blocks, net.num_heads,
            net.mlp_ratio, net.state_tokens, net.action_tokens, net.attention_backend, device,
        )  # fmt: skip
        self.average = deepcopy(self.actor).requires_grad_(False)  # over updates; it acts
        self.diffusion = Diffusion(cfg.denoising_steps)
        self.mean_of_critics = cfg.actor_reduce is ActorReduce.mean
        # What the deterministic policy draws its actions from, the same for every state.
        self.register_buffer("greedy_noise", torch.randn(cfg.denoising_steps, cfg.eval_samples, action_dim))

    def draw(self, actor: DiffusionTransformer, features: Tensor, noises: Tensor) -> Tensor:
        """(B, K, A) actions for features (B, F) from noises (P, B, K, A)."""
        P, B, K, A = noises.shape
        context = repeat(actor.encode(features), K)
        steps = torch.arange(self.diffusion.steps, device=features.device)
        rows = noises.reshape(P, B * K, A)
        return self.diffusion.denoise(lambda x, t: actor(context, x, steps[t : t + 1]), rows).view(B, K, A)

    def worth(self, critic: CriticEnsemble, features: Tensor, actions: Tensor) -> Tensor:
        """(B, K): what the critics together think of actions (B, K, A)."""
        B, K, A = actions.shape
        q_NB = critic(features.repeat_interleave(K, 0), actions.reshape(B * K, A)).mean()
        return (q_NB.mean(0) if self.mean_of_critics else q_NB.amin(0)).view(B, K)

    def forward(self, observation: TensorTree) -> Tensor:
        """The deterministic policy: raw observations (B, ...) -> actions (B, A), the best of `eval_samples`."""
        features = self.features(self.normalize(observation))
        actions = self._fixed_draw(features, self.greedy_noise)
        return chosen(actions, self.worth(self.critic, features, actions))

    def _fixed_draw(self, features: Tensor, noise: Tensor) -> Tensor:
        """(B, K, A) from noise (T, K, A), the same for every state."""
        return self.draw(self.average, features, noise[:, None].expand(-1, features.shape[0], -1, -1))


def chosen(actions: Tensor, worth: Tensor) -> Tensor:
    """(B, A): of actions (B, K, A) those worth (B, K) most."""
    index = worth.argmax(1)[:, None, None].expand(-1, 1, actions.shape[2])
    return actions.gather(1, index).squeeze(1)


class SingleDraw(nn.Module):
    """The deterministic policy for export: the draw from the first noise. The best of several would hang on which of
    two nearly equal ones rounding makes the larger, which differs between runtimes."""

    def __init__(self, networks: DiffusionNetworks) -> None:
        super().__init__()
        self.networks = networks

    def forward(self, observation: TensorTree) -> Tensor:
        """Raw observations (B, ...) -> actions (B, A) in [-1, 1]."""
        nets = self.networks
        return nets._fixed_draw(nets.features(nets.normalize(observation)), nets.greedy_noise[:, :1])[:, 0]


class DiffusionPolicy(ReplayLearner):
    """Losses and updates; actions in [-1, 1]. `update(batch)` is one gradient step of everything that is due."""

    def __init__(
        self, cfg: DiffusionConfig, observation_space: gym.Space, action_dim: int, device: torch.device | str = "cpu",
        generator: torch.Generator | None = None, autocast: torch.dtype | None = None,
        total: Total | None = None, world_size: int = 1,
    ) -> None:  # fmt: skip
        """For the rest see `ReplayLearner`. Raises ValueError for settings nothing can train with."""
        check_diffusion(cfg)
        self.cfg, device = cfg, torch.device(device)
        self.networks = nets = DiffusionNetworks(cfg, observation_space, action_dim, device).to(device)
        critic = [*nets.critic.parameters(), *nets.features.parameters()]
        optimizers = {
            "critic": torch.optim.Adam(critic, cfg.critic_lr, fused=True),
            "actor": torch.optim.Adam(nets.actor.parameters(), cfg.actor_lr, fused=True),
        }
        super().__init__(
            cfg, nets, optimizers, cfg.lr_final_fraction, action_dim, device, generator, autocast, total, world_size
        )
        self.progress = 0.0

    # --- acting ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def act(self, observation: TensorTree, deterministic: bool = False) -> Tensor:
        """(B, A): the best of several by the critics; when exploring with Gaussian noise, less of it over time."""
        cfg, nets = self.cfg, self.networks
        if deterministic:
            return nets(observation)
        features = nets.features(nets.normalize(observation))
        drawn = self._draw(features, cfg.act_samples, cfg.denoising_steps)
        best = self._best(nets.critic, features, drawn)
        scale = self._falling(cfg.noise, cfg.noise_final)
        return (best + scale * self._noise(len(best))).clamp(-1, 1)

    def _falling(self, first: float, last: float) -> float:
        return first + (last - first) * min(self.progress / self.cfg.noise_share, 1.0)

    def _draw(self, features: Tensor, count: int, passes: int) -> Tensor:
        """(B, count, A), from the average actor."""
        noises = self._noise(passes, len(features), count)
        return self.networks.draw(self.networks.average, features, noises)

    def _best(self, critic: CriticEnsemble, features: Tensor, actions: Tensor) -> Tensor:
        """(B, A) of actions (B, K, A)."""
        if actions.shape[1] == 1:
            return actions[:, 0]
        return chosen(actions, self.networks.worth(critic, features, actions))

    # --- learning --------------------------------------------------------------------------------------------------

    def set_progress(self, share: float) -> dict[str, float]:
        """Learning rates, noise and entropy weight for what follows; `share` of the run that is done."""
        self.progress = min(max(share, 0.0), 1.0)
        return super().set_progress(share)

    def update(self, batch: ReplayBatch) -> dict[str, Tensor]:
        """One critic step and, every `actor_delay` updates, one actor step; scalars on the device.

        Where a gradient is not finite that step changes nothing; `finite` is 0 then, on all ranks.
        """
        cfg, nets = self.cfg, self.networks
        now, after = self._observations(batch)
        with torch.no_grad():
            features = nets.features(after)
            drawn = self._draw(features, cfg.train_samples, cfg.train_passes)
        with self._precision():
            loss, q_mean = self._critic_loss(now, batch, after, drawn)
        norm, finite = guarded_step(self.optimizers["critic"], loss, 0.0, self._total, self.world_size)
        metrics = {"critic_loss": loss.detach(), "critic_grad_norm": norm, "q_mean": q_mean}
        if self.updates % cfg.actor_delay == 0:
            rows = max(cfg.actor_batch_size // self.world_size, 1)
            actor_loss, advantage = self._actor_loss(features[:rows], drawn[:rows])
            stepped = guarded_step(
                self.optimizers["actor"], actor_loss, cfg.max_grad_norm, self._total, self.world_size
            )
            self._follow(nets.actor, nets.average, cfg.ema_tau)
            metrics |= {"actor_loss": actor_loss.detach(), "actor_grad_norm": stepped.norm, "advantage": advantage}
            finite = torch.minimum(finite, stepped.finite)
        self._follow(nets.critic, nets.target, cfg.tau)
        self._follow(nets.features, nets.target_features, cfg.tau)
        self.updates += 1
        return metrics | {"finite": finite}

    def _critic_loss(
        self, now: TensorTree, batch: ReplayBatch, after: TensorTree, drawn: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One-step target with the best of the `drawn` (B, K, A) next actions; discount 0 after terminations only."""
        cfg, nets = self.cfg, self.networks
        with torch.no_grad():
            judged = nets.target_features(after)
            action = self._best(nets.target, judged, drawn)
            own = cfg.target_reduce is TargetReduce.own
            target = nets.target(judged, action).target(batch.reward * cfg.reward_scale, batch.discount, own)
        value = nets.critic(nets.features(now), batch.action)
        return value.loss(target), value.mean().detach().mean()

    def _actor_loss(self, features: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Denoising loss for states (B, F) with the advantage ("qadv") as weight, and the mean advantage.

        Weights are divided by their mean, so that neither reward scale nor progress changes the size of a step.
        """
        cfg, nets = self.cfg, self.networks
        B, U = len(features), cfg.entropy_actions
        with torch.no_grad():
            best, advantage = self._improved(features, drawn)
            weight = advantage / advantage.mean().clamp_min(1e-8)
            uniform = torch.rand(B, U, self.action_dim, generator=self.generator, device=self.device) * 2 - 1
            actions = torch.cat([best[:, None], uniform], 1).flatten(0, 1)  # (B * (1 + U), A)
            t = torch.randint(cfg.denoising_steps, (len(actions),), generator=self.generator, device=self.device)
            noisy = nets.diffusion.add_noise(actions, t, self._noise(len(actions)))
        with self._precision():
            predicted = nets.actor(repeat(nets.actor.encode(features), 1 + U), noisy, t)
        error = (predicted - actions).square().mean(1).view(B, 1 + U)
        entropy = cfg.entropy_weight + (cfg.entropy_weight_final - cfg.entropy_weight) * self.progress
        loss = (weight * (error[:, 0] + entropy * error[:, 1:].sum(1))).mean()
        return loss, advantage.mean()

    def _improved(self, features: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """The best of `drawn` (B, K, A) and of actions near their best, which cost no denoising: (B, A), and its
        advantage (B,) over the mean of those drawn."""
        cfg, nets = self.cfg, self.networks
        worth = nets.worth(nets.critic, features, drawn)
        best, value = chosen(drawn, worth), worth.amax(1)
        if cfg.nearby_samples:
            noise = self._noise(len(best), cfg.nearby_samples)
            noise[:, ::2] *= self._falling(cfg.nearby_noise, cfg.nearby_noise_final)  # wide: quick at first
            noise[:, 1::2] *= cfg.nearby_noise_final  # narrow: exact where the policy is good already
            near = (best[:, None] + noise).clamp(-1, 1)
            worth_near = nets.worth(nets.critic, features, near)
            better = worth_near.amax(1) > value
            best = torch.where(better[:, None], chosen(near, worth_near), best)
            value = torch.maximum(value, worth_near.amax(1))
        return best, value - worth.mean(1)

    @staticmethod
    @torch.no_grad()
    def _follow(online: nn.Module, slow: nn.Module, tau: float) -> None:
        followers, leaders = list[Tensor](slow.parameters()), list[Tensor](online.parameters())
        if followers:
            torch._foreach_lerp_(followers, leaders, tau)

    def advice(self, metrics: dict[str, float]) -> str | None:
        return None

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, object]:
        return super().state_dict() | {"progress": self.progress}

    def load_state_dict(self, state: dict[str, object]) -> None:
        super().load_state_dict(state)
        self.progress = cast(float, state["progress"])
