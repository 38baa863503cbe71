"""Released files <-> this model: one table of names, read in both directions.

Released policies come from safetensors' `save_model`, which keeps one name of every pair that shares storage:
`model.vae.*` (not `vae.*`) and `...lm_head.weight` (not `...embed_tokens.weight`). Both names are read, the kept one is
written. A table row is (own prefix, released prefix, aliases of the released prefix); the first row that fits decides.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from f1_vla.policy import F1Policy, Published
from f1_vla.public_config import to_public

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
OWN_PARTS = ("memory.", "world_model.condition.", "world_model.latent_head.", "world_model.ensemble.")
# Released entries that never act: rebuilt from the configuration, or heads a configuration may leave out.
CONSTRUCTED = "model.lvl_1L"
UNUSED_HEADS = {"act": _PWE + "gemma_expert.lm_head.weight", "gen": _PWE + "gemma_wm_expert.lm_head.weight"}
INDEX_FILE, WEIGHTS_FILE, CONFIG_FILE = "model.safetensors.index.json", "model.safetensors", "config.json"


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


# --- reading ----------------------------------------------------------------------------------------------------------


class ReleasedFiles(Mapping[str, Tensor]):
    """Entries of one or several safetensors files; a tensor is read when it is asked for."""

    def __init__(self, files: list[Path]) -> None:
        self.files = tuple(f.resolve() for f in files)
        self._of: dict[str, Any] = {}
        for file in files:
            try:
                handle = safe_open(file, framework="pt")
            except (SafetensorError, OSError) as e:
                raise ValueError(
                    f"{file} is not a readable safetensors file ({e}); it is truncated or damaged: fetch it again"
                ) from e
            self._of.update(dict.fromkeys(handle.keys(), handle))

    def __getitem__(self, name: str) -> Tensor:
        return self._of[name].get_tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)

    def shape(self, name: str) -> tuple[int, ...]:
        """From the header, without reading the tensor."""
        return tuple(self._of[name].get_slice(name).get_shape())


def weight_files(path: Path) -> list[Path]:
    """The safetensors file itself, or those of a directory: by its index, else model.safetensors, else its only one.

    ValueError naming what is missing.
    """
    if path.is_file():
        return [path]
    index = path / INDEX_FILE
    if index.is_file():
        shards = sorted({path / f for f in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()})
        outside = [f for f in shards if f.parent != path]
        if outside:
            raise ValueError(f"model.checkpoint_path '{path}': {INDEX_FILE} names {outside[0]}, outside of it")
        absent = [f.name for f in shards if not f.is_file()]
        if absent:
            raise ValueError(f"model.checkpoint_path '{path}': {INDEX_FILE} names {', '.join(absent)}, absent there")
        return shards
    if (path / WEIGHTS_FILE).is_file():
        return [path / WEIGHTS_FILE]
    found = sorted(path.glob("*.safetensors"))
    if len(found) == 1:
        return found
    if found:
        raise ValueError(
            f"model.checkpoint_path '{path}': {len(found)} safetensors files and no {INDEX_FILE}; name one file, or "
            "fetch the index"
        )
    raise ValueError(f"model.checkpoint_path '{path}': no .safetensors file there; name the file or its directory")


def read_released(path: str | Path) -> ReleasedFiles:
    """A .safetensors file or a directory of one policy. ValueError when there is none or it is damaged."""
    return ReleasedFiles(weight_files(Path(path)))


def base_entries(policy: F1Policy) -> dict[str, Tensor]:
    """`state_dict` of the base under its plain names: without adapters, what they wrap named as if they were not."""
    own = policy.state_dict(keep_vars=True)
    return {n.replace(".base_layer.", "."): t for n, t in own.items() if ".lora_" not in n}


def misfits(policy: F1Policy, state: Mapping[str, Tensor]) -> list[str]:
    """Everything in which released entries and the policy differ: missing, unexpected, of another shape."""
    own, problems, used = base_entries(policy), [], {CONSTRUCTED}
    shape = state.shape if isinstance(state, ReleasedFiles) else lambda n: tuple(state[n].shape)
    if "trunk.gen.lm_head.weight" not in own:
        used.update(UNUSED_HEADS.values())
    for name, tensor in own.items():
        names = released_names(name)
        found = [n for n in names if n in state]
        used.update(found)
        if names and not found:
            problems.append(f"missing {names[0]}")
        elif found and shape(found[0]) != tuple(tensor.shape):
            problems.append(f"{found[0]} is {shape(found[0])}, the model has {tuple(tensor.shape)}")
    level = state.get(CONSTRUCTED)
    if level is not None and not level.is_meta and level.flatten().tolist() != policy.world_model.slot_levels():
        sizes = torch.bincount(level.flatten()).sqrt().int().tolist()
        problems.insert(0, f"its scales are {sizes}, the model has {list(policy.cfg.tokenizer.scales)}")
    return problems + [f"unexpected {n}" for n in sorted(set(state) - used)]


def require_fit(policy: F1Policy, state: Mapping[str, Tensor], source: str) -> None:
    """ValueError listing every misfit."""
    if problems := misfits(policy, state):
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise ValueError(
            f"{source} does not fit the model configuration: {shown}. Choose the model.config_file it was made with"
        )


@torch.no_grad()
def copy_entries(policy: F1Policy, state: Mapping[str, Tensor], only: Collection[str] | None = None) -> list[str]:
    """Copies released entries into the policy, which keeps its dtypes; their plain names. only: of these names."""
    copied = []
    for name, target in base_entries(policy).items():
        found = [n for n in released_names(name) if n in state]
        if found and (only is None or name in only):
            target.copy_(state[found[0]])
            copied.append(name)
    return copied


def load_released(policy: F1Policy, state: Mapping[str, Tensor], source: str = "checkpoint") -> None:
    """Copies every released entry. ValueError lists what is missing, unexpected or of another shape; nothing is copied
    then. Entries of files are remembered in `policy.published`."""
    require_fit(policy, state, source)
    copied = copy_entries(policy, state)
    if isinstance(state, ReleasedFiles):
        policy.published = Published(state.files, frozenset(copied))


def read_var_tokenizer(path: Path) -> dict[str, Tensor]:
    """The tokenizer file of VAR (`vae_ch160v4096z32.pth`). ValueError when it cannot be read or holds no tensors."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (UnpicklingError, RuntimeError, EOFError, OSError, KeyError) as e:
        reason = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise ValueError(
            f"tokenizer file {path} cannot be read as tensors ({reason}); fetch vae_ch160v4096z32.pth of VAR again"
        ) from e
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(f"tokenizer file {path} holds no dictionary of tensors; expected vae_ch160v4096z32.pth of VAR")
    return state


# --- writing ----------------------------------------------------------------------------------------------------------


def export_released(policy: F1Policy) -> dict[str, Tensor]:
    """The policy under the names `save_model` writes. Parts the published model lacks are left out, adapters too: call
    it inside `f1_vla.lora.merged` to have them in the weights."""
    out = {names[0]: t.detach() for n, t in base_entries(policy).items() if (names := released_names(n))}
    out[CONSTRUCTED] = policy.world_model.level_of_slot[None].clone()
    return out


def export_directory(policy: F1Policy, directory: Path) -> None:
    """Writes what the public loader reads: config.json and model.safetensors with every published name.

    Unused language heads that this model does not carry are written as zeros. The directory must not hold weights yet.
    ValueError when the public code has no such model.
    """
    if (directory / WEIGHTS_FILE).exists():
        raise ValueError(f"{directory / WEIGHTS_FILE} exists; export to a new directory")
    public = to_public(policy.cfg)
    state = {n: t.cpu().contiguous() for n, t in export_released(policy).items()}
    for expert, name in UNUSED_HEADS.items():
        layer = getattr(policy.trunk, expert).layers[0].mlp.down_proj
        shape = (policy.cfg.trunk.text_vocab_size, layer.out_features)
        if name not in state:
            state[name] = torch.zeros(shape, dtype=layer.weight.dtype)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(state, directory / WEIGHTS_FILE, metadata={"format": "pt"})
    (directory / CONFIG_FILE).write_text(json.dumps(public, indent=2) + "\n", encoding="utf-8")


def add_unused_heads(policy: F1Policy, vocab_size: int) -> None:
    """Language heads of the gen and act experts, which released files carry and nothing reads."""
    for expert in (policy.trunk.gen, policy.trunk.act):
        expert.lm_head = nn.Linear(expert.norm.weight.shape[0], vocab_size, bias=False).requires_grad_(False)
