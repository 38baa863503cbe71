"""Tokenizer files: what is written comes back, what does not fit is refused by name."""

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from f1_vla.config import TokenizerConfig
from f1_vla.tokenizer import MultiScaleVQVAE
from f1_vla.tokenizer_io import load_tokenizer, read_header, save_tokenizer, shipped_tokenizer

CONFIG = TokenizerConfig(
    image_size=8, scales=[1, 2], vocab_size=5, z_channels=2, channels=4, channel_multipliers=[1, 1, 1], norm_groups=2
)
PROVENANCE: dict[str, object] = {"command": "bash train.sh tokenizer --seed 3", "seed": 3, "psnr_db": 27.5}


@pytest.fixture
def model() -> MultiScaleVQVAE:
    return MultiScaleVQVAE(CONFIG)


@pytest.fixture
def file(model: MultiScaleVQVAE, tmp_path: Path) -> Path:
    path = tmp_path / "new" / "tokenizer.safetensors"
    save_tokenizer(model, path, PROVENANCE)
    return path


def test_weights_come_back_rounded_to_half_precision_and_frozen(model: MultiScaleVQVAE, file: Path) -> None:
    loaded = load_tokenizer(file, CONFIG)
    expected = {k: v.half().float() for k, v in model.state_dict().items()}
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(v, expected[k]) and v.dtype == torch.float32 for k, v in loaded.state_dict().items())
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert file.stat().st_size < 2.3 * sum(v.numel() for v in expected.values()) + 20_000
    assert [p.name for p in file.parent.iterdir()] == [file.name]  # nothing half-written is left


def test_saving_what_was_loaded_changes_no_bit(file: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.safetensors"
    save_tokenizer(load_tokenizer(file, CONFIG), again, PROVENANCE)
    first, second = load_file(file), load_file(again)
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_the_header_tells_architecture_and_provenance(file: Path) -> None:
    architecture, provenance = read_header(file)
    assert architecture == dataclasses.asdict(CONFIG) and provenance == PROVENANCE


def test_another_architecture_is_refused_naming_every_key(file: Path) -> None:
    other = dataclasses.replace(CONFIG, vocab_size=7, channels=8)
    with pytest.raises(ValueError, match=r"does not fit the model: vocab_size: file 5, model 7; channels: file 4, mo"):
        load_tokenizer(file, other)


def test_missing_and_unexpected_entries_are_named(file: Path) -> None:
    state = load_file(file)
    state["surplus"] = state.pop("quant_conv.bias")
    with safe_open(file, framework="pt") as f:
        save_file(state, file, metadata=f.metadata())
    with pytest.raises(ValueError, match=r"missing \['quant_conv\.bias'\], unexpected \['surplus'\]"):
        load_tokenizer(file, CONFIG)


@pytest.mark.parametrize("size", [0, 5, 200, 2000])
def test_a_truncated_file_is_refused(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"tokenizer\.safetensors cannot be read .*train one with `bash train\.sh tok"):
        load_tokenizer(file, CONFIG)


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read"):
        load_tokenizer(tmp_path / "nowhere.safetensors", CONFIG)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign)
    with pytest.raises(ValueError, match="is not a tokenizer file: its header holds no architecture"):
        load_tokenizer(foreign, CONFIG)


def test_a_preset_without_a_shipped_file_says_how_to_get_one() -> None:
    with pytest.raises(ValueError, match=r"no tokenizer is shipped .*'nobody'.*model\.tokenizer_path=FILE"):
        shipped_tokenizer("nobody")
