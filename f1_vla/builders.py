"""Builds a policy from its configuration."""

import torch
from torch import nn

from f1_vla.config import F1Config
from f1_vla.policy import F1Policy
from f1_vla.tokenizer import MultiScaleVQVAE
from f1_vla.trunk import RMSNorm
from f1_vla.weights import add_unused_heads


def freeze_tokenizer(tokenizer: MultiScaleVQVAE) -> MultiScaleVQVAE:
    """No gradient, eval mode: the tokenizer never trains inside the policy."""
    return tokenizer.requires_grad_(False).eval()


def initialise(policy: F1Policy, only: tuple[str, ...] = ("",)) -> None:
    """Initial weights for training from scratch, or of the parts whose names begin with `only`. Tokenizer, vision tower
    and latent head keep their own; added parts start at zero effect."""
    for name, module in policy.named_modules():
        if name.startswith(("tokenizer", "vision.tower", "world_model.latent_head")) or not f"{name}.".startswith(only):
            continue
        if isinstance(module, nn.Linear | nn.Conv1d):
            nn.init.xavier_uniform_(module.weight.flatten(1) if isinstance(module, nn.Conv1d) else module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, RMSNorm):
            nn.init.zeros_(module.weight)
    wm = policy.world_model
    if only == ("",):
        _initialise_tables(policy)
    if wm.condition is not None:
        nn.init.zeros_(wm.condition.out.weight)
    if policy.memory is not None:
        nn.init.zeros_(policy.memory.out_proj.weight)


def _initialise_tables(policy: F1Policy) -> None:
    nn.init.normal_(policy.text_embedding.weight, std=0.02)
    wm = policy.world_model
    std = (1 / 3 / policy.cfg.trunk.gen.hidden_size) ** 0.5
    for table in (
        wm.sos,
        wm.history_position,
        wm.condition_position,
        wm.output_position,
        wm.level.weight,
        wm.mask_embedding,
    ):
        nn.init.trunc_normal_(table, std=std)
    nn.init.normal_(wm.out_proj.weight, std=0.02)


def cast_experts(policy: F1Policy, dtype: torch.dtype) -> None:
    """What is stored in the compute precision, as released: layers of the experts, text embedding, vision parts."""
    layers = [e.layers for e in (policy.trunk.und, policy.trunk.gen, policy.trunk.act)]
    for part in (*layers, policy.text_embedding, policy.vision):
        part.to(dtype)


def build_policy(
    cfg: F1Config,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    tokenizer: MultiScaleVQVAE | None = None,
    compute: torch.dtype | None = None,
) -> F1Policy:
    """A policy with random initial weights (global torch RNG) and a frozen tokenizer.

    dtype applies to the layers of the experts, the text embedding and the vision parts, as released; projections,
    embeddings and heads around them, memory and tokenizer stay float32. Run anything but float32 under autocast.
    compute: precision of that autocast, for which attention backends are chosen now (default: dtype).

    ValueError when sizes in `cfg` contradict each other, or `tokenizer` was built for other sizes, or the attention
    backend is not available.
    """
    policy = F1Policy(cfg)
    if cfg.trunk.expert_head_vocab_size:
        add_unused_heads(policy, cfg.trunk.expert_head_vocab_size)
    initialise(policy)
    if tokenizer is not None:
        if tokenizer.cfg != cfg.tokenizer:
            raise ValueError(f"tokenizer was built for {tokenizer.cfg}, the model configuration has {cfg.tokenizer}")
        policy.tokenizer.load_state_dict(tokenizer.state_dict())
        if policy.world_model.latent_head is not None:
            policy.world_model.latent_head.set_latent_scale(policy.tokenizer.quantize.embedding.weight)
    freeze_tokenizer(policy.tokenizer)
    policy.trunk.choose_backend(device, compute or dtype)
    policy.vision.choose_backend(device, dtype)  # pictures are encoded outside of autocast
    cast_experts(policy, dtype)
    return policy.to(device)
