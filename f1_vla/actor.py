"""Acting step by step: an action queue over sampled chunks and the memory, for several environments at once.

Letters: B environments (rows), Q actions of a chunk, A padded action dims.
"""

from typing import Any

import torch
from torch import Tensor

from f1_vla.batch import F1Batch
from f1_vla.config import DenoiseMode
from f1_vla.denoise import Denoiser
from f1_vla.policy import F1Policy
from f1_vla.rollout import Sampling


class Actor:
    """One row an environment; rows begin episodes and run out of queued actions independently."""

    def __init__(
        self,
        policy: F1Policy,
        batch_size: int,
        action_dim: int,
        execute: int | None = None,
        sampling: Sampling | None = None,
        num_scales: int | None = None,
        num_steps: int | None = None,
        precision: torch.dtype = torch.float32,
    ) -> None:
        """execute: actions of a chunk that are carried out before a new one is sampled (default: all).

        num_scales: scales of foresight (default `world_model.foresight_scales`); num_steps: Euler steps (default
        `num_denoise_steps`); precision: bfloat16 runs everything under autocast. How the Euler loop runs is
        `denoise_mode` of the configuration.
        ValueError when a number does not fit the model.
        """
        cfg = policy.cfg
        execute = cfg.chunk_size if execute is None else execute
        num_scales = cfg.world_model.foresight_scales if num_scales is None else num_scales
        limits = {"execute": (execute, cfg.chunk_size), "action_dim": (action_dim, cfg.max_action_dim)}
        limits["num_scales"] = (num_scales, len(cfg.tokenizer.scales))
        for name, (value, most) in limits.items():
            if not 1 <= value <= most:
                raise ValueError(f"Actor: {name} is {value}; this model allows 1 to {most}")
        if num_steps is not None and num_steps < 1:
            raise ValueError(f"Actor: num_steps is {num_steps}; the Euler loop takes at least 1 step")
        if precision not in (torch.float32, torch.bfloat16):
            raise ValueError(f"Actor: precision is {precision}; use torch.float32 or torch.bfloat16")
        self.policy, self.execute, self.action_dim, self.precision = policy, execute, action_dim, precision
        self.options: dict[str, Any] = {
            "sampling": sampling or Sampling(),
            "num_scales": num_scales,
            "num_steps": num_steps,
        }
        if cfg.denoise_mode is not DenoiseMode.eager:
            self.options["denoiser"] = Denoiser(policy, cfg.denoise_mode)
        self.h = policy.initial_memory_state(batch_size)
        self.chunk = torch.zeros(batch_size, cfg.chunk_size, cfg.max_action_dim, device=policy.device)
        self.next = torch.full((batch_size,), execute, device=policy.device)  # index of the next action; execute: none

    def reset(self, rows: Tensor | None = None) -> None:
        """Empties queue and memory of the rows (bool (B,)) whose episode begins; None: all."""
        rows = torch.ones_like(self.next, dtype=torch.bool) if rows is None else rows.to(self.next.device)
        self.next[rows] = self.execute
        self.h = self.h.masked_fill(rows[None, :, None], 0.0)

    @torch.no_grad()
    def select_action(self, batch: F1Batch, noise: Tensor | None = None) -> Tensor:
        """The next normalised action of every row (B, action_dim), float32. batch: one step, B rows.

        Samples chunks for the rows whose queue is empty, one forward for all of them; the others only carry their
        memory on. noise (B, Q, A): start of the Euler steps, else standard normal.
        """
        if batch.size != len(self.next):
            raise ValueError(f"select_action: the batch has {batch.size} rows, this Actor has {len(self.next)}")
        due = self.next >= self.execute
        batch = batch.hide_current_action()
        with torch.autocast(self.policy.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16):
            index = due.nonzero()[:, 0]
            features = self._sample(batch.rows(index), index, noise) if len(index) else None
            action = self.chunk[torch.arange(len(self.next), device=self.next.device), self.next]
            executed = action.clone()
            executed[:, self.action_dim :] = 0.0  # padding is never carried out
            batch.actions = batch.actions.clone()
            batch.actions[:, 0, -1] = executed.to(batch.actions)
            self._remember(batch, index, features)
        self.next += 1
        return action[:, : self.action_dim]

    def _sample(self, batch: F1Batch, index: Tensor, noise: Tensor | None) -> Tensor:
        """Fills the queue of some rows; what the memory will read of them (rows, und + gen width)."""
        start = noise if noise is None else noise[index]
        out = self.policy(batch, mode="actions", initial_memory_state=self.h[:, index], noise=start, **self.options)
        self.chunk[index] = out["actions"].float()
        self.next[index] = 0
        return out["memory_features"]

    def _remember(self, batch: F1Batch, sampled: Tensor, features: Tensor | None) -> None:
        """Writes the executed action and what was seen into the memory of every row."""
        if self.policy.memory is None:
            return
        h, keep = self.h.clone(), torch.ones_like(self.next, dtype=torch.bool)
        keep[sampled] = False
        for index, mode in ((sampled, "write_memory"), (keep.nonzero()[:, 0], "memory_only")):
            if len(index):
                rows = batch.rows(index)
                extra = {} if mode == "memory_only" else {"memory_features": features, "action": rows.actions[:, 0, -1]}
                h[:, index] = self.policy(rows, mode=mode, initial_memory_state=self.h[:, index], **extra)[
                    "memory_state"
                ]
        self.h = h
