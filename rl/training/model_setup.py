"""Builds, adapts, freezes and wraps the policy of a run."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from f1_vla.builders import build_policy
from f1_vla.config import F1Config
from f1_vla.loading import VAR_SUFFIX, check_released, load_policy, read_tokenizer
from f1_vla.lora import Role, add_lora, lora_config, lora_state_dict
from f1_vla.policy import F1Policy
from f1_vla.text import encode_instruction
from f1_vla.tokenizer_io import check_tokenizer, shipped_tokenizer
from f1_vla.trainable import freeze_action_parts, freeze_inputs, set_policy_requires_grad, trainable_table
from rl.config import Config, FreezeConfig, LoraMode, MixedPrecision
from rl.training.adapter_io import write_adapter
from rl.training.checkpoint_files import ReleasedBase
from rl.training.optim import setup_optimizer
from rl.training.parallel_utils import ParallelContext
from rl.training.released_base import check_untrained, released_base
from rl.training.rng import seed_all
from rl.training.seeds import seed_for

log = logging.getLogger(__name__)


@dataclass
class Model:
    """The policy, as itself (state, sizes) and as wrapped for training (every forward that trains)."""

    policy: F1Policy
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    trainable: list[nn.Parameter]  # without `heads`
    lora: bool
    heads: list[nn.Parameter] = field(default_factory=list)  # of the ensemble, which must not influence the rest
    base: ReleasedBase | None = None  # what checkpoints need not copy

    def checkpoint(self) -> dict[str, Any]:
        """`model` and `base` of a `CheckpointState`."""
        if self.base is not None:
            check_untrained(self.policy, self.base)
        return {"model": self.policy.state_dict(), "base": self.base}

    def adapter_writer(self, role: Role, ctx: ParallelContext) -> Callable[[Path], None] | None:
        """Collective, inside `ctx.whole`. Writes the role's adapter, as it is now, in PEFT's format; None when the run
        has no adapter."""
        if not self.lora:
            return None
        state = ctx.gathered(lora_state_dict(self.policy, role))
        return lambda directory: write_adapter(self.policy, role, directory, state)


def check_sizes(cfg: Config, arch: F1Config) -> None:
    """Environment and model must agree on picture sizes and paddings. Raises ValueError naming the keys."""
    if cfg.environment.wm_size != arch.tokenizer.image_size:
        raise ValueError(
            f"environment.wm_size is {cfg.environment.wm_size} px, but the tokenizer of model "
            f"'{cfg.model.config_file}' takes {arch.tokenizer.image_size} px; "
            f"set environment.wm_size={arch.tokenizer.image_size}"
        )
    length, steps = cfg.training.bptt_length, cfg.training.steps_per_episode - arch.obs_img_stride + 1
    if cfg.training.sequential_training and length > steps:
        raise ValueError(
            f"training.bptt_length is {length}, but an episode has {steps} steps with a target; "
            "lower it or raise training.steps_per_episode"
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


def check_model_files(cfg: Config, arch: F1Config) -> None:
    """Everything about model and files that can be refused before anything is built. Raises ValueError."""
    check_sizes(cfg, arch)
    encode_instruction(arch, cfg.environment.instruction)
    if cfg.model.checkpoint_path is not None:
        check_released(cfg.model.checkpoint_path, arch)
    elif (path := tokenizer_file(cfg)).suffix != VAR_SUFFIX:
        check_tokenizer(path, arch.tokenizer)


def build_base(cfg: Config, arch: F1Config, device: torch.device | str) -> F1Policy:
    """The policy with its frozen tokenizer: weights of `model.checkpoint_path`, else random ones; what is random comes
    from `training.seed`, equal on every rank. Raises ValueError: files missing, damaged or of another model,
    instruction too long."""
    check_sizes(cfg, arch)
    encode_instruction(arch, cfg.environment.instruction)
    source = cfg.model.checkpoint_path
    if source is None:
        tokenizer = read_tokenizer(tokenizer_file(cfg), arch.tokenizer)
        seed_all(seed_for(cfg.training.seed, 0, "model"))
        return build_policy(arch, device, tokenizer=tokenizer, compute=compute_dtype(cfg))
    own_tokenizer = None if cfg.model.tokenizer_path is None else tokenizer_file(cfg)
    seed_all(seed_for(cfg.training.seed, 0, "model"))
    dtype = torch.bfloat16 if held_in_half(cfg) else torch.float32
    return load_policy(arch, source, device, dtype, own_tokenizer, compute_dtype(cfg))


def compute_dtype(cfg: Config) -> torch.dtype:
    """What attention sees under the run's autocast."""
    half = {MixedPrecision.bf16: torch.bfloat16, MixedPrecision.fp16: torch.float16}
    return half.get(cfg.training.mixed_precision, torch.float32)


def uses_lora(cfg: Config) -> bool:
    """`model.lora.mode`; auto: when the base comes from a checkpoint."""
    mode = cfg.model.lora.mode
    return mode is LoraMode.on or (mode is LoraMode.auto and cfg.model.checkpoint_path is not None)


def held_in_half(cfg: Config) -> bool:
    """A released base that only carries adapters is held in bfloat16 when the run computes in it."""
    released = cfg.model.checkpoint_path is not None
    return released and uses_lora(cfg) and cfg.training.mixed_precision is MixedPrecision.bf16


def freeze_for_world_model(policy: F1Policy, freeze: FreezeConfig, lora: bool) -> None:
    """The switches of the phase; what the world-model modes never reach is frozen, too, and with adapters all of the
    base that they do not wrap: vision, projector and text embedding."""
    set_policy_requires_grad(policy, **vars(freeze))
    freeze_action_parts(policy)
    if lora:
        freeze_inputs(policy)


def build_for_loading(cfg: Config, arch: F1Config, device: torch.device | str) -> F1Policy:
    """The policy of a saved run, adapters injected; its weights come from the checkpoint."""
    policy = build_base(cfg, arch, device)
    if uses_lora(cfg):
        inject_adapter(policy, cfg, Role.world_model)
    return policy.eval()


def inject_adapter(policy: F1Policy, cfg: Config, role: Role) -> None:
    c = cfg.model.lora
    add_lora(policy, role, lora_config(policy, role, c.r, c.lora_alpha, c.lora_dropout, list(c.target_modules)))


def build_world_model(cfg: Config, arch: F1Config, freeze: FreezeConfig, ctx: ParallelContext) -> Model:
    """Collective. The policy in its world-model role, ready to train."""
    policy = build_base(cfg, arch, ctx.device)
    lora = uses_lora(cfg)
    freeze_for_world_model(policy, freeze, lora)
    if lora:
        inject_adapter(policy, cfg, Role.world_model)
    if ctx.is_main:
        log.info("trainable parts:\n%s", trainable_table(policy))
    t = cfg.training
    optimizer = setup_optimizer(policy, t.learning_rate, t.weight_decay, t.memory_lr_scale)
    wrapped, prepared = ctx.prepare(policy, optimizer)
    ensemble = policy.world_model.ensemble
    heads = [] if ensemble is None else [p for p in ensemble.parameters() if p.requires_grad]
    trainable = [p for p in policy.parameters() if p.requires_grad and all(p is not h for h in heads)]
    ctx.assert_ranks_equal(policy, "parameters at the start")
    seed_all(seed_for(t.seed, ctx.rank, "training"))
    base = released_base(policy) if ctx.is_main else None
    return Model(policy, wrapped, prepared, trainable, lora, heads, base)
