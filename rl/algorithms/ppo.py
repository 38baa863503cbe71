"""The learning half of PPO (Schulman et al. 2017): epochs of minibatches over one batch. A2C is a preset of it.

Every axis on which known implementations differ is a field of `rl.config.PPOConfig`; presets are files under
configs/algo. The policy is reached through its wrapped forward only.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple, Protocol

import torch
from torch import Generator, Tensor, nn

from rl.algorithms import ppo_losses as L
from rl.algorithms.compiled import compiled
from rl.algorithms.ppo_minibatches import minibatch_sizes
from rl.algorithms.ppo_rollout import Batch
from rl.config import (
    AdvantageNorm,
    CompileMode,
    GradClip,
    LearningRate,
    Minibatches,
    OptimizerKind,
    PPOConfig,
    ValueLoss,
)
from rl.data.rollout import minibatch_indices, tree_flat, tree_index
from rl.models.actor_critic import ActorCritic, Evaluation
from rl.models.recurrent import State
from rl.types import TensorTree

KL_FACTOR = 1.5  # of the adaptive learning rate
# Of every optimizer step, in this order.
STATISTICS = (
    "policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction", "analytic_kl", "estimator_loss", "grad_norm"
)  # fmt: skip


class Parallel(Protocol):
    """What PPO asks of the group of processes; `rl.training.parallel_utils.ParallelContext` is one."""

    world_size: int

    @property
    def scaled(self) -> bool: ...  # losses are, for the gradients of fp16
    def autocast(self) -> AbstractContextManager[Any]: ...
    def accumulate(self, model: nn.Module) -> AbstractContextManager[Any]: ...
    def backward(self, loss: Tensor) -> None: ...
    def clip_grad_norm(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor: ...
    def overflowed(self, norm: Tensor) -> Tensor: ...
    def total(self, vector: Tensor) -> Tensor: ...


def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """`nn.utils.clip_grad_norm_`, bit for bit, for gradients of one device and dtype, in half the time where few."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    torch._foreach_mul_(gradients, (max_norm / (norm + 1e-6)).clamp(max=1.0))
    return norm


class SingleProcess:
    """`Parallel` of one process without a launcher, in full precision."""

    world_size = 1
    scaled = False

    def autocast(self) -> AbstractContextManager[Any]:
        return nullcontext()

    def accumulate(self, model: nn.Module) -> AbstractContextManager[Any]:
        return nullcontext()

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def clip_grad_norm(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        return clip_grad_norm(parameters, max_norm)

    def overflowed(self, norm: Tensor) -> Tensor:
        return torch.zeros_like(norm)

    def total(self, vector: Tensor) -> Tensor:
        return vector


class Minibatch(NamedTuple):
    """Rows of a `Batch`, flat; with an LSTM the observation, state and begins are (T, environments, ...)."""

    observation: TensorTree
    actions: Tensor
    logp: Tensor
    advantages: Tensor
    returns: Tensor
    values: Tensor
    weights: Tensor | None
    out: Tensor | None
    state: State | None
    begins: Tensor | None


def make_optimizer(
    cfg: PPOConfig, parameters: Iterable[nn.Parameter] | list[dict[str, Any]]
) -> torch.optim.Optimizer:  # fmt: skip
    """Adam, or the RMSprop of A2C. A group may have `lr_scale`, its learning rate relative to the others'."""
    if cfg.optimizer is OptimizerKind.rmsprop:
        return torch.optim.RMSprop(parameters, cfg.learning_rate, alpha=cfg.rmsprop_alpha, eps=cfg.optimizer_eps)
    return torch.optim.Adam(parameters, cfg.learning_rate, eps=cfg.optimizer_eps, fused=True)


class PPO:
    """Trains `policy` through `wrapped`; `generator` (on the device) orders the minibatches."""

    def __init__(
        self, cfg: PPOConfig, policy: ActorCritic, wrapped: nn.Module, optimizer: torch.optim.Optimizer,
        parallel: Parallel, generator: Generator, micro_batches: int = 1,
    ) -> None:  # fmt: skip
        """`micro_batches` of a minibatch, the same number that `parallel.accumulate` counts to."""
        self.cfg, self.policy, self.wrapped, self.optimizer = cfg, policy, wrapped, optimizer
        self.parallel, self.generator, self.micro_batches = parallel, generator, micro_batches
        self.learning_rate = cfg.learning_rate
        self.last: Minibatch | None = None
        self._clipped: tuple[list[nn.Parameter], list[nn.Parameter]] | None = None
        self._skipped: Tensor | None = None  # steps of an update in which the scaled loss of fp16 overflowed
        self._total: L.Total = L.own if parallel.world_size == 1 else parallel.total
        self._loss: Callable[..., tuple[Tensor, Tensor]] = self._losses
        if cfg.compile:
            self._loss = compiled(self._losses, cfg.compile_mode, generator.device, "ppo")
        if cfg.compile and cfg.compile_mode is CompileMode.cuda_graphs and micro_batches > 1:
            raise ValueError(
                "ppo.compile_mode=cuda_graphs does not go with training.gradient_accumulation_steps above 1: a graph "
                "overwrites the gradients of the one before; use kernels"
            )

    def update(self, batch: Batch, share: float) -> dict[str, float]:
        """Collective. All epochs over `batch`; `share` of the run that is done, for the annealing.

        Raises FloatingPointError on all ranks when a loss or gradient was not finite; parameters are as before.
        """
        clip = self._anneal(share, batch.logp)
        trained = [p for p in self.policy.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in trained]
        self._clipped = None
        self._skipped = torch.zeros((), device=batch.logp.device) if self.parallel.scaled else None
        sums, updates, stopped = torch.zeros(len(STATISTICS), device=batch.logp.device), 0, False
        scale = batch.scale
        for epoch in self._epochs(batch):
            for minibatch in epoch:
                stats = self._step(minibatch, scale, clip)
                if stats is None:
                    stopped = True
                    break
                sums += stats
                updates += 1
            if stopped:
                break
        # One wait for the device an update; a number that is not finite stays so in every later sum.
        values = (self._total(sums.double()) / self.parallel.world_size / max(updates, 1)).tolist()
        if not all(v == v and abs(v) != float("inf") for v in values):
            with torch.no_grad():
                for p, old in zip(trained, before, strict=True):
                    p.copy_(old)
            raise FloatingPointError(f"loss, statistics and gradient norm of the update are {values}")
        line = dict(zip(STATISTICS, values, strict=True))
        steps = float(updates)
        if self._skipped is not None:
            line["skipped_steps"] = float(self._skipped)
            steps -= line["skipped_steps"]
            line["grad_norm"] *= updates / max(steps, 1.0)
        if self.cfg.schedule is not LearningRate.adaptive_kl:
            del line["analytic_kl"]
        if not self.cfg.network.estimator:
            del line["estimator_loss"]
        weights = None if batch.weights is None else batch.weights.flatten()
        explained = L.explained_variance(batch.values.flatten(), batch.returns.flatten(), weights)
        return {
            **line, "explained_variance": float(explained), "learning_rate": self.learning_rate,
            "clip_range": float(clip), "optimizer_steps": steps,
        }  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return {"optimizer": self.optimizer.state_dict(), "learning_rate": self.learning_rate}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(state["optimizer"])
        self.learning_rate = state["learning_rate"]

    # --- minibatches -----------------------------------------------------------------------------------------------

    def _epochs(self, batch: Batch) -> Iterator[Iterable[Minibatch]]:
        cfg = self.cfg
        T, E = batch.logp.shape
        rows, sizes = minibatch_sizes(cfg, T, E, self.micro_batches)
        kind = Minibatches.contiguous if sizes[0] >= rows else cfg.minibatches  # one whole batch needs no order
        take = self._take_environments if cfg.minibatches is Minibatches.by_environment else self._take_rows
        kept: tuple[list[Tensor], list[Minibatch]] | None = None
        repeats = cfg.minibatches in (Minibatches.one_permutation, Minibatches.contiguous)
        for indices in minibatch_indices(kind, rows, sizes, cfg.n_epochs, self.generator):
            if repeats and cfg.n_epochs > 1:
                if kept is None or kept[0] is not indices:
                    kept = (indices, [take(batch, i) for i in indices])
                yield kept[1]
            else:
                yield (take(batch, i) for i in indices)

    def _take_rows(self, batch: Batch, index: Tensor) -> Minibatch:
        def rows(x: Tensor) -> Tensor:
            return x.flatten(0, 1).index_select(0, index)

        return Minibatch(
            tree_index(tree_flat(batch.observation), index), rows(batch.actions), rows(batch.logp),
            rows(batch.advantages), rows(batch.returns), rows(batch.values),
            None if batch.weights is None else rows(batch.weights), rows(batch.out) if self._wants_out else None,
            None, None,
        )  # fmt: skip

    def _take_environments(self, batch: Batch, index: Tensor) -> Minibatch:
        """Whole environments in time order (detail 35)."""

        def rows(x: Tensor) -> Tensor:
            return x.index_select(1, index).flatten(0, 1)

        observation = tree_index(batch.observation, index, 1)
        state = None if batch.state is None else (batch.state[0][:, index], batch.state[1][:, index])
        return Minibatch(
            observation if self.policy.recurrent else tree_flat(observation), rows(batch.actions), rows(batch.logp),
            rows(batch.advantages), rows(batch.returns), rows(batch.values),
            None if batch.weights is None else rows(batch.weights), rows(batch.out) if self._wants_out else None,
            state, None if batch.begins is None else batch.begins.index_select(1, index),
        )  # fmt: skip

    @property
    def _wants_out(self) -> bool:
        return self.cfg.schedule is LearningRate.adaptive_kl

    # --- one optimizer step ----------------------------------------------------------------------------------------

    def _step(self, minibatch: Minibatch, scale: Tensor, clip: Tensor) -> Tensor | None:
        """Statistics of one step, or None when the KL divergence ends the update before it."""
        cfg = self.cfg
        self.last = minibatch
        if cfg.advantage_norm is AdvantageNorm.minibatch:
            normalized = L.normalize_advantages(minibatch.advantages, minibatch.weights, self._total)
            minibatch = minibatch._replace(advantages=normalized)
        denominator = self._denominator(minibatch)
        parts = [minibatch] if self.micro_batches == 1 else self._micro(minibatch)
        stats = torch.zeros(len(STATISTICS) - 1, device=minibatch.logp.device)
        norm = stats.new_zeros(())
        go_on = True
        for i, part in enumerate(parts, 1):
            with self.parallel.accumulate(self.wrapped):
                with self.parallel.autocast():
                    loss, found = self._loss(part, scale, clip, denominator)
                stats += found / len(parts)
                self.parallel.backward(loss)
                if i < len(parts):
                    continue
                go_on = self._go_on(stats)
                if go_on:
                    norm = self._leave_out_overflow(self._clip_gradients())
                    self.optimizer.step()
                self.optimizer.zero_grad()
        if not go_on:
            return None
        return torch.cat([stats, norm[None]])

    def _go_on(self, found: Tensor) -> bool:
        """Reads the KL divergence where something depends on it: sets the adaptive rate, says whether to step."""
        cfg, world = self.cfg, self.parallel.world_size
        if cfg.kl_stop is not None:
            kl = float(self._total(found[3:4].double())) / world
            if kl > cfg.kl_stop:
                return False
        if cfg.schedule is LearningRate.adaptive_kl:
            kl = float(self._total(found[5:6].double())) / world
            if kl > 2 * cfg.desired_kl:
                self.learning_rate = max(cfg.min_learning_rate, self.learning_rate / KL_FACTOR)
            elif 0 < kl < 0.5 * cfg.desired_kl:
                self.learning_rate = min(cfg.max_learning_rate, self.learning_rate * KL_FACTOR)
            self._write_learning_rate()
        return True

    def _losses(
        self, m: Minibatch, scale: Tensor, clip: Tensor, denominator: Tensor | None
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Loss, and all `STATISTICS` but the last one as one tensor."""
        cfg = self.cfg
        found: Evaluation = self.wrapped(m.observation, m.actions, m.state, m.begins)
        policy = L.clipped_surrogate(found.logp, m.logp, m.advantages, clip, m.weights, denominator)
        value = L.value_loss(found.values, m.returns, m.values, cfg.value_clip, m.weights, denominator)
        if cfg.value_loss is ValueLoss.half_mse:
            value = 0.5 * value
        entropy = L.entropy_bonus(found.entropy, m.weights, denominator)
        loss = policy - cfg.entropy_coef * entropy + cfg.value_coef * value
        estimator = torch.zeros_like(loss)
        if found.estimator_error is not None:
            estimator = L.weighted_mean(found.estimator_error, m.weights, denominator)
            loss = loss + cfg.estimator_coef * estimator
        with torch.no_grad():
            analytic = torch.zeros_like(loss)
            if m.out is not None:
                kl = self.policy.distribution.kl(m.out, scale, found.out)
                analytic = L.weighted_mean(kl, m.weights)
            stats = torch.stack([
                policy, value, entropy, L.approx_kl(found.logp, m.logp, m.weights),
                L.clip_fraction(found.logp, m.logp, clip, m.weights), analytic, estimator,
            ])  # fmt: skip
        return loss, stats

    def _denominator(self, m: Minibatch) -> Tensor | None:
        """Rows of all ranks and micro-batches that count, per rank and micro-batch; None where a plain mean does."""
        if self.parallel.world_size == 1 and self.micro_batches == 1:
            return None
        own = torch.full_like(m.logp[0], len(m.logp)) if m.weights is None else m.weights.sum()
        everywhere = self._total(own.double()[None])[0] / self.parallel.world_size / self.micro_batches
        return everywhere.clamp_min(1e-8).to(m.logp.dtype)

    def _micro(self, m: Minibatch) -> list[Minibatch]:
        pieces = torch.arange(len(m.logp), device=m.logp.device).tensor_split(self.micro_batches)
        flat: dict[str, Any] = {k: x for k, x in m._asdict().items() if isinstance(x, Tensor) and k != "observation"}
        return [
            m._replace(observation=tree_index(m.observation, i), **{k: x[i] for k, x in flat.items()}) for i in pieces
        ]

    def _leave_out_overflow(self, norm: Tensor) -> Tensor:
        """The norm for the statistics: 0 where the scale of fp16 was too large, a step that its optimizer skips."""
        if self._skipped is None:
            return norm
        overflowed = self.parallel.overflowed(norm)
        self._skipped += overflowed
        return torch.where(overflowed > 0, 0.0, norm)

    def _clip_gradients(self) -> Tensor:
        """Norm before clipping; of separately clipped parts the root of the sum of squares."""
        if self.cfg.grad_clip is GradClip.joint:
            return self.parallel.clip_grad_norm(self.policy.parameters(), self.cfg.max_grad_norm)
        if self._clipped is None:  # once an update: looking them up costs as much as a small layer
            self._clipped = self.policy.actor_parameters(), self.policy.critic_parameters()
        actor = self.parallel.clip_grad_norm(self._clipped[0], self.cfg.max_grad_norm)
        # A second call through `parallel` would unscale the gradients of fp16 twice.
        again = clip_grad_norm if self.parallel.world_size == 1 else nn.utils.clip_grad_norm_
        critic = again(self._clipped[1], self.cfg.max_grad_norm)
        return (actor.square() + critic.square()).sqrt()

    # --- schedules -------------------------------------------------------------------------------------------------

    def _anneal(self, share: float, like: Tensor) -> Tensor:
        """Sets the learning rate of this update and returns its clip range, a scalar tensor."""
        cfg, done = self.cfg, min(max(share, 0.0), 1.0)
        if cfg.schedule is LearningRate.linear:
            self.learning_rate = cfg.learning_rate * (1 - done * (1 - cfg.final_lr_fraction))
        self._write_learning_rate()
        clip = cfg.clip_range * (1 - done * (1 - cfg.clip_range_final_fraction))
        return torch.full((), clip, dtype=like.dtype, device=like.device)

    def _write_learning_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * group.get("lr_scale", 1.0)
