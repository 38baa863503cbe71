"""What a checkpoint of phase 1 and of phase 2 will weigh, from shapes alone."""

import numpy as np
import torch
from torch import nn

from f1_vla import weights
from f1_vla.lora import Role
from f1_vla.policy import F1Policy
from rl.config import Config
from rl.training.explorer_setup import make_explorer
from rl.training.model_setup import inject_adapter, uses_lora


def state_bytes(owner: nn.Module, released: bool) -> int:
    """Bytes of model.pt and of Adam's two moments. `released`: the base comes from published files, so what they hold
    and nobody trains is named, not copied."""
    trained = {n: p for n, p in owner.named_parameters() if p.requires_grad}
    kept = {
        n: t for n, t in owner.state_dict().items()
        if n in trained or not released or not _published(n.removeprefix("policy."))
    }  # fmt: skip
    moments = 2 * sum(p.numel() * p.element_size() for p in trained.values())
    return sum(t.numel() * t.element_size() for t in kept.values()) + moments


def _published(name: str) -> bool:
    own = (".lora_" in name) or name.startswith(("value.", "noise."))
    return not own and bool(weights.released_names(name.replace(".base_layer.", ".")))


def explorer_bytes(cfg: Config, policy: F1Policy, released: bool) -> int:
    """The same of a student on a `policy` on the meta device, which is used up."""
    policy.requires_grad_(False)
    with torch.device("meta"):
        explorer = make_explorer(cfg.student, policy, np.ones(policy.cfg.max_action_dim, dtype=np.bool_))
        if uses_lora(cfg):
            inject_adapter(policy, cfg, Role.explorer)
    return state_bytes(explorer, released)
