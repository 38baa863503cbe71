"""`load_f1_policy`: a ready policy for users' own scripts."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from f1_vla.config import F1Config
from f1_vla.lora import Role
from f1_vla.policy import F1Policy
from rl import config as rl_config
from rl.config import Config, LoraConfig, LoraMode
from rl.training.model_setup import build_base, inject_adapter, uses_lora


def load_f1_policy(
    config_file: str | Path = "tiny",
    device: torch.device | str = "cpu",
    debug: bool = False,
    lora_config: LoraConfig | dict[str, Any] | None = None,
    checkpoint_path: str | Path | None = None,
) -> tuple[F1Policy, F1Config, Config]:
    """The policy, its architecture and the whole configuration it was built under.

    config_file: model preset (tiny, debug_test, f1_base) or YAML file. checkpoint_path: released or exported weights
    (safetensors file, directory with or without index, hub id); None: random weights of `training.seed`. lora_config:
    fields of `rl.config.LoraConfig`; given fields switch the adapter of the world-model role on unless `mode` says
    otherwise, None leaves it to `auto` (on with a checkpoint). debug: sets `training.debug`.
    The policy comes in eval mode with every switch of `set_policy_requires_grad` still to be set.
    ValueError: unknown names, files that are missing, damaged or of another model.
    """
    arch = rl_config.load_model(str(config_file))
    full = rl_config.load()
    full.training.debug = debug
    full.model = replace(
        full.model,
        config_file=str(config_file),
        checkpoint_path=None if checkpoint_path is None else str(checkpoint_path),
        lora=_lora(lora_config),
    )
    full.environment.wm_size, full.environment.vlm_size = arch.tokenizer.image_size, arch.vision.image_size
    policy = build_base(full, arch, device)
    if uses_lora(full):
        inject_adapter(policy, full, Role.world_model)
    return policy.eval(), arch, full


def _lora(given: LoraConfig | dict[str, Any] | None) -> LoraConfig:
    """The block `model.lora` with its types checked."""
    if given is None or isinstance(given, LoraConfig):
        return given or LoraConfig()
    block = {"mode": LoraMode.on} | given
    return rl_config.as_config(rl_config.DictConfig({"model": {"lora": block}})).model.lora
