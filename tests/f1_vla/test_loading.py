"""Released checkpoints: where they may lie, what may be wrong with them, and that nothing is lost on the way."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from f1_vla import loading, weights
from f1_vla.builders import build_policy
from f1_vla.lora import Role, add_lora, lora_config, merged
from f1_vla.parity import config_of
from f1_vla.public_config import from_public, to_public
from f1_vla.text import build_text_tokenizer, encode_instruction
from f1_vla.tokenizer import MultiScaleVQVAE
from rl.config import load_model

KEYS = Path(__file__).resolve().parents[1] / "data" / "f1_parity" / "f1_full_checkpoint_keys.json"


@pytest.fixture
def checkpoint(parity_policy, tmp_path) -> Path:
    """A directory as the public code writes it."""
    weights.export_directory(parity_policy, tmp_path / "released")
    return tmp_path / "released"


def same_published_weights(a, b) -> bool:
    a, b = a.state_dict(), b.state_dict()
    return all(torch.equal(a[n], b[n]) for n in a if weights.released_names(n))


def split(directory: Path, parts: int) -> dict[str, str]:
    """Turns model.safetensors into shards with an index, as large checkpoints come."""
    state = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    where = {}
    for i in range(parts):
        name = f"model-{i + 1:05}-of-{parts:05}.safetensors"
        names = sorted(state)[i::parts]
        save_file({n: state[n] for n in names}, directory / name)
        where |= dict.fromkeys(names, name)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return where


@pytest.mark.parametrize("form", ["file", "directory", "shards", "other name"])
def test_file_directory_and_shards_give_the_same_policy_with_the_same_outputs(
    parity_policy, parity_config, checkpoint, form, parity_data
):
    path = checkpoint
    if form == "file":
        path = checkpoint / "model.safetensors"
    elif form == "shards":
        split(checkpoint, 3)
    elif form == "other name":
        (checkpoint / "model.safetensors").rename(checkpoint / "policy.safetensors")
    policy = loading.load_policy(parity_config, str(path))
    assert same_published_weights(parity_policy, policy)
    # Buffers that no file holds are right, too: a whole forward pass agrees.
    images = torch.stack([parity_data["in.image0"]], 1)
    frames = parity_data["in.history"][:, 0].float() / 2 + 0.5
    a, b = (p.encode_frames(frames, images) for p in (parity_policy, policy))
    assert torch.equal(a.ids, b.ids) and torch.equal(a.vision, b.vision)
    assert torch.equal(policy.world_model.level_of_slot, parity_policy.world_model.level_of_slot)
    assert policy.memory.out_proj.weight.abs().max() == 0 and policy.memory.in_proj.weight.abs().max() > 0
    assert not any(t.is_meta for t in (*policy.parameters(), *policy.buffers()))


def test_shards_that_are_missing_are_named(parity_config, checkpoint):
    split(checkpoint, 3)
    (checkpoint / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"names model-00002-of-00003\.safetensors, absent"):
        loading.load_policy(parity_config, str(checkpoint))


def test_several_files_without_an_index_are_refused(parity_config, checkpoint):
    split(checkpoint, 2)
    (checkpoint / "model.safetensors.index.json").unlink()
    with pytest.raises(ValueError, match=r"2 safetensors files and no model\.safetensors\.index\.json"):
        loading.load_policy(parity_config, str(checkpoint))


def test_truncated_file_is_refused_with_the_remedy(parity_config, checkpoint):
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"truncated or damaged: fetch it again"):
        loading.load_policy(parity_config, str(file))


def other_scales(cfg) -> None:
    cfg.tokenizer.scales, cfg.world_model.num_resolutions = [1, 2, 4], 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (other_scales, r"its scales are \[1, 2, 3, 4\], the model has \[1, 2, 4\]"),
        (lambda c: setattr(c.trunk, "num_layers", 3), "missing"),
        (lambda c: setattr(c.trunk, "num_layers", 1), "unexpected"),
        (lambda c: setattr(c.trunk.und, "hidden_size", 48), r"is \(64,\), the model has \(48,\)"),
    ],
)
def test_checkpoint_of_another_model_is_refused_before_anything_is_built(
    parity_spec, checkpoint, monkeypatch, change, message
):
    cfg = config_of(parity_spec["config"])
    change(cfg)
    monkeypatch.setattr(loading, "empty_policy", lambda *_: pytest.fail("allocated"))
    with pytest.raises(ValueError, match=message) as e:
        loading.load_policy(cfg, str(checkpoint))
    assert "does not fit" in str(e.value) and "model.config_file" in str(e.value)


def test_scales_that_differ_at_equal_shapes_are_noticed(parity_config, parity_policy, parity_state):
    level = parity_policy.world_model.level_of_slot[None].clone()
    level[0, 4] = 2
    with pytest.raises(ValueError, match="its scales are"):
        weights.load_released(parity_policy, parity_state | {weights.CONSTRUCTED: level})


@pytest.mark.parametrize("second_names", [False, True])
def test_complete_published_key_list_fits_the_full_size_model(second_names):
    entries = json.loads(KEYS.read_text())["entries"]
    dropped = ("vae.", "embed_tokens.weight")
    state = {
        n: torch.empty(s, device="meta")
        for n, s in entries
        if second_names or not (n.startswith(dropped[0]) or n.endswith(dropped[1]))
    }
    assert len(state) == (1605 if second_names else 1280)
    policy = loading.meta_policy(load_model("f1_base"))
    assert weights.misfits(policy, state) == []
    del state["model.wm_out_proj.bias"]
    assert weights.misfits(policy, state) == ["missing model.wm_out_proj.bias"]


def test_paths_that_are_nothing_are_refused_offline_with_the_remedy(parity_config, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"does not exist; name a \.safetensors file"):
        loading.load_policy(parity_config, "somewhere/that/is/not")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(ValueError, match=r"not in the local cache; set HF_HUB_OFFLINE=0"):
        loading.find_checkpoint("nobody/nothing-of-that-name")


def test_hub_id_is_read_from_the_local_cache(checkpoint, monkeypatch):
    asked = {}

    def cached(name, allow_patterns, local_files_only):
        asked.update(name=name, offline=local_files_only, patterns=allow_patterns)
        return str(checkpoint)

    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr(loading, "snapshot_download", cached)
    assert loading.find_checkpoint("owner/f1-vla") == checkpoint
    assert asked == {"name": "owner/f1-vla", "offline": True, "patterns": ["*.safetensors", "*.json"]}


def test_bfloat16_base_keeps_projections_memory_and_tokenizer_in_float32(parity_config, checkpoint):
    policy = loading.load_policy(parity_config, str(checkpoint), dtype=torch.bfloat16)
    assert policy.trunk.und.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16
    kept = (policy.memory.in_proj, policy.world_model.out_proj, policy.flow.state_proj, policy.tokenizer.quant_conv)
    assert {m.weight.dtype for m in kept} == {torch.float32}
    features = policy.encode_frames(torch.rand(1, 3, 64, 64), torch.rand(1, 2, 3, 28, 28))  # outside of autocast
    assert features.vision.isfinite().all() and features.latents.dtype == torch.float32
    config = lora_config(policy, Role.world_model, 2, 4, 0.0, ["q_proj"])
    added = add_lora(policy, Role.world_model, config)
    assert {policy.get_parameter(n).dtype for n in added} == {torch.float32}


# --- export -----------------------------------------------------------------------------------------------------------


def test_export_has_every_published_name_and_a_configuration_that_reads_back(parity_spec, parity_policy, checkpoint):
    names = set(load_file(checkpoint / "model.safetensors"))
    published = {e["name"] for e in parity_spec["state_dict"]}
    assert names == {n for n in published if not n.startswith("vae.") and not n.endswith("embed_tokens.weight")}
    public = json.loads((checkpoint / "config.json").read_text())
    assert to_public(from_public(public)) == public
    for block in ("und", "gen", "act"):
        theirs = parity_spec["config"][f"{block}_expert_config"]
        ours = public[f"{block}_expert_config"]
        shared = {k for k in theirs if k in ours and not isinstance(theirs[k], dict)} - {"image_token_index"}
        assert {k: ours[k] for k in shared} == {k: theirs[k] for k in shared}
    with pytest.raises(ValueError, match="exists; export to a new directory"):
        weights.export_directory(parity_policy, checkpoint)


def test_heads_the_model_does_not_carry_are_written_as_zeros(parity_spec, parity_policy, checkpoint, tmp_path):
    policy = loading.load_policy(config_of(parity_spec["config"]), str(checkpoint))
    weights.export_directory(policy, tmp_path / "again")
    a, b = (load_file(d / "model.safetensors") for d in (checkpoint, tmp_path / "again"))
    assert a.keys() == b.keys()
    for n in a:
        expected = torch.zeros_like(a[n]) if n in weights.UNUSED_HEADS.values() else a[n]
        assert torch.equal(b[n], expected), n


def test_model_with_a_tokenizer_the_public_code_lacks_cannot_be_exported(debug_policy, tmp_path):
    with pytest.raises(ValueError, match="the public code has a fixed tokenizer"):
        weights.export_directory(debug_policy, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_merging_adapters_is_undone_bit_for_bit_and_exports_what_the_adapted_model_computes(
    debug_config, debug_policy, make_batch
):
    config = lora_config(debug_policy, Role.world_model, 2, 8, 0.0, ["q_proj", "v_proj"])
    added = add_lora(debug_policy, Role.world_model, config)
    with torch.no_grad():
        for n in added:
            debug_policy.get_parameter(n).normal_(std=0.3)
    batch, h = make_batch(debug_config), debug_policy.initial_memory_state(2)

    def logits(policy):
        with torch.no_grad():
            return policy(batch, mode="world_model_window", initial_memory_state=h, return_logits=True)["logits"]

    adapted, before = logits(debug_policy), {n: t.clone() for n, t in debug_policy.state_dict().items()}
    with merged(debug_policy):
        exported = {n: t.clone() for n, t in weights.export_released(debug_policy).items()}
    after = debug_policy.state_dict()
    assert all(torch.equal(before[n], after[n]) for n in before)
    assert torch.equal(logits(debug_policy), adapted)
    plain = build_policy(debug_config).eval()
    plain.load_state_dict({n: t for n, t in before.items() if n in plain.state_dict()}, strict=False)
    weights.load_released(plain, exported)
    torch.testing.assert_close(logits(plain), adapted, atol=1e-5, rtol=1e-4)


# --- tokenizers -------------------------------------------------------------------------------------------------------


@pytest.fixture
def var_file(parity_policy, tmp_path) -> Path:
    path = tmp_path / "vae_ch160v4096z32.pth"
    torch.save(parity_policy.tokenizer.state_dict(), path)
    return path


def test_tokenizer_file_of_var_replaces_that_of_the_checkpoint(parity_config, checkpoint, var_file, parity_policy):
    state = torch.load(var_file, weights_only=True)
    state["quantize.embedding.weight"] += 1
    torch.save(state, var_file)
    policy = loading.load_policy(parity_config, str(checkpoint), tokenizer_path=var_file)
    expected = parity_policy.tokenizer.quantize.embedding.weight + 1
    assert torch.equal(policy.tokenizer.quantize.embedding.weight, expected)
    assert not any(p.requires_grad for p in policy.tokenizer.parameters())


def test_tokenizer_with_other_scales_or_sizes_is_refused(parity_spec, var_file):
    cfg = config_of(parity_spec["config"]).tokenizer
    assert isinstance(loading.read_tokenizer(var_file, cfg), MultiScaleVQVAE)
    cfg.scales = [1, 2, 4]
    with pytest.raises(ValueError, match=r"has 4 scales, the model has 3 \(\[1, 2, 4\]\); set arch\.tokenizer\.scales"):
        loading.read_tokenizer(var_file, cfg)
    cfg.scales, cfg.vocab_size = [1, 2, 3, 4], 32
    with pytest.raises(ValueError, match=r"quantize\.embedding\.weight is \(64, 8\), the model has \(32, 8\)"):
        loading.read_tokenizer(var_file, cfg)


class NotATensor:
    pass


@pytest.mark.parametrize("content", ["truncated", "code", "list", "absent"])
def test_tokenizer_file_that_cannot_be_read_is_refused(parity_spec, var_file, content):
    cfg = config_of(parity_spec["config"]).tokenizer
    if content == "truncated":
        var_file.write_bytes(var_file.read_bytes()[:5000])
    elif content == "code":
        torch.save({"a": NotATensor()}, var_file)
    elif content == "list":
        torch.save([1], var_file)
    else:
        var_file.unlink()
    with pytest.raises(ValueError, match="does not exist" if content == "absent" else "tokenizer file"):
        loading.read_tokenizer(var_file, cfg)


def test_prompt_over_the_limit_is_refused_with_the_remedy(debug_config):
    debug_config.tokenizer_max_length = 6
    ids, valid = encode_instruction(debug_config, "hello")  # five bytes and the newline
    assert ids.shape == valid.shape == (1, 6) and valid.all()
    with pytest.raises(ValueError, match=r"has 7 tokens, tokenizer_max_length is 6; .*arch\.tokenizer_max_length=7"):
        encode_instruction(debug_config, "hello!")


def test_directory_without_a_text_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no readable tokenizer"):
        build_text_tokenizer(str(tmp_path), 6, 512)
