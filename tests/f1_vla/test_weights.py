"""Released names <-> ours."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from f1_vla import weights
from f1_vla.builders import build_policy
from f1_vla.policy import F1Policy
from rl.config import load_model

KEYS = Path(__file__).resolve().parents[1] / "data" / "f1_parity" / "f1_full_checkpoint_keys.json"


def dropped_by_save_model(name: str) -> bool:
    return name.startswith("vae.") or name.endswith("embed_tokens.weight")


def test_full_size_model_has_exactly_the_published_entries_and_shapes():
    published = {n: tuple(s) for n, s in json.loads(KEYS.read_text())["entries"]}
    with torch.device("meta"):
        policy = F1Policy(load_model("f1_base"))
        weights.add_unused_heads(policy, 257152)
    ours = {n: tuple(t.shape) for n, t in weights.export_released(policy).items()}
    assert ours == {n: s for n, s in published.items() if not dropped_by_save_model(n)}
    assert len(ours) == 1280
    # Every second name is found as well.
    names = {n for own in policy.state_dict() for n in weights.released_names(own)} | {weights.CONSTRUCTED}
    assert names == set(published)


def test_every_name_maps_back_to_itself(parity_policy):
    for own in parity_policy.state_dict():
        for released in weights.released_names(own):
            assert weights.own_name(released) == own


def test_own_additions_have_no_released_name(parity_policy):
    extra = [n for n in parity_policy.state_dict() if not weights.released_names(n)]
    assert {n.split(".")[0] for n in extra} == {"memory", "world_model"}


@pytest.mark.parametrize("second_names", [False, True])
def test_export_then_load_restores_every_weight(parity_config, parity_policy, tmp_path, second_names):
    state = weights.export_released(parity_policy)
    if second_names:  # a file that kept the other name of each pair
        state = {
            n.replace("model.vae.", "vae.").replace("lm_head", "model.embed_tokens")
            if "language_model" in n or "vae" in n
            else n: t
            for n, t in state.items()
        }
    save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / "model.safetensors")
    other = build_policy(parity_config)
    weights.load_released(other, weights.read_released(tmp_path))
    a, b = parity_policy.state_dict(), other.state_dict()
    for n in a:
        if weights.released_names(n):
            assert torch.equal(a[n], b[n]), n


def test_missing_unexpected_and_misshapen_entries_are_all_named_and_nothing_is_copied(parity_config, parity_state):
    policy = build_policy(parity_config)
    before = policy.world_model.embed.weight.clone()
    state = dict(parity_state)
    del state["model.wm_out_proj.bias"]
    state["model.surprise"] = torch.zeros(1)
    state["model.state_proj.weight"] = torch.zeros(3, 3)
    with pytest.raises(ValueError, match="does not fit") as e:
        weights.load_released(policy, state, "file x")
    for part in (
        "file x",
        "missing model.wm_out_proj.bias",
        "unexpected model.surprise",
        "model.state_proj.weight is (3, 3)",
    ):
        assert part in str(e.value)
    assert torch.equal(policy.world_model.embed.weight, before)


def test_path_without_weights_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"no \.safetensors"):
        weights.read_released(tmp_path)
    with pytest.raises(ValueError, match=r"no \.safetensors"):
        weights.read_released(tmp_path / "missing.safetensors")
