"""Optimizer, learning-rate schedule and the one guarded step."""

import logging
import math
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from f1_vla.policy import F1Policy
from f1_vla.trainable import memory_gate_parameters
from rl.training.errors import NumericalError
from rl.training.parallel_utils import ParallelContext

log = logging.getLogger(__name__)


def setup_optimizer(
    policy: nn.Module, lr: float, weight_decay: float, memory_lr_scale: float = 1.0
) -> torch.optim.AdamW:
    """AdamW over the trainable parameters; matrices decay, vectors do not, memory gates get `lr * memory_lr_scale`.

    Raises ValueError when nothing is trainable.
    """
    inner = policy.module if isinstance(policy, nn.parallel.DistributedDataParallel) else policy
    gates = {id(p) for p in memory_gate_parameters(inner)} if isinstance(inner, F1Policy) else set()
    trainable = [p for p in policy.parameters() if p.requires_grad]
    if not trainable:
        raise ValueError("no parameter is trainable; check the freeze block of the phase and model.lora.mode")
    groups = [
        {
            "params": [p for p in trainable if id(p) not in gates and p.dim() >= 2],
            "weight_decay": weight_decay,
            "scale": 1.0,
        },
        {"params": [p for p in trainable if id(p) not in gates and p.dim() < 2], "weight_decay": 0.0, "scale": 1.0},
        {"params": [p for p in trainable if id(p) in gates], "weight_decay": 0.0, "scale": memory_lr_scale},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=lr, betas=(0.9, 0.95))


class Schedule:
    """Learning rate as a function of our own progress, never of the number of processes.

    Linear warm-up over `warmup` updates times a cosine (or constant) from the base rate to `eta_min` over T_max.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, kind: str, t_max: float, eta_min: float, warmup: int, base_lr: float
    ) -> None:
        if kind not in ("cosine", "constant"):
            raise ValueError(f"scheduler_type '{kind}'; use cosine or constant")
        if eta_min > base_lr:
            raise ValueError(f"training.min_learning_rate {eta_min} lies above training.learning_rate {base_lr}")
        self.optimizer, self.kind, self.t_max, self.eta_min = optimizer, kind, t_max, eta_min
        self.warmup, self.base_lr = warmup, base_lr

    def lr_at(self, progress: float, update: int) -> float:
        """`progress` in units of T_max (episodes), `update` counts optimizer steps from 0."""
        share = min(max(progress / self.t_max, 0.0), 1.0) if self.kind == "cosine" else 0.0
        lr = self.eta_min + (self.base_lr - self.eta_min) * 0.5 * (1 + math.cos(math.pi * share))
        return lr * min(1.0, (update + 1) / max(self.warmup, 1))

    def set(self, progress: float, update: int) -> float:
        """Writes the learning rate of the next optimizer step into the groups and returns the base one."""
        lr = self.lr_at(progress, update)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["scale"]
        return lr


def setup_scheduler(
    optimizer: torch.optim.Optimizer,
    scheduler_type: str,
    T_max: float,
    eta_min: float,
    warmup: int = 0,
) -> Schedule:
    """Schedule over T_max (in the unit its caller counts progress in)."""
    return Schedule(optimizer, scheduler_type, T_max, eta_min, warmup, optimizer.param_groups[0]["lr"])


def guarded_step(
    ctx: ParallelContext,
    optimizer: torch.optim.Optimizer,
    parameters: Iterable[nn.Parameter],
    loss: torch.Tensor,
    max_norm: float,
    what: str,
    apart: Sequence[nn.Parameter] = (),
) -> float:
    """Collective. Clips and steps, unless loss or gradient is not finite on any rank: then no rank steps.

    apart: parameters clipped by a norm of their own, so that they do not scale the gradients of the others.
    Returns the gradient norm of `parameters` before clipping. Raises NumericalError on all ranks with parameters
    untouched. Under fp16 an overflow of the scaled loss, by which its scale is found, is no error: the step changes
    nothing, the scale falls, and 0 is returned.
    """
    norm = ctx.clip_grad_norm(parameters, max_norm)
    norms = [norm, ctx.clip_grad_norm(apart, max_norm, again=True)] if apart else [norm]
    overflow = any(bool(ctx.overflowed(n)) for n in norms)
    finite = bool(torch.isfinite(loss.detach()).all()) and (overflow or all(bool(torch.isfinite(n)) for n in norms))
    if not ctx.all_true(finite):
        raise NumericalError(
            f"{what}: loss or gradient is not finite (this rank: loss {float(loss.detach()):.4g}, "
            f"gradient norm {float(norm):.4g}); "
            "parameters are as before this step. Lower the phase's learning rate or largest gradient norm (teacher: "
            "training.learning_rate, training.max_grad_norm; student: student.learning_rate, training.max_grad_norm; "
            "adversarial: adversarial.wm_*, adversarial.explorer_*) and continue from the last checkpoint with "
            "--auto_resume"
        )
    optimizer.step()
    optimizer.zero_grad()
    if overflow:
        log.info("%s: the scaled loss of fp16 overflowed; this step is left out and the scale lowered", what)
        return 0.0
    return float(norm)
