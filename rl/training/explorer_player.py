"""The explorer as a player of phase 3: that of phase 2, rewarded by a slow copy of the world model, on a leash.

Letters: E episodes, T steps.
"""

import time
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from f1_vla.flow_likelihood import Chain
from f1_vla.policy import F1Policy
from rl.config import Config, LeashConfig
from rl.data.episode_buffer import EpisodeBuffer
from rl.data.intrinsic import ReturnScale
from rl.models.explorer import Prefix
from rl.normalizers import Normalizer
from rl.training.explorer_pool import ExplorerPool
from rl.training.explorer_update import ExplorerBatch, make_batch
from rl.training.optim import setup_scheduler
from rl.training.parallel_utils import ParallelContext
from rl.training.reward_model import RewardModel, Scores
from rl.training.seeds import seed_for
from rl.training.student_phase import StudentPhase
from rl.training.tensor_swap import Parameters, Version, on_device_of, swapped_in, taken, trained

PART = 256  # decisions whose reference moments are computed together


def explorer_config(cfg: Config) -> Config:
    """The configuration as phase 2 reads it, with the explorer's numbers of phase 3."""
    a = cfg.adversarial
    ppo = replace(cfg.student.ppo, epochs=a.explorer_updates_per_iter)
    student = replace(
        cfg.student, learning_rate=a.explorer_learning_rate, value_learning_rate=a.explorer_value_learning_rate,
        min_learning_rate=a.explorer_min_learning_rate, ppo=ppo,
    )  # fmt: skip
    return replace(cfg, student=student, training=replace(cfg.training, max_grad_norm=a.explorer_max_grad_norm))


class SlowRewardModel:
    """Scores episodes under a copy of what the world model trains, refreshed now and then."""

    def __init__(self, inner: RewardModel, parameters: Parameters) -> None:
        self.inner, self.parameters = inner, parameters
        self.version: Version = taken(parameters)
        self.last: Scores | None = None  # of the newest call

    def refresh(self) -> None:
        self.version = taken(self.parameters)

    def score(self, buffer: EpisodeBuffer, episodes: list[int]) -> Scores:
        """See `RewardModel.score`."""
        with swapped_in(self.parameters, self.version):
            self.last = self.inner.score(buffer, episodes)
        return self.last


class Leash:
    """Weight of KL(explorer || phase 2), which keeps it near a target (Schulman et al. 2017, adaptive KL penalty).

    A weak leash lets the explorer hack its reward (PROWL 2026).
    """

    def __init__(self, cfg: LeashConfig) -> None:
        self.cfg, self.weight = cfg, cfg.weight
        self.seen: list[tuple[float, int]] = []  # mean and rows of each forward of the running update

    def loss(self, prefix: Prefix, chain: Chain, out: dict[str, Tensor]) -> Tensor:
        """`ExtraLoss` of an explorer update."""
        kl = out["kl"].mean()
        self.seen.append((float(kl.detach()), len(out["kl"])))
        return self.weight * kl

    def settle(self, ctx: ParallelContext, forwards: int) -> float:
        """Collective. Adapts the weight to the KL over the last `forwards` forwards of an update; that KL."""
        newest = self.seen[-forwards:]
        kl = ctx.mean({"kl": sum(k * n for k, n in newest) / sum(n for _, n in newest)})["kl"]
        self.seen = []
        c = self.cfg
        if kl > 1.5 * c.target:
            self.weight = min(2 * self.weight, c.max_weight)
        elif kl < c.target / 1.5:
            self.weight = max(self.weight / 2, c.min_weight)
        return kl


class ExplorerPlayer(StudentPhase):
    """Plays and learns as in phase 2; `slow` stands in for the frozen world model."""

    def __init__(
        self, cfg: Config, policy: F1Policy, states: Normalizer | None, origin: dict[str, Any], ctx: ParallelContext
    ) -> None:
        """cfg: of phase 3. The world model's role must be attached (`attach`) before anything is played."""
        super().__init__(explorer_config(cfg), policy, states, origin, ctx)
        a = cfg.adversarial
        horizon = a.schedule_iterations or a.total_iterations
        self.schedule = setup_scheduler(self.model.optimizer, "cosine", horizon, a.explorer_min_learning_rate)
        self.leash = Leash(a.leash)
        self.acting = {n: p for n, p in trained(self.model.explorer).items() if not n.startswith("value.")}
        self.pool = ExplorerPool(self.acting, a.pool_size)

    def attach(self, world_model: Parameters) -> None:
        """From now on rewards come from a copy of these parameters."""
        self.slow = SlowRewardModel(self.rewards, world_model)
        self.rewards = self.slow  # type: ignore[assignment]

    def take_reference(self) -> None:
        """The present weights are those of phase 2: the leash and the pool start there."""
        self.pool = ExplorerPool(self.acting, self.pool.ring.maxlen or 1)

    def refresh_rewards(self) -> None:
        """A fresh copy of the world model, and statistics of its rewards that start anew with it."""
        self.slow.refresh()
        self.scale = ReturnScale(self.scale.names, self.scale.gamma, self.scale.clip)

    def wait(self) -> None:
        """An iteration without an update of the explorer: what was played is dropped. A run that begins with such ones
        is refused here, not after them, when acting and training do not agree. Raises CollectiveError."""
        if not self.update_step.checked:
            batch = make_batch(self.rollout, self.reward_REN, self.cfg.student.ppo, self.ctx)
            self.update_step.check_agreement(batch, self._order())
        self.rollout.free()

    def _order(self) -> torch.Generator:
        """Draws the minibatches of the next update."""
        seed = seed_for(self.cfg.training.seed, self.ctx.rank, "minibatches", self.updates)
        return torch.Generator().manual_seed(seed)

    def update(self, progress: float) -> dict[str, float]:
        """One PPO update: all epochs, every loss with the leash."""
        start = time.monotonic()
        lr = self.schedule.set(progress, self.updates)
        batch = make_batch(self.rollout, self.reward_REN, self.cfg.student.ppo, self.ctx)
        batch.chain = self._with_reference(batch)
        weight = self.leash.weight
        line = self.update_step.run(batch, self._order(), self.leash.loss)
        self.rollout.free()
        self.updates += 1
        kl = self.leash.settle(
            self.ctx, self.cfg.student.ppo.minibatches * self.cfg.training.gradient_accumulation_steps
        )
        line["explorer_grad_norm"] = line.pop("grad_norm")  # the world model has one, too
        return line | {
            "explorer_learning_rate": lr, "kl_to_phase2": kl, "leash_weight": weight,
            "time_explorer_update_s": time.monotonic() - start,
        }  # fmt: skip

    def _with_reference(self, batch: ExplorerBatch) -> Chain:
        """The chains of a batch with the moments that the explorer of phase 2 gives to their steps."""
        explorer, rows = self.model.explorer, torch.arange(len(batch.log_prob), device=batch.log_prob.device)
        with self.pool.acting(0):
            parts = [explorer.moments(batch.prefix.rows(r), batch.chain.rows(r)) for r in rows.split(PART)]
        return replace(batch.chain, reference=torch.cat(parts))

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def player_state(self) -> dict[str, Any]:
        """What phase 3 adds to the state of phase 2; plain data, equal on all ranks."""
        return {"leash_weight": self.leash.weight, "pool": self.pool.state_dict(), "slow": dict(self.slow.version)}

    def load_player_state(self, state: dict[str, Any]) -> None:
        self.leash.weight = state["leash_weight"]
        self.pool.load_state_dict(state["pool"])
        self.slow.version = on_device_of(self.slow.parameters, state["slow"])
