"""What a window reports about the memory, and carrying the memory without predicting."""

import pytest
import torch

from f1_vla.builders import build_policy


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
