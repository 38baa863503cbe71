"""Reading and writing tokenizer files: safetensors with the architecture and the provenance in the header."""

import dataclasses
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from f1_vla.config import TokenizerConfig
from f1_vla.tokenizer import MultiScaleVQVAE

SHIPPED_DIR = Path(__file__).resolve().parent / "pretrained"


def shipped_tokenizer(preset: str) -> Path:
    """The tokenizer file that comes with a model preset. ValueError when that preset has none."""
    path = SHIPPED_DIR / f"tokenizer_{preset}.safetensors"
    if not path.is_file():
        raise ValueError(
            f"no tokenizer is shipped for the model preset '{preset}' ({path.name}); "
            "train one with `bash train.sh tokenizer` or name one with model.tokenizer_path=FILE"
        )
    return path


def save_tokenizer(model: MultiScaleVQVAE, path: Path, provenance: dict[str, object]) -> None:
    """Half-precision file with `provenance` (command, seed, PSNR ...) in its header; written atomically."""
    tensors = {k: v.detach().to("cpu", torch.float16).contiguous() for k, v in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"config": json.dumps(dataclasses.asdict(model.cfg)), "provenance": json.dumps(provenance)}
    scratch = path.with_name(f".{path.name}.tmp")
    save_file(tensors, scratch, metadata=metadata)
    os.replace(scratch, path)


def read_header(path: Path) -> tuple[dict[str, object], dict[str, object]]:
    """(architecture, provenance) of a tokenizer file. ValueError when it is none."""
    try:
        with safe_open(path, framework="pt") as f:
            metadata = f.metadata() or {}
    except (SafetensorError, OSError) as e:
        raise ValueError(f"tokenizer file {path} cannot be read ({e}); train one with `bash train.sh tokenizer`") from e
    if "config" not in metadata:
        raise ValueError(f"{path} is not a tokenizer file: its header holds no architecture")
    return json.loads(metadata["config"]), json.loads(metadata.get("provenance", "{}"))


def check_tokenizer(path: Path, cfg: TokenizerConfig) -> None:
    """ValueError naming every differing key when the file holds a tokenizer of another architecture."""
    found, _ = read_header(path)
    wrong = [f"{k}: file {found.get(k)}, model {v}" for k, v in dataclasses.asdict(cfg).items() if found.get(k) != v]
    if wrong:
        raise ValueError(f"tokenizer {path} does not fit the model: {'; '.join(wrong)}")


def load_tokenizer(path: Path, cfg: TokenizerConfig) -> MultiScaleVQVAE:
    """Frozen float32 tokenizer of architecture `cfg`; ValueError naming every differing key of another architecture."""
    check_tokenizer(path, cfg)
    model = MultiScaleVQVAE(cfg)
    with safe_open(path, framework="pt") as f:
        names = set(f.keys())
        state = {k: f.get_tensor(k).float() for k in names}
    absent = set(model.state_dict()) - names
    if absent or names - set(model.state_dict()):
        raise ValueError(
            f"tokenizer {path}: missing {sorted(absent)}, unexpected {sorted(names - set(model.state_dict()))}"
        )
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)
