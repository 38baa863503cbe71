"""A policy with released weights: files, hub ids, tokenizers, and everything that can be wrong with them.

The model is laid out without memory, then filled entry by entry, so that no second copy of the weights ever exists.
"""

import os
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from torch import Tensor, nn

from f1_vla import weights
from f1_vla.builders import cast_experts, freeze_tokenizer, initialise
from f1_vla.config import F1Config, TokenizerConfig
from f1_vla.ensemble import make_ensemble
from f1_vla.policy import F1Policy, make_memory
from f1_vla.tokenizer import MultiScaleVQVAE
from f1_vla.tokenizer_io import load_tokenizer
from f1_vla.world_model import make_additions

HUB_FILES = ["*.safetensors", "*.json"]
VAR_SUFFIX = ".pth"  # tokenizer files of VAR; all others are our own format


def find_checkpoint(name: str) -> Path:
    """A local file or directory, else the hub repository OWNER/NAME from the local cache.

    Nothing is fetched unless HF_HUB_OFFLINE=0 is set. ValueError saying what was looked for and what to do.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    if name.count("/") != 1 or path.is_absolute() or name.startswith(".") or path.suffix:
        raise ValueError(
            f"model.checkpoint_path '{name}' does not exist; name a .safetensors file, a directory, or a hub id"
        )
    offline = os.environ.get("HF_HUB_OFFLINE") != "0"
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES, local_files_only=offline))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as e:
        how = "set HF_HUB_OFFLINE=0 to fetch it, or download it and name the directory" if offline else str(e)
        raise ValueError(
            f"model.checkpoint_path '{name}': no such file or directory, and the hub repository of that name is not "
            f"in the local cache; {how}"
        ) from e


def read_tokenizer(path: Path, cfg: TokenizerConfig) -> MultiScaleVQVAE:
    """A frozen tokenizer from VAR's .pth or from our own safetensors format.

    ValueError when the file is unreadable or was made for other sizes or scales.
    """
    if not path.is_file():
        raise ValueError(f"model.tokenizer_path {path} does not exist")
    if path.suffix != VAR_SUFFIX:
        return load_tokenizer(path, cfg)
    state = weights.read_var_tokenizer(path)
    model = MultiScaleVQVAE(cfg)
    own = model.state_dict()
    counts = state.get("quantize.ema_vocab_hit_SV", torch.empty(0)).shape
    if counts and counts[0] != len(cfg.scales):
        raise ValueError(
            f"tokenizer {path} has {counts[0]} scales, the model has {len(cfg.scales)} ({list(cfg.scales)}); "
            "set arch.tokenizer.scales to those of the file, or name the tokenizer of this model"
        )
    problems = [f"missing {n}" for n in own if n not in state] + [f"unexpected {n}" for n in state if n not in own]
    problems += [
        f"{n} is {tuple(state[n].shape)}, the model has {tuple(t.shape)}"
        for n, t in own.items()
        if n in state and state[n].shape != t.shape
    ]
    if problems:
        more = f"; and {len(problems) - 6} more" if len(problems) > 6 else ""
        raise ValueError(f"tokenizer {path} does not fit the model: {'; '.join(problems[:6])}{more}")
    model.load_state_dict(state)
    return freeze_tokenizer(model)


def meta_policy(cfg: F1Config) -> F1Policy:
    """The policy without memory for its weights: names, shapes and counts."""
    with torch.device("meta"):
        policy = F1Policy(cfg)
        if cfg.trunk.expert_head_vocab_size:
            weights.add_unused_heads(policy, cfg.trunk.expert_head_vocab_size)
    return policy


def empty_policy(
    cfg: F1Config,
    device: torch.device | str,
    dtype: torch.dtype = torch.float32,
    compute: torch.dtype | None = None,
) -> F1Policy:
    """A policy whose published part is uninitialised memory (fill all of it with `weights.load_released`) and whose own
    additions have their initial weights, which have no effect."""
    policy = meta_policy(cfg)
    policy.memory = make_memory(cfg)
    policy.world_model.condition, policy.world_model.latent_head = make_additions(cfg)
    policy.world_model.ensemble = make_ensemble(cfg)
    cast_experts(policy, dtype)
    for module in policy.modules():
        for name, p in module.named_parameters(recurse=False):
            if p.is_meta:
                filled = nn.Parameter(torch.empty_like(p, device=device), requires_grad=p.requires_grad)
                setattr(module, name, filled)
        for name, b in module.named_buffers(recurse=False):
            if b.is_meta:
                module._buffers[name] = torch.empty_like(b, device=device)
    policy.to(device)
    _fill_constants(policy)
    initialise(policy, only=weights.OWN_PARTS)
    freeze_tokenizer(policy.tokenizer)
    policy.trunk.choose_backend(device, compute or dtype)
    policy.vision.choose_backend(device, dtype)  # pictures are encoded outside of autocast
    return policy


def _fill_constants(policy: F1Policy) -> None:
    """Buffers that no file carries."""
    known: dict[str, Tensor] = {
        "world_model.level_of_slot": torch.tensor(policy.world_model.slot_levels()),
        "vision.tower.embeddings.position_ids": torch.arange(policy.cfg.vision.num_patches)[None],
    }
    stored = policy.state_dict()
    for name, buffer in policy.named_buffers():
        if name not in stored:
            assert name in known, f"buffer {name} is in no checkpoint; give it its value here"
            buffer.copy_(known[name])


def check_released(checkpoint: str, cfg: F1Config) -> weights.ReleasedFiles:
    """The files of a checkpoint, names and shapes compared from their headers. ValueError when they do not fit."""
    state = weights.read_released(find_checkpoint(checkpoint))
    weights.require_fit(meta_policy(cfg), state, f"model.checkpoint_path '{checkpoint}'")
    return state


def load_policy(
    cfg: F1Config,
    checkpoint: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    tokenizer_path: Path | None = None,
    compute: torch.dtype | None = None,
) -> F1Policy:
    """A policy with the weights of a file, a directory or a hub id; dtype and compute as in `builders.build_policy`.

    The picture tokenizer is the checkpoint's own unless `tokenizer_path` names another. Memory, conditioning and latent
    head, which released files lack, start at zero effect (from torch's global generator).
    ValueError: not found, damaged, or made for another configuration.
    """
    state = check_released(checkpoint, cfg)  # before anything big is allocated
    policy = empty_policy(cfg, device, dtype, compute)
    weights.load_released(policy, state, checkpoint)
    if tokenizer_path is not None:
        policy.tokenizer.load_state_dict(read_tokenizer(tokenizer_path, cfg.tokenizer).state_dict())
        assert policy.published is not None
        kept = frozenset(n for n in policy.published.entries if not n.startswith("tokenizer."))
        policy.published = replace(policy.published, entries=kept)
    if policy.world_model.latent_head is not None:
        policy.world_model.latent_head.set_latent_scale(policy.tokenizer.quantize.embedding.weight)
    return policy
