"""Gradients of the world model on windows of an episode buffer: the learning half of phases 1 and 3.

Letters: B windows, T steps, K ensemble members.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from f1_vla.batch import F1Batch
from rl.config import Config, OnMemory
from rl.data.episode_buffer import EpisodeBuffer, WindowIndex
from rl.training.micro_batches import Drawn, Halving
from rl.training.model_setup import Model
from rl.training.parallel_utils import ParallelContext
from rl.training.seeds import words_for
from rl.training.world_model_data import WorldModelData, initial_memory
from rl.training.world_model_metrics import window_metrics

Sampler = Callable[[], WindowIndex]
Draw = Callable[[int, int, int, torch.Generator], WindowIndex]  # batch, length, burn-in, generator
Seen = Callable[[WindowIndex, dict[str, Any]], None]  # windows and what the forward made of their trained steps


@dataclass
class Gradients:
    """What one accumulation left in the parameters' `grad`, and its numbers on this rank."""

    line: dict[str, float]  # mean over micro-batches
    loss: Tensor  # of the last micro-batch
    samples: int  # trained steps


class WorldModelUpdate:
    """One wrapped forward and backward a micro-batch; the step is the caller's."""

    def __init__(
        self, cfg: Config, model: Model, data: WorldModelData, buffer: EpisodeBuffer, ctx: ParallelContext,
        generator: torch.Generator, draw: Draw | None = None,
    ) -> None:  # fmt: skip
        """generator: draws views, hidden actions and the single steps of the latent head; those by `draw`, default
        uniformly from the buffer."""
        self.cfg, self.model, self.data, self.buffer, self.ctx = cfg, model, data, buffer, ctx
        self.generator = generator
        self.draw = buffer.sample if draw is None else draw
        self.windows: dict[str, Tensor] = {}  # of the last micro-batch, for inspection
        self.halving: Halving | None = None
        if cfg.numbers.on_out_of_memory is OnMemory.halve:
            if ctx.sharded:
                raise ValueError(
                    "numbers.on_out_of_memory=halve is for whole gradients on every rank; FSDP and DeepSpeed split "
                    "them: set it to stop, or take configs/accelerate/ddp.yaml"
                )
            self.halving = Halving(ctx)

    def gradients(self, sample: Sampler, seen: Seen | None = None) -> Gradients:
        """Collective. `training.gradient_accumulation_steps` micro-batches of windows from `sample`."""
        self.model.wrapped.train()
        if self.halving is not None:
            drawn = [self._drawn(sample()) for _ in range(self.cfg.training.gradient_accumulation_steps)]
            made = self.halving.run(
                len(drawn[0].where.episode),
                lambda pieces: self._by_pieces(drawn, pieces, seen),
                self.model.optimizer.zero_grad,
            )
            self.ctx.average_gradients([*self.model.trainable, *self.model.heads])
            return made
        parts: list[dict[str, float]] = []
        samples, loss = 0, torch.zeros(())
        for _ in range(self.cfg.training.gradient_accumulation_steps):
            where = sample()
            with self.ctx.accumulate(self.model.wrapped):
                out, loss = self.forward(where)
                self.ctx.backward(loss)
            parts.append(window_metrics(out["metrics"]) | {k: float(v) for k, v in out["extra"].items()})
            samples += int(out["valid"].sum())
            if seen is not None:
                seen(where, out)
        return Gradients({k: sum(p[k] for p in parts) / len(parts) for k in parts[0]}, loss, samples)

    def _by_pieces(self, micro_batches: list[Drawn], pieces: int, seen: Seen | None) -> Gradients:
        """The same gradients from smaller forwards, without a word between the ranks."""
        lines: list[tuple[float, dict[str, float]]] = []
        samples, total = 0, torch.zeros((), device=self.ctx.device)
        for drawn in micro_batches:
            for index in range(pieces):
                part, share, single_share = drawn.piece(index, pieces)
                out, loss = self._forward(part, share, single_share)
                self.ctx.backward(loss)
                line = window_metrics(out["metrics"]) | {k: float(v) for k, v in out["extra"].items()}
                lines.append((share, line))
                samples += int(out["valid"].sum())
                total += loss.detach()
                if seen is not None:
                    seen(part.where, out)
        means = {}
        for name in lines[0][1]:
            having = [(share, line[name]) for share, line in lines if name in line]
            means[name] = sum(share * value for share, value in having) / sum(share for share, _ in having)
        return Gradients(means, total / len(micro_batches), samples)

    def forward(self, where: WindowIndex) -> tuple[dict[str, Any], Tensor]:
        """One wrapped forward over the trained steps, from a memory state refreshed by the burn-in steps."""
        return self._forward(self._drawn(where))

    def _drawn(self, where: WindowIndex) -> Drawn:
        teacher, B = self.cfg.teacher, len(where.episode)
        head_visible = torch.rand(B, generator=self.generator) >= teacher.view_dropout
        known = torch.rand(B, where.length, generator=self.generator) >= teacher.action_dropout
        return Drawn(where, head_visible, known, self._single_steps())

    def _forward(self, drawn: Drawn, share: float = 1.0, single_share: float = 1.0) -> tuple[dict[str, Any], Tensor]:
        """shares: weights of the windows' and the single steps' losses."""
        teacher, t, where = self.cfg.teacher, self.cfg.training, drawn.where
        windows = self.windows = self.buffer.gather(where)
        batch = self.data.batch(windows, drawn.head_visible, drawn.known)
        batch.bootstrap = self._bootstrap(where)
        singles, h = self._single_batch(drawn), initial_memory(windows, self.ctx.device)
        # The wrapper may talk to other ranks in its forward; with halving, gradients are averaged afterwards.
        model = self.model.wrapped if self.halving is None else self.model.policy
        with self.ctx.autocast():
            if where.burn_in:
                with torch.no_grad():
                    early = batch.window(0, where.burn_in)
                    h = model(early, mode="memory_only", initial_memory_state=h)["memory_state"]
            out = model(
                batch.window(where.burn_in, where.length), mode="world_model_window", initial_memory_state=h.detach(),
                memory_backprop=t.memory_backprop and t.sequential_training, latent_batch=singles,
            )  # fmt: skip
        self._refresh_memory(where, drawn.head_visible, out["memory_states"])
        loss, out["extra"] = share * out["loss"], {}
        if "latent_loss" in out:
            loss = loss + single_share * teacher.latent_loss_weight * out["latent_loss"]
            out["extra"] = {"latent_loss": out["latent_loss"].detach()}
        if "ensemble_loss" in out:
            loss = loss + share * out["ensemble_loss"]
            out["extra"]["ensemble_loss"] = out["ensemble_loss"].detach()
        return out, loss

    def _bootstrap(self, where: WindowIndex) -> Tensor | None:
        """bool (B, K): the members whose bootstrap sample holds the episode of each window; None without an ensemble.

        A function of seed and episode index, so a member sees an episode always or never.
        """
        members = self.model.policy.cfg.world_model.ensemble_heads
        if members == 0:
            return None
        limit = round(self.cfg.teacher.bootstrap_probability * 2**32)
        indices = [self.buffer.episodes[e].index for e in where.episode]
        words = [words_for(members, self.cfg.training.seed, "bootstrap", i) for i in indices]
        return torch.tensor([[w < limit for w in row] for row in words], device=self.ctx.device)

    def _refresh_memory(self, where: WindowIndex, head_visible: Tensor, states: Tensor) -> None:
        """Stores what the current parameters make of the trained steps, so that later windows start from states like
        those of evaluation. Wrist-only windows are left out: stored states are of the full view."""
        full = [b for b, visible in enumerate(head_visible.tolist()) if visible]
        inner = WindowIndex(
            [where.episode[b] for b in full], [where.start[b] + where.burn_in for b in full],
            where.length - where.burn_in, 0,
        )  # fmt: skip
        self.buffer.write_memory(inner, states[full])

    def _single_steps(self) -> tuple[WindowIndex, Tensor] | None:
        """Random single steps for the latent head; None when it has none."""
        size = self.cfg.teacher.latent_batch_size
        if size == 0 or not self.model.policy.cfg.world_model.latent_head:
            return None
        where = self.draw(size, 1, 0, self.generator)
        return where, torch.rand(size, 1, generator=self.generator) >= self.cfg.teacher.action_dropout

    def _single_batch(self, drawn: Drawn) -> tuple[F1Batch, Tensor] | None:
        """The single steps with their stored memory states."""
        if drawn.singles is None:
            return None
        where, known = drawn.singles
        windows = self.buffer.gather(where)
        batch = self.data.batch(windows, torch.ones(len(where.episode), dtype=torch.bool), known)
        return batch, initial_memory(windows, self.ctx.device)
