"""PPO on stored denoising chains: the learning half of the explorer, for phases 2 and 3.

Old log-probs are those of the training forward, recomputed before the first step in the partition of the first epoch;
so the first ratio is 1 whatever the acting forward rounded differently. Both agreements are checked when a run starts.
A rollout has R x N rows: decisions of R rounds of episodes, one after the other.
Letters: R rounds of episodes, N decisions of an episode, E environments, B rows (R x N x E, in that order).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from f1_vla.flow_likelihood import Chain
from rl.algorithms import ppo_losses as L
from rl.config import FlowPPOConfig, Minibatches
from rl.data.rollout import RolloutStorage, even_sizes, minibatch_indices, stretches, tree_flat
from rl.models.explorer import Prefix
from rl.training.errors import CollectiveError
from rl.training.explorer_setup import ExplorerModel
from rl.training.optim import guarded_step
from rl.training.parallel_utils import ParallelContext

RATIO_TOLERANCE = 1e-5  # of the first ratio of an update, parameters unchanged
ROLLOUT_TOLERANCE = 1e-3  # between log-probs when acting and in training, float32

# Extra loss of a minibatch from its rows and the outputs of the training forward; phase 3 keeps the explorer near
# another policy with it.
ExtraLoss = Callable[[Prefix, Chain, dict[str, Tensor]], Tensor]


@dataclass
class ExplorerBatch:
    """What one update learns from; rows (B, ...)."""

    prefix: Prefix
    chain: Chain
    log_prob: Tensor  # when acting
    value: Tensor  # when acting
    advantage: Tensor  # normalised over all rows of all ranks
    returns: Tensor
    episodes: Tensor  # int64 (R x E, N): rows of each episode, in time order


def make_batch(rollout: RolloutStorage, rewards_REN: Tensor, cfg: FlowPPOConfig, ctx: ParallelContext) -> ExplorerBatch:
    """Collective. The batch of a full rollout of R rounds of episodes, each of which time ended; its rows are views."""
    R, E, N = rewards_REN.shape
    value, cut_value = rollout["value"], rollout.cut_states()["value"]
    prefix = tree_flat(rollout.observation)
    assert isinstance(prefix, dict) and isinstance(cut_value, Tensor)
    never = torch.zeros_like(value, dtype=torch.bool)
    truncated = never.clone()
    truncated[rollout.cut_index] = True
    rewards = rewards_REN.transpose(1, 2).reshape(R * N, E).to(value.device, value.dtype)
    rollout.complete(reward=rewards, terminated=never, truncated=truncated, valid=~never)
    advantage, returns = rollout.advantages(value, cut_value[-E:], cut_value, cfg.gamma, cfg.gae_lambda)
    advantage = L.normalize_advantages(advantage, rollout.weights, _total(ctx))
    return ExplorerBatch(
        Prefix(**prefix), Chain(rollout["x"].flatten(0, 1), rollout["steps"].flatten(0, 1)),
        rollout["log_prob"].flatten(), value.flatten(), advantage.flatten(), returns.flatten(),
        stretches(R * N, E, N),
    )  # fmt: skip


def _total(ctx: ParallelContext) -> L.Total:
    return L.own if ctx.world_size == 1 else ctx.total


class ExplorerUpdate:
    """Epochs of minibatches of whole episodes."""

    def __init__(
        self, cfg: FlowPPOConfig, model: ExplorerModel, ctx: ParallelContext, micro_batches: int, max_grad_norm: float
    ) -> None:
        self.cfg, self.model, self.ctx = cfg, model, ctx
        self.micro_batches, self.max_grad_norm = micro_batches, max_grad_norm
        self.checked = False  # the agreements of this run
        self.last: dict[str, Tensor] = {}  # rows of the last minibatch, for inspection

    def run(
        self, batch: ExplorerBatch, generator: torch.Generator, extra_loss: ExtraLoss | None = None
    ) -> dict[str, float]:
        """Collective. One update; `generator` (CPU) orders the episodes. Means over the optimizer steps taken.

        Raises CollectiveError at the first update of a run when log-probs do not agree, NumericalError when a loss or
        gradient is not finite.
        """
        self.model.wrapped.train()
        partitions = list(self._partitions(batch, self.cfg.epochs, generator))
        old = self._old_log_probs(batch, partitions[0])
        gap = self._largest((old - batch.log_prob).abs())
        taken: list[dict[str, float]] = []
        kl, error, stopped = 0.0, 0.0, False
        for number, rows in enumerate(rows for partition in partitions for rows in partition):
            stats, loss, ratio = self._gradients(batch, old, rows, extra_loss)
            if number == 0:
                error = self._largest((ratio - 1).abs())
                self._check(gap, error)
            kl = stats["approx_kl"]
            if self.cfg.kl_stop is not None and kl > self.cfg.kl_stop:
                stopped = True
                self.model.optimizer.zero_grad()
                break
            stats["grad_norm"] = guarded_step(
                self.ctx, self.model.optimizer, self.model.trainable, loss, self.max_grad_norm,
                f"explorer update, minibatch {number}",
            )  # fmt: skip
            taken.append(stats)
        value = self._fit_value(batch, generator)
        line = {k: sum(x[k] for x in taken) / len(taken) for k in taken[0]} | value
        explained = float(L.explained_variance(batch.value, batch.returns))
        return line | self.ctx.mean({"explained_variance": explained}) | {
            "approx_kl": kl,  # of the last minibatch seen: how far the update went
            "optimizer_steps": float(len(taken)), "kl_stopped": float(stopped), "first_ratio_error": error,
            "rollout_log_prob_gap": gap,
        }  # fmt: skip

    def check_agreement(self, batch: ExplorerBatch, generator: torch.Generator) -> None:
        """Collective. What the first update checks, for a run that begins without one; nothing afterwards.

        Raises CollectiveError. `generator` as for `run`.
        """
        if self.checked:
            return
        self.model.wrapped.train()
        (partition,) = self._partitions(batch, 1, generator)
        old, again = (self._old_log_probs(batch, partition) for _ in range(2))
        self._check(self._largest((old - batch.log_prob).abs()), self._largest(((again - old).exp() - 1).abs()))

    def _partitions(self, batch: ExplorerBatch, epochs: int, generator: torch.Generator) -> Iterator[list[Tensor]]:
        """Row numbers of every minibatch of every epoch."""
        count = len(batch.episodes)
        sizes = even_sizes(count, self.cfg.minibatches)
        for epoch in minibatch_indices(Minibatches.by_environment, count, sizes, epochs, generator):
            yield [batch.episodes[chosen].flatten() for chosen in epoch]

    def _fit_value(self, batch: ExplorerBatch, generator: torch.Generator) -> dict[str, float]:
        """Collective. Epochs of the value head alone, whose inputs nothing trains: they cost no pass of the policy."""
        head, losses = self.model.explorer.value, []
        parameters = list(head.parameters())
        for rows in (r for epoch in self._partitions(batch, self.cfg.value_epochs, generator) for r in epoch):
            with torch.autocast(batch.value.device.type, enabled=False):
                value = head(batch.prefix.features[rows])
            loss = 0.5 * L.value_loss(value, batch.returns[rows], batch.value[rows], self.cfg.value_clip)
            self.ctx.backward(self.cfg.value_coef * loss * self.micro_batches)  # accumulation divides by as many
            self.ctx.average_gradients(parameters)  # the head is called as itself, not through the wrapper
            guarded_step(
                self.ctx, self.model.optimizer, parameters, loss, self.max_grad_norm, "value head of the explorer"
            )
            losses.append(float(loss.detach()))
        return self.ctx.mean({"value_loss": sum(losses) / len(losses)}) if losses else {}

    def _old_log_probs(self, batch: ExplorerBatch, partition: list[Tensor]) -> Tensor:
        """(B,) by the training forward, in the micro-batches of the first epoch.

        Gradients stay enabled, because attention may take another kernel without them.
        """
        old = torch.empty_like(batch.log_prob)
        with self.ctx.no_sync(self.model.wrapped):
            for rows in partition:
                for part in rows.tensor_split(self.micro_batches):
                    out = self.model.wrapped(batch.prefix.rows(part), batch.chain.rows(part))
                    old[part] = out["log_prob"].detach()
        return old

    def _gradients(
        self, batch: ExplorerBatch, old: Tensor, rows: Tensor, extra_loss: ExtraLoss | None
    ) -> tuple[dict[str, float], Tensor, Tensor]:
        """Forward and backward of one minibatch: statistics over ranks, its loss, its ratios."""
        cfg, n = self.cfg, self.micro_batches
        sums, losses, ratios = torch.zeros(5, dtype=torch.float64), [], []
        for part in rows.tensor_split(n):
            self.last = {"rows": part, "chain": batch.chain.x[part], "features": batch.prefix.features[part]}
            prefix, chain, share = batch.prefix.rows(part), batch.chain.rows(part), len(part) / len(rows)
            with self.ctx.accumulate(self.model.wrapped):
                out = self.model.wrapped(prefix, chain)
                policy = L.clipped_surrogate(out["log_prob"], old[part], batch.advantage[part], cfg.clip_range)
                value = 0.5 * L.value_loss(out["value"], batch.returns[part], batch.value[part], cfg.value_clip)
                entropy = L.entropy_bonus(out["entropy"])
                loss = policy + cfg.value_coef * value - cfg.entropy_coef * entropy
                if extra_loss is not None:
                    loss = loss + extra_loss(prefix, chain, out)
                self.ctx.backward(loss * (share * n))  # accumulation divides by n
            with torch.no_grad():
                kl = L.approx_kl(out["log_prob"], old[part])
                clipped = L.clip_fraction(out["log_prob"], old[part], cfg.clip_range)
                found = torch.stack([policy, value, entropy, kl, clipped]).double().cpu()
                sums += found * share
                losses.append(loss.detach())
                ratios.append((out["log_prob"] - old[part]).exp())
        names = ("policy_loss", "value_loss", "policy_entropy", "approx_kl", "clip_fraction")
        return self.ctx.mean(dict(zip(names, sums.tolist(), strict=True))), torch.stack(losses).sum(), torch.cat(ratios)

    def _largest(self, x: Tensor) -> float:
        """Collective: largest number over ranks; infinite when one is no number."""
        own = float(torch.nan_to_num(x, nan=float("inf")).max())
        return max(self.ctx.gather_objects(own))

    def _check(self, gap: float, error: float) -> None:
        """The promises of every run, before its first step (parameters have not moved yet: learning rate 0)."""
        if self.checked:
            return
        if not gap <= ROLLOUT_TOLERANCE:
            raise CollectiveError(
                f"log-probs when acting and in the training forward differ by {gap:.2e}, over {ROLLOUT_TOLERANCE}: "
                "the two forwards are not the same policy, so PPO would learn from wrong ratios. Try another "
                "arch.trunk.attention_backend, and report this"
            )
        if not error <= RATIO_TOLERANCE:
            raise CollectiveError(
                f"the first ratio of an update differs from 1 by {error:.2e}, more than {RATIO_TOLERANCE}, before any "
                "step: the training forward is not a function of its input (dropout, non-deterministic kernels). Set "
                "model.lora.lora_dropout=0, try another arch.trunk.attention_backend, and report this"
            )
        self.checked = True
