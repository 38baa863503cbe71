"""The documented public surface of the trainers: what users' own scripts import.

Most names live in focused modules and are re-exported; `BatchBuilder` and `MemoryStateManager` serve single-environment
use (acting, notebooks), where observations come one by one.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from f1_vla import memory
from f1_vla.batch import F1Batch
from f1_vla.policy import F1Policy
from f1_vla.text import encode_instruction
from f1_vla.trainable import set_policy_requires_grad
from rl import config as rl_config
from rl.config import Config, DictConfig, TrainingConfig
from rl.normalizers import Normalizer
from rl.training.gpu import get_physical_gpu_id, setup_sapien_gpu
from rl.training.model_loading import load_f1_policy
from rl.training.optim import setup_optimizer, setup_scheduler
from rl.types import Observation

__all__ = [
    "BatchBuilder",
    "MemoryStateManager",
    "get_environment_config",
    "get_physical_gpu_id",
    "get_training_config",
    "load_f1_policy",
    "load_rl_config",
    "set_policy_requires_grad",
    "setup_optimizer",
    "setup_sapien_gpu",
    "setup_scheduler",
]


def load_rl_config(path: str | Path | None = None, overrides: list[str] | None = None) -> DictConfig:
    """The merged and checked configuration (defaults <- file <- overrides) with attribute access."""
    return rl_config.as_node(rl_config.load(path, overrides))


def get_training_config(config: DictConfig | Config) -> TrainingConfig:
    """The `training` block, typed."""
    return rl_config.as_config(config).training


def get_environment_config(config: DictConfig | Config) -> dict[str, Any]:
    """The `environment` block as a plain dict; `rl.config.environment_from_dict` turns it back for `F1RLEnv`."""
    return rl_config.to_dict(rl_config.as_config(config).environment)


class MemoryStateManager:
    """Carries the memory state of one stream of steps between calls of the policy."""

    def __init__(self, policy: F1Policy, batch_size: int = 1) -> None:
        self._policy, self._batch_size = policy, batch_size
        self._h: Tensor | None = None

    def reset(self) -> Tensor:
        """Zeros (num_layers, B, hidden): an episode begins."""
        self._h = self._policy.initial_memory_state(self._batch_size)
        return self._h

    def update(self, state: Tensor) -> None:
        """Keeps `state`, detached: no gradient flows between calls. ValueError on None or another shape."""
        self._h = memory.check_state(
            self._policy.cfg.memory, state, self._batch_size, "MemoryStateManager.update"
        ).detach()

    def get_current(self) -> Tensor:
        """(num_layers, B, hidden). ValueError before `reset` or `update`."""
        if self._h is None:
            raise ValueError("MemoryStateManager is empty: call reset() at the start of the episode")
        return self._h


class BatchBuilder:
    """From observations of `F1RLEnv` to what the policy reads."""

    def __init__(self, policy: F1Policy, states: Normalizer, instruction: str) -> None:
        self.policy, self.states = policy, states
        self._words, self._word_mask = encode_instruction(policy.cfg, instruction)
        self.memory = MemoryStateManager(policy)

    def build_batch(
        self, transitions: Sequence[Observation], include_memory_states: bool = True
    ) -> tuple[F1Batch, Tensor | None]:
        """One-step batch of B observations of one view, and zero memory states (num_layers, B, hidden) or None.

        Feed the states to the first call; carry what it returns. Raises ValueError for an empty list or mixed views.
        """
        if not transitions:
            raise ValueError("build_batch needs at least one observation")
        cameras = [k for k in ("image0", "image1") if k in transitions[0]]
        if any(("image1" in t) != ("image1" in transitions[0]) for t in transitions):
            raise ValueError("build_batch: teacher observations (image1) and student ones cannot share a batch")
        device, B = self.policy.device, len(transitions)
        histories = torch.from_numpy(np.stack([t["image0_history"] for t in transitions]))
        observations: list[dict[str, Any]] = [dict(t) for t in transitions]
        pictures = torch.from_numpy(np.stack([np.stack([t[c] for c in cameras]) for t in observations]))
        slots = histories.shape[1]
        frames = self.policy.encode_frames(histories.flatten(0, 1))
        vision = self.policy.encode_frames(histories[:, -1], pictures).vision

        def tensor(key: str, dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(np.stack([t[key] for t in observations])).to(device, dtype)[:, None]

        batch = F1Batch(
            lang_tokens=self._words.to(device).expand(B, -1),
            lang_masks=self._word_mask.to(device).expand(B, -1),
            camera_mask=torch.ones(B, 1, len(cameras), dtype=torch.bool, device=device),
            history_ids=frames.ids.view(B, 1, slots, -1),
            history_latents=frames.latents.view(B, 1, slots, *frames.latents.shape[1:]),
            history_mask=tensor("history_mask", torch.bool),
            actions=tensor("action_history", torch.float32),
            action_known=tensor("action_known", torch.bool),
            state=self.states.normalize(tensor("state", torch.float32)),
            vision=None if vision is None else vision[:, None],
        )
        return batch, self.policy.initial_memory_state(B) if include_memory_states else None
