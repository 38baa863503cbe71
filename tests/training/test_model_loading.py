"""`load_f1_policy` and `model.checkpoint_path`: what a run starts from."""

from pathlib import Path

import pytest
import torch

from f1_vla import weights
from f1_vla.builders import build_policy
from f1_vla.config import F1Config, TokenizerConfig
from f1_vla.loading import load_policy
from f1_vla.lora import Role
from f1_vla.tokenizer import MultiScaleVQVAE
from f1_vla.tokenizer_io import save_tokenizer
from f1_vla.trainable import part_of
from rl import config as rl_config
from rl.config import Config, LoraConfig, LoraMode, MixedPrecision
from rl.training import model_setup
from rl.training.model_loading import load_f1_policy
from rl.training.model_setup import (
    build_base,
    check_model_files,
    freeze_for_world_model,
    inject_adapter,
    uses_lora,
)
from rl.training.plan import random_batch


def small_public() -> F1Config:
    """A tiny model that the public code can express."""
    cfg = rl_config.load_model("debug_test")
    cfg.tokenizer = TokenizerConfig(32, [1, 2], 16, 4, 32, [1, 1, 2, 2, 4], 2, 3, 32)
    cfg.world_model.num_resolutions = cfg.world_model.foresight_scales = 2
    cfg.world_model.latent_head = False
    cfg.tokenizer_max_length = 24
    return cfg


@pytest.fixture
def model_file(tmp_path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(rl_config.to_yaml(small_public()))
    return path


@pytest.fixture
def released(tmp_path) -> Path:
    weights.export_directory(build_policy(small_public()), tmp_path / "released")
    return tmp_path / "released"


@pytest.fixture
def shipped(tmp_path, monkeypatch) -> Path:
    """A tokenizer for the preset debug_test."""
    path = tmp_path / "tokenizer.safetensors"
    save_tokenizer(MultiScaleVQVAE(rl_config.load_model("debug_test").tokenizer), path, {})
    monkeypatch.setattr(model_setup, "shipped_tokenizer", lambda preset: path)
    return path


@pytest.mark.usefixtures("shipped")
def test_preset_without_a_checkpoint_has_random_weights_and_no_adapter():
    policy, arch, full = load_f1_policy("debug_test", debug=True)
    assert arch == rl_config.load_model("debug_test") and full.training.debug
    assert full.model.config_file == "debug_test" and not any(".lora_" in n for n, _ in policy.named_parameters())
    assert not policy.training
    again = load_f1_policy("debug_test")[0]
    assert all(torch.equal(a, b) for a, b in zip(policy.parameters(), again.parameters(), strict=True))


def test_checkpoint_is_loaded_with_an_adapter_unless_switched_off(model_file, released):
    policy, arch, full = load_f1_policy(model_file, checkpoint_path=released)
    assert full.environment.wm_size == 32 and full.model.checkpoint_path == str(released)
    adapters = [n for n, _ in policy.named_parameters() if ".lora_" in n]
    assert adapters
    plain = load_f1_policy(model_file, lora_config={"mode": "off"}, checkpoint_path=released)[0]
    assert not any(".lora_" in n for n, _ in plain.named_parameters())
    expected = load_policy(arch, str(released)).state_dict()
    published = [n for n in expected if weights.released_names(n)]
    assert all(torch.equal(plain.state_dict()[n], expected[n]) for n in published)
    assert all(torch.equal(weights.base_entries(policy)[n], expected[n]) for n in published)


@pytest.mark.usefixtures("shipped")
def test_adapter_fields_are_typed_and_switch_the_adapter_on():
    policy, _, full = load_f1_policy("debug_test", lora_config={"r": 3, "target_modules": ["k_proj"]})
    assert full.model.lora == LoraConfig(mode=LoraMode.on, r=3, target_modules=["k_proj"])
    a = [p for n, p in policy.named_parameters() if ".lora_A." in n]
    assert a and all(p.shape[0] == 3 for p in a)
    with pytest.raises(ValueError, match=r"unknown configuration key 'model\.lora\.rank'"):
        load_f1_policy("debug_test", lora_config={"rank": 3})


def run_config(released: Path, **training) -> Config:
    cfg = rl_config.load()
    cfg.environment.wm_size = 32
    cfg.model.checkpoint_path = str(released)
    for name, value in training.items():
        setattr(cfg.training, name, value)
    return cfg


def test_run_in_bfloat16_holds_an_adapted_base_in_bfloat16(released):
    cfg = run_config(released, mixed_precision=MixedPrecision.bf16)
    layer = build_base(cfg, small_public(), "cpu").trunk.und.layers[0]
    assert layer.mlp.up_proj.weight.dtype == torch.bfloat16
    cfg.model.lora.mode = LoraMode.off  # the base itself trains then
    layer = build_base(cfg, small_public(), "cpu").trunk.und.layers[0]
    assert layer.mlp.up_proj.weight.dtype == torch.float32


def test_what_is_wrong_with_a_checkpoint_is_said_before_the_run_starts(released):
    cfg, arch = run_config(released), small_public()
    check_model_files(cfg, arch)
    arch.trunk.num_layers += 1
    with pytest.raises(ValueError, match="does not fit the model configuration: missing"):
        check_model_files(cfg, arch)
    cfg.model.checkpoint_path = str(released / "nothing.safetensors")
    with pytest.raises(ValueError, match="does not exist"):
        check_model_files(cfg, small_public())


@pytest.mark.parametrize("pretrained", [True, False])
def test_instruction_over_the_limit_is_refused_by_everything_that_builds_a_model(released, pretrained):
    arch = small_public() if pretrained else rl_config.load_model("tiny")
    cfg = run_config(released) if pretrained else Config()
    cfg.environment.instruction = "explore the whole table and everything on it"
    for build in (check_model_files, lambda cfg, arch: build_base(cfg, arch, "cpu")):
        with pytest.raises(
            ValueError, match=r"has 45 tokens, tokenizer_max_length is 24; shorten environment\.instruction"
        ):
            build(cfg, arch)


@pytest.mark.parametrize(
    ("mode", "checkpoint", "expected"),
    [("auto", None, False), ("auto", "x", True), ("on", None, True), ("off", "x", False)],
)
def test_adapters_are_on_by_default_exactly_when_a_checkpoint_is_loaded(mode, checkpoint, expected):
    cfg = Config()
    cfg.model.lora.mode, cfg.model.checkpoint_path = LoraMode(mode), checkpoint
    assert uses_lora(cfg) is expected


@pytest.mark.parametrize("steps", [1, 3])
def test_every_parameter_that_trains_beside_a_released_base_gets_a_gradient(released, steps):
    cfg, arch = run_config(released, batch_size=2, bptt_length=steps), small_public()
    policy = build_base(cfg, arch, "cpu")
    freeze_for_world_model(policy, cfg.teacher.freeze, lora=True)
    inject_adapter(policy, cfg, Role.world_model)
    trained = {n for n, p in policy.named_parameters() if p.requires_grad}
    assert {part_of(n) for n in trained} == {
        "und expert", "gen expert", "action and state conditioning", "world-model embeddings and head", "memory",
    }  # fmt: skip
    assert all(".lora_" in n for n in trained if n.startswith("trunk."))
    batch = random_batch(cfg, arch, torch.device("cpu"))
    policy(batch, mode="world_model_window", initial_memory_state=policy.initial_memory_state(2))["loss"].backward()
    assert {n for n, p in policy.named_parameters() if p.grad is not None} == trained
