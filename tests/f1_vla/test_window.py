"""What a window reports about the memory, and carrying the memory without predicting."""

import dataclasses

import pytest
import torch

from f1_vla import world_model
from f1_vla.builders import build_policy
from f1_vla.config import HeadLoss


@pytest.fixture(params=[False, True], ids=["plain", "latent_head"])
def policy(request, debug_config):
    debug_config.world_model.latent_head = request.param
    policy = build_policy(debug_config).eval()
    with torch.no_grad():
        for name, p in policy.named_parameters():
            if name.startswith("memory.") or "latent_head" in name:
                p.normal_(std=0.1)
    return policy


def test_the_reported_states_are_the_ones_each_step_read(policy, debug_config, make_batch) -> None:
    batch = make_batch(debug_config, B=3, T=4)
    batch.reset = torch.zeros(3, 4, dtype=torch.bool)
    batch.reset[1, 2] = True
    start = torch.randn_like(policy.initial_memory_state(3))
    states = policy(batch, mode="world_model_window", initial_memory_state=start)["memory_states"]
    assert states.shape == (3, 4, *start.shape[::2]) and not states.requires_grad
    h = start
    for t in range(4):
        read = h.clone()
        read[:, batch.reset[:, t]] = 0.0
        torch.testing.assert_close(states[:, t].permute(1, 0, 2), read)
        h = policy(batch.window(t, t + 1), mode="world_model_window", initial_memory_state=h)["memory_state"].detach()


def test_burn_in_ends_in_the_state_that_predicting_ends_in(policy, debug_config, make_batch) -> None:
    batch = make_batch(debug_config, B=2, T=3)
    h = torch.randn_like(policy.initial_memory_state(2))
    full = policy(batch, mode="world_model_window", initial_memory_state=h)["memory_state"]
    carried = policy(batch, mode="memory_only", initial_memory_state=h)
    assert set(carried) == {"memory_state", "memory_states"}
    torch.testing.assert_close(carried["memory_state"], full, atol=1e-5, rtol=1e-5)


def test_burn_in_needs_no_targets(policy, debug_config, make_batch) -> None:
    batch = make_batch(debug_config, B=2, T=2)
    h = policy.initial_memory_state(2)
    expected = policy(batch, mode="memory_only", initial_memory_state=h)["memory_state"]
    batch.target_ids = batch.target_latents = None
    assert torch.equal(policy(batch, mode="memory_only", initial_memory_state=h)["memory_state"], expected)


def test_a_burned_in_window_continues_like_one_long_window(policy, debug_config, make_batch) -> None:
    batch = make_batch(debug_config, B=2, T=5)
    h = policy.initial_memory_state(2)
    whole = policy(batch, mode="world_model_window", initial_memory_state=h)["nll"][:, 3:]
    h = policy(batch.window(0, 3), mode="memory_only", initial_memory_state=h)["memory_state"]
    rest = policy(batch.window(3, 5), mode="world_model_window", initial_memory_state=h)["nll"]
    torch.testing.assert_close(rest, whole, atol=1e-4, rtol=1e-4)


def test_steps_that_see_other_cameras_have_masks_of_their_own(policy, debug_config, make_batch) -> None:
    batch = make_batch(debug_config, T=3)
    batch.camera_mask = batch.camera_mask.clone()
    batch.camera_mask[1, 1, 0] = False
    h = policy.initial_memory_state(2)
    with torch.no_grad():
        whole = policy(batch, mode="world_model_window", initial_memory_state=h)["nll"]
        for t in range(3):
            out = policy(batch.window(t, t + 1), mode="world_model_window", initial_memory_state=h)
            torch.testing.assert_close(whole[:, t : t + 1], out["nll"], atol=1e-5, rtol=1e-5)
            h = out["memory_state"]


# --- linear cross entropy in chunks -----------------------------------------------------------------------------------


def losses(policy, batch, kind: HeadLoss) -> dict:
    policy.cfg.world_model.head_loss = kind
    policy.zero_grad()
    out = policy(batch, mode="world_model_window", initial_memory_state=policy.initial_memory_state(2))
    (out["loss"] + out["ensemble_loss"]).backward()
    return out | {"grads": {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}}


@pytest.mark.skipif(not hasattr(torch.nn.functional, "linear_cross_entropy"), reason="needs torch 2.13")
def test_fused_cross_entropy_gives_the_same_losses_accuracies_and_gradients(debug_config, make_batch, monkeypatch):
    debug_config.world_model.ensemble_heads = 2
    policy, batch = build_policy(debug_config).eval(), make_batch(debug_config)
    batch.valid[1, 2], batch.bootstrap = False, torch.ones(2, 2, dtype=torch.bool)
    monkeypatch.setattr(world_model, "FUSED_ROWS", 50)  # several chunks
    plain, fused = losses(policy, batch, HeadLoss.plain), losses(policy, batch, HeadLoss.fused)
    assert torch.equal(plain["correct"], fused["correct"])
    for name in ("loss", "ensemble_loss", "nll"):
        torch.testing.assert_close(fused[name], plain[name], atol=1e-5, rtol=1e-5)
    assert plain["grads"].keys() == fused["grads"].keys()
    for name, grad in plain["grads"].items():
        torch.testing.assert_close(fused["grads"][name], grad, atol=1e-6, rtol=1e-4)


@pytest.mark.skipif(not hasattr(torch.nn.functional, "linear_cross_entropy"), reason="needs torch 2.13")
def test_fused_cross_entropy_keeps_no_logits(debug_config, make_batch):
    debug_config.tokenizer.vocab_size = 2048
    policy, batch = build_policy(debug_config).eval(), make_batch(debug_config)
    kept = {}
    for kind in (HeadLoss.plain, HeadLoss.auto):
        policy.cfg.world_model.head_loss = kind
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: (s.append(t.numel()), t)[1], lambda t: t):
            policy(batch, mode="world_model_window", initial_memory_state=policy.initial_memory_state(2))
        kept[kind] = max(sizes)
    logits = 2 * 3 * debug_config.tokenizer.num_tokens * 2048
    assert kept[HeadLoss.plain] == logits and kept[HeadLoss.auto] < logits / 2


def test_fused_cross_entropy_that_this_pytorch_lacks_is_refused_and_auto_does_without(debug_config, monkeypatch):
    monkeypatch.delattr(torch.nn.functional, "linear_cross_entropy", raising=False)
    assert not world_model.use_fused(dataclasses.replace(debug_config.world_model, head_loss=HeadLoss.auto))
    with pytest.raises(ValueError, match=r"head_loss=fused needs torch 2\.13 or newer, this is .*; use auto or plain"):
        world_model.use_fused(dataclasses.replace(debug_config.world_model, head_loss=HeadLoss.fused))
    debug_config.world_model.latent_head, debug_config.world_model.head_loss = True, HeadLoss.fused
    with pytest.raises(ValueError, match="needs linear logits; switch latent_head off"):
        debug_config.validate()
