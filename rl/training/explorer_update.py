"""PPO on stored denoising chains: the learning half of the explorer, for phases 2 and 3.

Old log-probs are those of the training forward, recomputed before the first step in the partition of the first epoch;
so the first ratio is 1 whatever the acting forward rounded differently. Both agreements are checked when a run starts.
Letters: R rounds of episodes, N decisions of an episode, E environments, B rows (R x N x E, in that order).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from f1_vla.flow_likelihood import Chain
from rl.algorithms import ppo_losses as L
from rl.config import FlowPPOConfig
from rl.data.returns import gae
from rl.models.explorer import Prefix
from rl.training.errors import CollectiveError
from rl.training.explorer_acting import ActedEpisodes
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
    episodes: list[Tensor]  # rows of each episode, in time order

    def of(self, episodes: Iterable[int]) -> Tensor:
        """Row indices of whole episodes."""
        return torch.cat([self.episodes[i] for i in episodes])


def make_batch(
    rounds: list[ActedEpisodes], rewards_REN: Tensor, cfg: FlowPPOConfig, ctx: ParallelContext
) -> ExplorerBatch:
    """Collective. Advantages of R rounds of episodes, which time ended: the value of the last observation follows."""
    R, E, N = rewards_REN.shape
    prefix = Prefix.join([p for r in rounds for p in r.prefixes])
    chains = [c for r in rounds for c in r.chains]
    chain = Chain(torch.cat([c.x for c in chains]), torch.cat([c.steps for c in chains]))
    device = chain.x.device
    values = torch.stack([torch.stack(r.values) for r in rounds])  # (R, N, E)
    finals = torch.stack([r.final_value for r in rounds if r.final_value is not None])[:, None]
    after = torch.cat([values[:, 1:], finals], 1)

    def columns(x: Tensor) -> Tensor:
        return x.permute(1, 0, 2).reshape(N, R * E)

    rewards = columns(rewards_REN.transpose(1, 2).to(device, values.dtype))
    truncated = torch.zeros(N, R * E, dtype=torch.bool, device=device)
    truncated[-1] = True
    nothing, everything = torch.zeros_like(truncated), torch.ones_like(truncated)
    advantage, returns = gae(
        rewards, columns(values), columns(after), nothing, truncated, everything, cfg.gamma, cfg.gae_lambda
    )

    def rows(x: Tensor) -> Tensor:
        return x.view(N, R, E).transpose(0, 1).flatten()

    steps = torch.arange(N, device=device) * E
    episodes = [r * N * E + e + steps for r in range(R) for e in range(E)]
    return ExplorerBatch(
        prefix, chain, torch.stack([torch.stack(r.log_probs) for r in rounds]).flatten(), values.flatten(),
        L.normalize_advantages(rows(advantage), None, _total(ctx)), rows(returns), episodes,
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
        orders = [torch.randperm(len(batch.episodes), generator=generator) for _ in range(self.cfg.epochs)]
        partitions = [[batch.of(p.tolist()) for p in o.tensor_split(self.cfg.minibatches)] for o in orders]
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
        line = {k: sum(x[k] for x in taken) / len(taken) for k in taken[0]}
        explained = float(L.explained_variance(batch.value, batch.returns))
        return line | self.ctx.mean({"explained_variance": explained}) | {
            "approx_kl": kl,  # of the last minibatch seen: how far the update went
            "optimizer_steps": float(len(taken)), "kl_stopped": float(stopped), "first_ratio_error": error,
            "rollout_log_prob_gap": gap,
        }  # fmt: skip

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
        """The promises of every run, at its first update (parameters have not moved yet: learning rate 0)."""
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
