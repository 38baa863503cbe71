"""Builds the explorer of a run and its optimizer."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from f1_vla.config import F1Config
from f1_vla.flow_likelihood import FlowProcess
from f1_vla.lora import Role
from f1_vla.policy import F1Policy
from f1_vla.trainable import trainable_table
from rl.config import Config, StudentConfig, check_explorer
from rl.data.intrinsic import normalised_names
from rl.models.explorer import Explorer, explorer_parameters
from rl.training.adapter_io import write_adapter
from rl.training.checkpoint_files import ReleasedBase
from rl.training.model_setup import inject_adapter, uses_lora
from rl.training.parallel_utils import ParallelContext
from rl.training.released_base import check_untrained, released_base
from rl.training.rng import seed_all
from rl.training.seeds import seed_for

log = logging.getLogger(__name__)


@dataclass
class ExplorerModel:
    """The explorer, as itself and as wrapped for training."""

    explorer: Explorer
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    trainable: list[nn.Parameter]
    lora: bool
    bases: list[ReleasedBase | None] = field(default_factory=list)  # what checkpoints need not copy, once it is known

    def checkpoint(self) -> dict[str, Any]:
        """`model` and `base` of a `CheckpointState`; the base is that of the weights this run began with."""
        if not self.bases:
            self.bases.append(released_base(self.explorer))
        base = self.bases[0]
        if base is not None:
            check_untrained(self.explorer, base)
        return {"model": self.explorer.state_dict(), "base": base}

    def adapter_writer(self) -> Callable[[Path], None] | None:
        """Writes the explorer's adapter in PEFT's format; None when the run has none."""
        policy = self.explorer.policy
        return (lambda directory: write_adapter(policy, Role.explorer, directory)) if self.lora else None


def check_student(cfg: Config, arch: F1Config) -> None:
    """What can be refused from the configuration alone. Raises ValueError naming the key and the remedy."""
    s, t = cfg.student, cfg.training
    check_explorer(s)
    normalised_names(s.rewards, arch.world_model.ensemble_heads > 0)
    if s.rewards.memory_divergence_weight > 0 and not arch.memory.memory_enabled:
        raise ValueError(
            "student.rewards.memory_divergence_weight is positive, but arch.memory.memory_enabled is false; set the "
            "weight to 0 or take a teacher with a memory"
        )
    chunk = arch.chunk_size if s.flow.chunk_size is None else s.flow.chunk_size
    if not 1 <= s.chunk_exec_steps <= chunk <= arch.chunk_size:
        raise ValueError(
            f"student.chunk_exec_steps is {s.chunk_exec_steps} and {chunk} actions are drawn at once; this model "
            f"allows 1 <= student.chunk_exec_steps <= student.flow.chunk_size <= {arch.chunk_size}"
        )
    if t.steps_per_episode % s.chunk_exec_steps:
        raise ValueError(
            f"training.steps_per_episode {t.steps_per_episode} is no multiple of student.chunk_exec_steps "
            f"{s.chunk_exec_steps}: the last chunk of an episode would be cut"
        )
    episodes = s.episodes_per_iteration * t.num_envs
    if s.ppo.minibatches > episodes:
        raise ValueError(
            f"student.ppo.minibatches is {s.ppo.minibatches}, but an iteration has {episodes} episodes a process "
            f"(student.episodes_per_iteration {s.episodes_per_iteration} x {t.num_envs} environments) and a minibatch "
            "holds whole episodes; lower the former or raise the latter"
        )
    rows = episodes // s.ppo.minibatches * (t.steps_per_episode // s.chunk_exec_steps)
    if t.gradient_accumulation_steps > rows:
        raise ValueError(
            f"training.gradient_accumulation_steps is {t.gradient_accumulation_steps}, but the smallest minibatch has "
            f"{rows} decisions; lower it"
        )
    if s.min_learning_rate > s.learning_rate:
        raise ValueError(
            f"student.min_learning_rate {s.min_learning_rate} lies above student.learning_rate {s.learning_rate}"
        )
    if uses_lora(cfg) and cfg.model.lora.lora_dropout > 0:
        raise ValueError(
            f"model.lora.lora_dropout is {cfg.model.lora.lora_dropout}: with dropout a stored chain has no fixed "
            "likelihood; set it to 0"
        )


def make_explorer(student: StudentConfig, policy: F1Policy, action_mask: npt.NDArray[np.bool_]) -> Explorer:
    """The explorer on a policy; its heads have initial weights from torch's generator."""
    f = student.flow
    process = FlowProcess(f.kind, f.num_steps, f.noise_level, f.stochastic_steps)
    chunk = policy.cfg.chunk_size if f.chunk_size is None else f.chunk_size
    mask = torch.from_numpy(action_mask).to(policy.device)
    explorer = Explorer(
        policy, process, mask, chunk, student.chunk_exec_steps, student.value_hidden, (f.min_std, f.max_std)
    )
    return explorer.to(policy.device)


def build_explorer(
    cfg: Config, policy: F1Policy, action_mask: npt.NDArray[np.bool_], ctx: ParallelContext
) -> ExplorerModel:
    """Collective. The explorer, ready to train; its heads and adapter start from `training.seed`, equal everywhere."""
    s, t = cfg.student, cfg.training
    seed_all(seed_for(t.seed, 0, "explorer"))
    explorer = make_explorer(s, policy, action_mask)
    lora = uses_lora(cfg)
    if lora:
        inject_adapter(policy, cfg, Role.explorer)
        explorer.to(policy.device)
    if ctx.is_main:
        log.info("trainable parts of the policy (beside the value head):\n%s", trainable_table(policy))
    optimizer = explorer_optimizer(explorer, s)
    wrapped, prepared = ctx.prepare(explorer, optimizer)
    ctx.assert_ranks_equal(explorer, "parameters at the start")
    seed_all(seed_for(t.seed, ctx.rank, "training"))
    return ExplorerModel(explorer, wrapped, prepared, [p for p in explorer.parameters() if p.requires_grad], lora)


def explorer_optimizer(explorer: Explorer, student: StudentConfig) -> torch.optim.Adam:
    """Adam; the value head has its own learning rate, as a factor that the schedule keeps."""
    policy, value = explorer_parameters(explorer)
    factor = student.value_learning_rate / student.learning_rate
    groups = [{"params": policy, "scale": 1.0}, {"params": value, "scale": factor}]
    return torch.optim.Adam(groups, lr=student.learning_rate, eps=1e-5)
