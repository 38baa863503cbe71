"""LoRA adapters through PEFT, scoped by role and module name: one frozen base, one adapter a role.

The world-model role lives in the und and gen experts, the explorer role only in the act expert, so the cached prefix of
the explorer stays valid while it trains. The vision tower has no adapter unless asked for.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from f1_vla.policy import F1Policy


class Role(StrEnum):
    world_model = "world_model"
    explorer = "explorer"


_EXPERTS = {Role.world_model: "und|gen", Role.explorer: "act"}


def lora_config(
    policy: F1Policy,
    role: Role,
    r: int,
    lora_alpha: int,
    lora_dropout: float,
    target_modules: list[str],
    vision_tower: bool = False,
) -> LoraConfig:
    """PEFT configuration limited to the role's experts. ValueError when a target names no linear layer there."""
    scope = rf"trunk\.({_EXPERTS[role]})\.layers\.\d+\.(self_attn|mlp)"
    if vision_tower:
        scope = rf"({scope}|vision\.tower\.encoder\.layers\.\d+\.(self_attn|mlp))"
    linear = [n for n, m in policy.named_modules() if isinstance(m, nn.Linear)]
    for target in target_modules:
        if not any(re.fullmatch(rf"{scope}\.{re.escape(target)}(\.base_layer)?", n) for n in linear):
            raise ValueError(
                f"model.lora.target_modules: '{target}' names no linear layer of the {role} role; "
                "there are q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj"
            )
    names = "|".join(re.escape(t) for t in target_modules)
    return LoraConfig(
        r=r, lora_alpha=lora_alpha, lora_dropout=lora_dropout, target_modules=rf"{scope}\.({names})", bias="none"
    )


def add_lora(policy: F1Policy, role: Role, config: LoraConfig) -> list[str]:
    """Injects the role's adapter in place; returns the names of its parameters, which are the only ones of the role's
    experts left trainable. Parameters outside the experts keep their requires_grad, and so do the adapters of other
    roles, which go on acting."""
    before = {n: p.requires_grad for n, p in policy.named_parameters()}
    with warnings.catch_warnings():
        # Several adapters on one base are meant here.
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        inject_adapter_in_model(config, policy, adapter_name=role.value)
    for layer in policy.modules():  # PEFT leaves the newest adapter active alone, and those of other roles silent
        if isinstance(layer, LoraLayer):
            layer.set_adapter(list(layer.lora_A))
    added = [n for n, _ in policy.named_parameters() if f".{role.value}." in n and ".lora_" in n]
    for name, p in policy.named_parameters():
        base = name.replace(".base_layer.", ".")
        in_expert = re.match(rf"trunk\.({_EXPERTS[role]})\.", base) is not None
        if name in added:
            p.data = p.data.float()  # adapters train in float32 on a base of any precision
        # PEFT switches requires_grad off everywhere; this puts back what was set before.
        p.requires_grad_(name in added or (not in_expert and before.get(name, before.get(base, False))))
    return added


def lora_state_dict(policy: F1Policy, role: Role) -> dict[str, Tensor]:
    """The role's adapter in PEFT's file format (adapter name left out)."""
    return get_peft_model_state_dict(policy, adapter_name=role.value)


@torch.no_grad()
def load_lora(policy: F1Policy, role: Role, state: dict[str, Tensor]) -> None:
    """Reads a state from `lora_state_dict` into the injected adapter. ValueError on a missing or unexpected key."""
    expected = lora_state_dict(policy, role)
    missing, unexpected = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    wrong = [k for k in expected if k in state and state[k].shape != expected[k].shape]
    if missing or unexpected or wrong:
        raise ValueError(
            f"adapter of role {role} does not fit: missing {missing[:3]}, unexpected {unexpected[:3]}, "
            f"of another shape {wrong[:3]}"
        )
    set_peft_model_state_dict(policy, state, adapter_name=role.value)


@contextmanager
def merged(policy: F1Policy) -> Iterator[None]:
    """Inside the block the base weights contain every adapter, outside they are bit for bit what they were.

    PEFT's own unmerge subtracts and so leaves a rounding error.
    """
    layers = [m for m in policy.modules() if isinstance(m, LoraLayer)]
    kept = [layer.get_base_layer().weight.detach().clone() for layer in layers]
    for layer in layers:
        layer.merge()
    try:
        yield
    finally:
        with torch.no_grad():
            for layer, weight in zip(layers, kept, strict=True):
                layer.unmerge()
                layer.get_base_layer().weight.copy_(weight)
