"""Released files <-> this model: one table of names, read in both directions.

Released policies come from safetensors' `save_model`, which keeps one name of every pair that shares storage:
`model.vae.*` (not `vae.*`) and `...lm_head.weight` (not `...embed_tokens.weight`). Both names are read, the kept one is
written. A table row is (own prefix, released prefix, aliases of the released prefix); the first row that fits decides.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from f1_vla.policy import F1Policy

_PWE = "model.paligemma_with_expert."
_PALI = _PWE + "paligemma."

TABLE: list[tuple[str, str, tuple[str, ...]]] = [
    (
        "text_embedding.weight",
        _PALI + "language_model.lm_head.weight",
        (_PALI + "language_model.model.embed_tokens.weight",),
    ),
    ("trunk.und.", _PALI + "language_model.model.", ()),
    ("trunk.gen.lm_head.", _PWE + "gemma_wm_expert.lm_head.", ()),
    ("trunk.act.lm_head.", _PWE + "gemma_expert.lm_head.", ()),
    ("trunk.gen.", _PWE + "gemma_wm_expert.model.", ()),
    ("trunk.act.", _PWE + "gemma_expert.model.", ()),
    ("vision.tower.", _PALI + "vision_tower.vision_model.", ()),
    ("vision.projector.", _PALI + "multi_modal_projector.linear.", ()),
    ("tokenizer.", "model.vae.", ("vae.",)),
    ("world_model.temporal_conv.", "model.temporal_conv.conv.", ()),
    ("world_model.embed.", "model.wm_embeddings.", ()),
    ("world_model.sos", "model.wm_sos_token_embs", ()),
    ("world_model.history_position", "model.wm_hist_pos_embs", ()),
    ("world_model.condition_position", "model.wm_cond_pos_embs", ()),
    ("world_model.output_position", "model.wm_output_position_embedding", ()),
    ("world_model.level.", "model.lvl_embed.", ()),
    ("world_model.out_norm.", "model.wm_out_layer_norm.", ()),
    ("world_model.out_proj.", "model.wm_out_proj.", ()),
    ("world_model.mask_embedding", "model.mask_embedding", ()),
    ("flow.", "model.", ()),
]

# Parts the published model lacks; they start at zero effect and are absent from released files.
OWN_PARTS = ("memory.", "world_model.condition.", "world_model.latent_head.")
# Released entries that never act: rebuilt from the configuration, or heads a configuration may leave out.
CONSTRUCTED = "model.lvl_1L"
UNUSED_HEADS = (_PWE + "gemma_expert.lm_head.weight", _PWE + "gemma_wm_expert.lm_head.weight")


def released_names(own: str) -> list[str]:
    """Released name of one of our entries, then its aliases; empty for parts the published model lacks."""
    if own.startswith(OWN_PARTS):
        return []
    for ours, theirs, aliases in TABLE:
        if own.startswith(ours):
            return [prefix + own[len(ours) :] for prefix in (theirs, *aliases)]
    raise ValueError(f"entry '{own}' of the model has no row in f1_vla.weights.TABLE; add one")


def own_name(released: str) -> str | None:
    """Our name of a released entry; None for entries that are constructed or unused."""
    for ours, theirs, aliases in TABLE:
        for prefix in (theirs, *aliases):
            if released.startswith(prefix) and released != CONSTRUCTED:
                return ours + released[len(prefix) :]
    return None


def read_released(path: str | Path) -> dict[str, Tensor]:
    """A .safetensors file, or every one in a directory (shards). ValueError when there is none."""
    path = Path(path)
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not all(f.is_file() for f in files):
        raise ValueError(f"model.checkpoint_path '{path}': no .safetensors file there")
    state: dict[str, Tensor] = {}
    for f in files:
        state.update(load_file(f))
    return state


@torch.no_grad()
def load_released(policy: F1Policy, state: dict[str, Tensor], source: str = "checkpoint") -> None:
    """Copies released entries into the policy, which keeps its dtypes. ValueError lists what is missing, unexpected or
    of another shape; nothing is copied then."""
    own = policy.state_dict(keep_vars=True)
    pairs, problems, used = [], [], {CONSTRUCTED}
    if "trunk.gen.lm_head.weight" not in own:
        used.update(UNUSED_HEADS)
    for name, tensor in own.items():
        names = released_names(name)
        found = [n for n in names if n in state]
        used.update(found)
        if not names:
            continue
        if not found:
            problems.append(f"missing {names[0]}")
        elif state[found[0]].shape != tensor.shape:
            problems.append(f"{found[0]} is {tuple(state[found[0]].shape)}, the model has {tuple(tensor.shape)}")
        else:
            pairs.append((tensor, state[found[0]]))
    problems += [f"unexpected {n}" for n in sorted(set(state) - used)]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(f"{source} does not fit the model configuration: {shown}")
    for target, value in pairs:
        target.copy_(value)


def export_released(policy: F1Policy) -> dict[str, Tensor]:
    """The policy under the names `save_model` writes. Parts the published model lacks are left out."""
    out = {names[0]: t.detach() for n, t in policy.state_dict().items() if (names := released_names(n))}
    out[CONSTRUCTED] = policy.world_model.level_of_slot[None].clone()
    return out


def add_unused_heads(policy: F1Policy, vocab_size: int) -> None:
    """Language heads of the gen and act experts, which released files carry and nothing reads."""
    for expert in (policy.trunk.gen, policy.trunk.act):
        expert.lm_head = nn.Linear(expert.norm.weight.shape[0], vocab_size, bias=False).requires_grad_(False)
