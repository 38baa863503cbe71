"""A checkpoint names a published base by hash instead of copying it."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from f1_vla import weights
from f1_vla.builders import build_policy
from f1_vla.config import F1Config, TokenizerConfig
from f1_vla.loading import empty_policy
from f1_vla.lora import Role
from f1_vla.policy import F1Policy
from f1_vla.tokenizer import MultiScaleVQVAE
from f1_vla.tokenizer_io import save_tokenizer
from rl import config as rl_config
from rl.config import Config, LoraMode
from rl.training.checkpoint import CheckpointManager, CheckpointState, SavedCheckpoint, open_checkpoint
from rl.training.explorer_setup import ExplorerModel, build_explorer
from rl.training.model_setup import Model, build_for_loading, build_world_model, inject_adapter
from rl.training.parallel_utils import ParallelContext
from rl.training.released_base import load_model
from rl.training.teacher_source import frozen_policy
from rl.training.world_model_player import build_role


def small_public() -> F1Config:
    """A tiny model that the public code can express."""
    cfg = rl_config.load_model("debug_test")
    cfg.tokenizer = TokenizerConfig(32, [1, 2], 16, 4, 32, [1, 1, 2, 2, 4], 2, 3, 32)
    cfg.world_model.num_resolutions = cfg.world_model.foresight_scales = 2
    return cfg


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    torch.manual_seed(5)
    weights.export_directory(build_policy(small_public()), tmp_path / "published")
    cfg = rl_config.load(overrides=["training.num_threads=1"])
    cfg.environment.wm_size = 32
    cfg.model.checkpoint_path = str(tmp_path / "published")
    return cfg


def trained(cfg: Config, world: ParallelContext) -> Model:
    """A model whose trainable part has moved."""
    model = build_world_model(cfg, small_public(), cfg.teacher.freeze, world)
    with torch.no_grad():
        for p in model.trainable:
            p.add_(torch.randn_like(p))
    return model


def save(model: Model, run: Path, world: ParallelContext) -> SavedCheckpoint:
    run.mkdir(exist_ok=True)
    CheckpointManager(run, 2, world).save(1, CheckpointState(**model.checkpoint(), training={}))
    return open_checkpoint(run)


def same(a: F1Policy, b: F1Policy) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[n], y[n]) for n in x)


def load(policy: F1Policy, saved: SavedCheckpoint) -> F1Policy:
    load_model(policy, saved.read("model.pt"), saved.base, saved.path)
    return policy


def test_checkpoint_of_adapters_holds_what_trains_and_what_the_base_lacks_and_restores_everything(cfg, world, tmp_path):
    model = trained(cfg, world)
    saved = save(model, tmp_path / "run", world)
    written = saved.read("model.pt")
    learnt = {n for n, p in model.policy.named_parameters() if p.requires_grad}
    own_parts = {n for n in model.policy.state_dict() if n.startswith(weights.OWN_PARTS)}
    assert set(written) == learnt | own_parts and any(".lora_" in n for n in written)
    assert not any(".base_layer." in n or n.startswith("tokenizer.") for n in written)
    assert same(load(build_for_loading(cfg, small_public(), "cpu"), saved), model.policy)
    empty = empty_policy(small_public(), "cpu")  # as later phases lay the teacher out
    inject_adapter(empty, cfg, Role.world_model)
    assert same(load(empty, saved), model.policy)


def test_base_that_trains_is_saved_and_only_frozen_parts_are_named(cfg, world, tmp_path):
    cfg.model.lora.mode = LoraMode.off
    model = trained(cfg, world)
    saved = save(model, tmp_path / "run", world)
    written = saved.read("model.pt")
    assert "trunk.gen.layers.0.mlp.up_proj.weight" in written and "tokenizer.quantize.embedding.weight" not in written
    assert same(load(build_for_loading(cfg, small_public(), "cpu"), saved), model.policy)


def test_tokenizer_of_another_file_is_saved(cfg, world, tmp_path):
    torch.manual_seed(6)
    tokenizer = MultiScaleVQVAE(small_public().tokenizer)
    save_tokenizer(tokenizer, tmp_path / "own.safetensors", {})
    cfg.model.tokenizer_path = str(tmp_path / "own.safetensors")
    model = trained(cfg, world)
    saved = save(model, tmp_path / "run", world)
    written = saved.read("model.pt")["tokenizer.quantize.embedding.weight"]
    torch.testing.assert_close(written, tokenizer.quantize.embedding.weight, atol=1e-3, rtol=1e-3)  # the file is half
    assert same(load(build_for_loading(cfg, small_public(), "cpu"), saved), model.policy)


def test_model_without_a_published_base_is_saved_whole(cfg, world, tmp_path):
    save_tokenizer(MultiScaleVQVAE(small_public().tokenizer), tmp_path / "own.safetensors", {})
    cfg.model.tokenizer_path, cfg.model.checkpoint_path = str(tmp_path / "own.safetensors"), None
    model = trained(cfg, world)
    saved = save(model, tmp_path / "run", world)
    assert saved.base is None and set(saved.read("model.pt")) == set(model.policy.state_dict())


@pytest.mark.parametrize("damage", ["gone", "longer", "one bit"])
def test_base_that_is_missing_or_changed_is_refused_with_the_remedy(cfg, world, tmp_path, damage):
    saved = save(trained(cfg, world), tmp_path / "run", world)
    policy = build_for_loading(cfg, small_public(), "cpu")
    before = {n: t.clone() for n, t in policy.state_dict().items()}
    file = tmp_path / "published" / "model.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "gone":
        file.unlink()
    else:
        content[-1] ^= 1
        file.write_bytes(content + b"x" * (damage == "longer"))
    what = "does not exist" if damage == "gone" else "has changed since"
    with pytest.raises(ValueError, match=rf"{file}, which {what}: put back the file with sha256 [0-9a-f]{{16}}"):
        load(policy, saved)
    assert all(torch.equal(before[n], t) for n, t in policy.state_dict().items())


def test_other_architecture_is_still_refused_key_by_key(cfg, world, tmp_path):
    saved = save(trained(cfg, world), tmp_path / "run", world)
    arch = small_public()
    arch.trunk.num_layers += 1
    policy = empty_policy(arch, "cpu")
    inject_adapter(policy, cfg, Role.world_model)
    with pytest.raises(ValueError, match=r"belongs to another architecture than this model: keys .* missing"):
        load(policy, saved)
    arch.trunk.num_layers -= 2
    policy = empty_policy(arch, "cpu")
    inject_adapter(policy, cfg, Role.world_model)
    with pytest.raises(ValueError, match="unexpected"):
        load(policy, saved)


def test_part_that_is_not_saved_cannot_start_to_train_unnoticed(cfg, world):
    model = trained(cfg, world)
    model.policy.vision.projector.weight.requires_grad_(True)
    with pytest.raises(AssertionError, match=r"vision\.projector\.weight.* train, but are not saved"):
        model.checkpoint()


def test_reference_names_file_size_and_hash(cfg, world, tmp_path):
    saved = save(trained(cfg, world), tmp_path / "run", world)
    file = tmp_path / "published" / "model.safetensors"
    (entry,) = json.loads((saved.path / "base.json").read_text())["files"]
    assert entry["name"] == str(file) and entry["bytes"] == file.stat().st_size and len(entry["sha256"]) == 64


# --- explorers of phases 2 and 3 --------------------------------------------------------------------------------------


def explorer_of(cfg: Config, world: ParallelContext, teacher: SavedCheckpoint | None) -> ExplorerModel:
    """As a run builds it; without a teacher its weights come from a checkpoint later."""
    policy = frozen_policy(cfg, small_public(), torch.device("cpu"))
    if teacher is not None:
        load(policy, teacher)
    mask = np.arange(policy.cfg.max_action_dim) < 8
    return build_explorer(cfg, policy, mask, world)


def shaken(parameters) -> None:
    with torch.no_grad():
        for p in parameters:
            p.add_(torch.randn_like(p))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_explorer_names_the_base_of_its_teacher_and_is_restored_bit_for_bit(cfg, world, tmp_path, precision):
    cfg.training.mixed_precision = rl_config.MixedPrecision(precision)
    model = explorer_of(cfg, world, save(trained(cfg, world), tmp_path / "teacher", world))
    shaken(model.trainable)
    saved = save(model, tmp_path / "student", world)
    written, own = saved.read("model.pt"), model.explorer.state_dict()
    assert not any(".base_layer." in n or n.startswith("policy.tokenizer.") for n in written)
    assert any(".lora_" in n and ".explorer." in n for n in written), "its own adapter"
    assert any(".lora_" in n and ".world_model." in n for n in written), "that of the teacher"
    assert sum(t.numel() for t in written.values()) < 0.5 * sum(t.numel() for t in own.values())
    restored = explorer_of(cfg, world, None)
    load_model(restored.explorer, saved.read("model.pt"), saved.base, saved.path)
    found = restored.explorer.state_dict()
    assert found.keys() == own.keys() and all(torch.equal(found[n], own[n]) for n in own)
    again = save(restored, tmp_path / "resumed", world)  # a resumed run names the same
    assert again.base == saved.base and again.read("model.pt").keys() == written.keys()


def test_both_players_of_phase_three_are_saved_with_what_either_trains(cfg, world, tmp_path):
    model = explorer_of(cfg, world, save(trained(cfg, world), tmp_path / "teacher", world))
    own = list(model.trainable)
    partner = build_role(cfg, model.explorer.policy, world)
    for p in own:
        p.requires_grad_(True)
    shaken([*own, *partner.trainable])
    saved = save(model, tmp_path / "game", world)
    restored = explorer_of(cfg, world, None)
    load_model(restored.explorer, saved.read("model.pt"), saved.base, saved.path)
    assert same(restored.explorer, model.explorer) and saved.base is not None


def test_explorer_of_a_teacher_without_a_published_base_is_saved_whole(cfg, world, tmp_path):
    save_tokenizer(MultiScaleVQVAE(small_public().tokenizer), tmp_path / "own.safetensors", {})
    cfg.model.tokenizer_path, cfg.model.checkpoint_path = str(tmp_path / "own.safetensors"), None
    model = explorer_of(cfg, world, save(trained(cfg, world), tmp_path / "teacher", world))
    saved = save(model, tmp_path / "student", world)
    assert saved.base is None and set(saved.read("model.pt")) == set(model.explorer.state_dict())
