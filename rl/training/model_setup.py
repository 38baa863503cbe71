"""Builds, adapts, freezes and wraps the policy of a run."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from f1_vla.builders import build_policy
from f1_vla.config import F1Config
from f1_vla.lora import Role, add_lora, lora_config
from f1_vla.policy import F1Policy
from f1_vla.tokenizer_io import load_tokenizer, shipped_tokenizer
from f1_vla.trainable import freeze_action_parts, set_policy_requires_grad, trainable_table
from rl.config import Config, FreezeConfig, LoraMode
from rl.training.adapter_io import write_adapter
from rl.training.optim import setup_optimizer
from rl.training.parallel_utils import ParallelContext
from rl.training.rng import seed_all
from rl.training.seeds import seed_for

log = logging.getLogger(__name__)


@dataclass
class Model:
    """The policy, as itself (state, sizes) and as wrapped for training (every forward that trains)."""

    policy: F1Policy
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    trainable: list[nn.Parameter]
    lora: bool

    def adapter_writer(self, role: Role) -> Callable[[Path], None] | None:
        """Writes the role's adapter in PEFT's format; None when the run has no adapter."""
        return (lambda directory: write_adapter(self.policy, role, directory)) if self.lora else None


def check_sizes(cfg: Config, arch: F1Config) -> None:
    """Environment and model must agree on picture sizes and paddings. Raises ValueError naming the keys."""
    if cfg.environment.wm_size != arch.tokenizer.image_size:
        raise ValueError(
            f"environment.wm_size is {cfg.environment.wm_size} px, but the tokenizer of model "
            f"'{cfg.model.config_file}' takes {arch.tokenizer.image_size} px; "
            f"set environment.wm_size={arch.tokenizer.image_size}"
        )
    for name, value, own in [
        ("training.action_dim", cfg.training.action_dim, arch.max_action_dim),
        ("training.state_dim", cfg.training.state_dim, arch.max_state_dim),
        ("training.n_pred_img_steps", cfg.training.n_pred_img_steps, arch.n_pred_img_steps),
    ]:
        if value != own:
            raise ValueError(f"{name} is {value}, the model has {own}; set {name}={own}")


def tokenizer_file(cfg: Config) -> Path:
    """`model.tokenizer_path`, or the file shipped for the preset. Raises ValueError when there is none."""
    if cfg.model.tokenizer_path is not None:
        path = Path(cfg.model.tokenizer_path)
        if not path.is_file():
            raise ValueError(f"model.tokenizer_path {path} does not exist")
        return path
    return shipped_tokenizer(Path(cfg.model.config_file).stem)


def build_base(cfg: Config, arch: F1Config, device: torch.device | str) -> F1Policy:
    """The policy with its frozen tokenizer: random weights of `training.seed`, equal on every rank."""
    check_sizes(cfg, arch)
    if cfg.model.checkpoint_path is not None:
        raise ValueError("model.checkpoint_path: released weights are not readable in this version; leave it null")
    tokenizer = load_tokenizer(tokenizer_file(cfg), arch.tokenizer)
    seed_all(seed_for(cfg.training.seed, 0, "model"))
    return build_policy(arch, device, tokenizer=tokenizer)


def build_for_loading(cfg: Config, arch: F1Config, device: torch.device | str) -> F1Policy:
    """The policy of a saved run, adapters injected; its weights come from the checkpoint."""
    policy = build_base(cfg, arch, device)
    if cfg.model.lora.mode is LoraMode.on:
        inject_adapter(policy, cfg, Role.world_model)
    return policy.eval()


def inject_adapter(policy: F1Policy, cfg: Config, role: Role) -> None:
    c = cfg.model.lora
    add_lora(policy, role, lora_config(policy, role, c.r, c.lora_alpha, c.lora_dropout, list(c.target_modules)))


def build_world_model(cfg: Config, arch: F1Config, freeze: FreezeConfig, ctx: ParallelContext) -> Model:
    """Collective. The policy in its world-model role, ready to train."""
    policy = build_base(cfg, arch, ctx.device)
    lora = cfg.model.lora.mode is LoraMode.on
    set_policy_requires_grad(policy, **vars(freeze))
    freeze_action_parts(policy)
    if lora:
        inject_adapter(policy, cfg, Role.world_model)
    if ctx.is_main:
        log.info("trainable parts:\n%s", trainable_table(policy))
    t = cfg.training
    optimizer = setup_optimizer(policy, t.learning_rate, t.weight_decay, t.memory_lr_scale)
    trainable = [p for p in policy.parameters() if p.requires_grad]
    wrapped, prepared = ctx.prepare(policy, optimizer)
    ctx.assert_ranks_equal(policy, "parameters at the start")
    seed_all(seed_for(t.seed, ctx.rank, "training"))
    return Model(policy, wrapped, prepared, trainable, lora)
