"""What of a model is split over the ranks, and FSDP2: trainable parameters, their gradients and optimizer states.

Asked for by an accelerate configuration with `distributed_type: FSDP` and `fsdp_version: 2`, or `DEEPSPEED`
(deepspeed_zero.py). Frozen parameters stay whole on every rank, because phases use them outside the wrapped forward.
Checkpoints hold whole tensors (`gathered`), so they do not know how many ranks wrote them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from rl.config import TrainingConfig
from rl.training import deepspeed_zero


class Split(Enum):
    """What the launcher asked for; the value of DeepSpeed's is its stage."""

    nothing = 0
    zero2 = 2
    zero3 = 3
    fsdp = 4

    @property
    def by_deepspeed(self) -> bool:
        return self in (Split.zero2, Split.zero3)


def take_request(cfg: TrainingConfig) -> Split:
    """What the launcher asked for; accelerate itself is not told, it would wrap and save in its own way.

    Raises ValueError for FSDP1, for settings that would be ignored, and where they contradict `cfg`.
    """
    if os.environ.pop("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        return _deepspeed_request(cfg)
    if os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return Split.nothing
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ValueError(f"the accelerate configuration asks for FSDP version {version}; set fsdp_version: 2")
    if names := os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP"):
        raise ValueError(
            f"the accelerate configuration wraps {names}; layers of this model are computed jointly and gathered at "
            "once: set fsdp_auto_wrap_policy: NO_WRAP, as configs/accelerate/fsdp2.yaml does"
        )
    return Split.fsdp


# Keys of `deepspeed_config` that nothing here follows, as the launcher passes them on, and what they may say.
_DEEPSPEED_ONLY = {
    "offload_optimizer_device": ("ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE", "none"),
    "offload_param_device": ("ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE", "none"),
    "zero3_init_flag": ("ACCELERATE_DEEPSPEED_ZERO3_INIT", "false"),
    "zero3_save_16bit_model": ("ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL", "false"),
    "deepspeed_config_file": ("ACCELERATE_DEEPSPEED_CONFIG_FILE", "none"),
    "deepspeed_moe_layer_cls_names": ("ACCELERATE_DEEPSPEED_MOE_LAYER_CLS_NAMES", "none"),
}


def _deepspeed_request(cfg: TrainingConfig) -> Split:
    deepspeed_zero.check_installed()
    asked = "the accelerate configuration asks for DeepSpeed with"
    stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    if stage not in ("2", "3"):
        raise ValueError(f"{asked} zero_stage {stage}; there are 2 and 3")
    for key, (variable, only) in _DEEPSPEED_ONLY.items():
        if (value := os.environ.get(variable, only).lower()) != only:
            raise ValueError(f"{asked} {key} {value}, which is not available here; leave it out")
    # Accelerate would take these from the environment over what it is told.
    clipping = os.environ.pop("ACCELERATE_GRADIENT_CLIPPING", "none").lower()
    accumulation = os.environ.pop("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "none").lower()
    for key, value, ours, flag in (
        ("gradient_clipping", clipping, cfg.max_grad_norm, "training.max_grad_norm"),
        ("gradient_accumulation_steps", accumulation, cfg.gradient_accumulation_steps,
         "training.gradient_accumulation_steps"),
    ):  # fmt: skip
        if value not in ("none", "auto") and float(value) != ours:
            raise ValueError(f"{asked} {key} {value}, {flag} is {ours}; leave {key} out of the file")
    if cfg.mixed_precision == "fp16":
        raise ValueError(f"{asked} training.mixed_precision fp16; DeepSpeed is for bf16 and no here")
    return Split(int(stage))


class Sharded:
    """One module whose trainable parameters are split."""

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device, ranks: int) -> None:
        """Collective. Splits the parameters in place and hands the optimizer the parts. All of them are gathered at
        once: layers of the experts are computed jointly, piece by piece, and have no forward of their own to hook."""
        self.module = module
        mesh = init_device_mesh(device.type, (ranks,))
        whole = {p for p in module.parameters() if not p.requires_grad or p.dim() == 0}
        for p in whole:  # a gate is one number and cannot be split: its gradient is averaged instead
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(_average_gradient)
        before = dict(module.named_parameters())
        fully_shard(module, mesh=mesh, reshard_after_forward=False, ignored_params=whole)
        parts = {id(before[name]): p for name, p in module.named_parameters()}
        for group in optimizer.param_groups:
            group["params"] = [parts[id(p)] for p in group["params"]]

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Collective. Inside, every rank has whole parameters and may call the module on its own, without gradients."""
        unit = self.module
        assert isinstance(unit, FSDPModule)
        unit.unshard()
        try:
            yield
        finally:
            unit.reshard()


def _average_gradient(p: torch.Tensor) -> None:
    assert p.grad is not None
    dist.all_reduce(p.grad)
    p.grad /= dist.get_world_size()


def gathered(value: Any) -> Any:
    """Collective. A tree of plain data with every split tensor whole, and in memory of its own: DeepSpeed's parameters
    share one block."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, torch.Tensor) and value.untyped_storage().nbytes() != value.nbytes:
        return value.clone()
    if isinstance(value, dict):
        return {k: gathered(v) for k, v in value.items()}
    if isinstance(value, list):
        return [gathered(v) for v in value]
    return value


def split_like(own: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """Collective. Whole tensors of a state_dict, split where those of `own` are; other entries as they are."""
    return {
        k: distribute_tensor(v.to(o.device), o.device_mesh, o.placements)
        if isinstance(o := own.get(k), DTensor) and v.shape == o.shape
        else v
        for k, v in state.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Collective. `optimizer.load_state_dict` of whole tensors, split where the parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    split = {}
    for index, entries in state["state"].items():
        p = parameters[index]
        split[index] = {
            k: distribute_tensor(v.to(p.device), p.device_mesh, p.placements)
            if isinstance(p, DTensor) and isinstance(v, torch.Tensor) and v.shape == p.shape
            else v
            for k, v in entries.items()
        }
    optimizer.load_state_dict({"state": split, "param_groups": state["param_groups"]})
