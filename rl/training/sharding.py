"""FSDP2: trainable parameters, their gradients and optimizer states are split over the ranks.

Asked for by an accelerate configuration with `distributed_type: FSDP` and `fsdp_version: 2`. Frozen parameters stay
whole on every rank, because phases use them outside the wrapped forward. Checkpoints hold whole tensors
(`gathered`), so they do not know how many ranks wrote them.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor


def take_request() -> bool:
    """Whether the launcher asked for sharding; accelerate itself is not told, it would wrap in its own way.

    Raises ValueError for FSDP1 and for DeepSpeed.
    """
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        raise ValueError(
            "the accelerate configuration asks for DeepSpeed, whose partitioned states this version cannot save; take "
            "configs/accelerate/fsdp2.yaml, which splits the same tensors"
        )
    if os.environ.pop("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return False
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise ValueError(f"the accelerate configuration asks for FSDP version {version}; set fsdp_version: 2")
    if names := os.environ.get("FSDP_TRANSFORMER_CLS_TO_WRAP"):
        raise ValueError(
            f"the accelerate configuration wraps {names}; layers of this model are computed jointly and gathered at "
            "once: set fsdp_auto_wrap_policy: NO_WRAP, as configs/accelerate/fsdp2.yaml does"
        )
    return True


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
    """Collective. A tree of plain data with every split tensor whole."""
    if isinstance(value, DTensor):
        return value.full_tensor()
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
