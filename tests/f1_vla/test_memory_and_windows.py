"""Memory, BPTT and causality of the teacher-forced world model."""

import dataclasses

import pytest
import torch

from f1_vla.builders import build_policy


@pytest.fixture
def policy(debug_policy):
    """The memory acts: its zero-initialised read projection is given weight."""
    with torch.no_grad():
        debug_policy.memory.out_proj.weight.normal_(std=1.0)
        debug_policy.memory.memory_gate.fill_(1.0)
        debug_policy.world_model.condition.out.weight.normal_(std=0.1)
    return debug_policy


def run(policy, batch, h=None, mode="world_model_window", **options):
    h = policy.initial_memory_state(batch.size) if h is None else h
    return policy(batch, mode=mode, initial_memory_state=h, return_logits=True, **options)


def test_gradient_of_the_last_loss_reaches_the_initial_state_through_the_window(policy, debug_config, make_batch):
    batch = make_batch(debug_config, T=3)
    batch.valid = torch.tensor([[False, False, True]] * 2)
    h = policy.initial_memory_state(2).requires_grad_()
    run(policy, batch, h)["loss"].backward()
    assert (h.grad.abs().sum(-1) > 0).all()  # every layer, every row


def test_gradient_is_exactly_zero_across_a_detach(policy, debug_config, make_batch):
    batch = make_batch(debug_config, T=4)
    batch.valid = torch.tensor([[False, False, False, True]] * 2)
    h = policy.initial_memory_state(2).requires_grad_()
    run(policy, batch, h, memory_backprop=False)["loss"].backward()
    assert h.grad is None or h.grad.abs().max() == 0

    h = policy.initial_memory_state(2).requires_grad_()
    first = run(policy, batch.window(0, 2), h)
    run(policy, batch.window(2, 4), first["memory_state"].detach())["loss"].backward()
    assert h.grad is None


def test_gradient_stops_at_a_reset(policy, debug_config, make_batch):
    batch = make_batch(debug_config, T=3)
    batch.reset[0, 1] = True
    batch.valid = torch.tensor([[False, False, True]] * 2)
    h = policy.initial_memory_state(2).requires_grad_()
    run(policy, batch, h)["loss"].backward()
    assert h.grad[:, 0].abs().max() == 0
    assert h.grad[:, 1].abs().max() > 0


def test_permuted_rows_give_permuted_results(policy, debug_config, make_batch):
    batch, order = make_batch(debug_config, B=3), torch.tensor([2, 0, 1])
    h = torch.randn(2, 3, 16)
    with torch.no_grad():
        a, b = run(policy, batch, h), run(policy, batch.rows(order), h[:, order])
    torch.testing.assert_close(a["logits"][order], b["logits"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(a["memory_state"][:, order], b["memory_state"], atol=1e-6, rtol=1e-5)


def test_reset_row_equals_a_fresh_episode(policy, debug_config, make_batch):
    batch = make_batch(debug_config, T=3)
    batch.reset[1, 1] = True
    with torch.no_grad():
        whole = run(policy, batch, torch.randn(2, 2, 16))
        fresh = run(policy, batch.window(1, 3).rows(slice(1, 2)))
    torch.testing.assert_close(whole["logits"][1:, 1:], fresh["logits"], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole["memory_state"][:, 1:], fresh["memory_state"], atol=1e-6, rtol=1e-5)


def test_one_long_window_equals_step_by_step_unrolling(policy, debug_config, make_batch):
    batch = make_batch(debug_config, T=4)
    h = policy.initial_memory_state(2)
    whole = run(policy, batch, h)
    losses, logits = [], []
    for t in range(4):
        out = run(policy, batch.window(t, t + 1), h, mode="world_model")
        h = out["memory_state"]
        losses.append(out["loss"])
        logits.append(out["logits"])
    torch.testing.assert_close(whole["logits"], torch.cat(logits, 1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(whole["memory_state"], h, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(whole["loss"], torch.stack(losses).mean())
    name = "memory.cells.0.weight_hh"
    params = dict(policy.named_parameters())
    g1 = torch.autograd.grad(whole["loss"], params[name])[0]
    g2 = torch.autograd.grad(torch.stack(losses).mean(), params[name])[0]
    torch.testing.assert_close(g1, g2, atol=1e-6, rtol=1e-4)


def test_memory_written_at_t_does_not_depend_on_frame_t_plus_1(policy, debug_config, make_batch):
    batch = make_batch(debug_config, T=2)
    other = dataclasses.replace(batch, target_ids=(batch.target_ids + 7) % debug_config.tokenizer.vocab_size)
    with torch.no_grad():
        a, b = run(policy, batch), run(policy, other)
    assert not torch.equal(a["logits"], b["logits"])
    assert torch.equal(a["memory_state"], b["memory_state"])


def test_memory_reads_the_executed_action_even_when_it_is_hidden_from_the_world_model(policy, debug_config, make_batch):
    batch = make_batch(debug_config, T=1)
    batch.action_known[..., -1] = False
    other = dataclasses.replace(batch, actions=batch.actions.clone())
    other.actions[..., -1, :] += 1.0
    with torch.no_grad():
        a, b = run(policy, batch), run(policy, other)
    assert torch.equal(a["logits"], b["logits"])
    assert not torch.equal(a["memory_state"], b["memory_state"])


def test_prediction_depends_on_a_known_action_and_on_the_memory(policy, debug_config, make_batch):
    batch = make_batch(debug_config, T=1)
    batch.action_known[:] = True
    other = dataclasses.replace(batch, actions=batch.actions.clone())
    other.actions[..., -1, :] += 1.0
    with torch.no_grad():
        base = run(policy, batch)["logits"]
        assert not torch.allclose(base, run(policy, other)["logits"], atol=1e-4)
        assert not torch.allclose(base, run(policy, batch, torch.ones(2, 2, 16))["logits"], atol=1e-4)


@pytest.mark.parametrize("scale", [0, 1, 2])
def test_target_tokens_of_a_scale_change_no_logits_of_that_or_earlier_scales(policy, debug_config, make_batch, scale):
    batch = make_batch(debug_config, T=1)
    starts = [0, 1, 5, 21]
    changed = batch.target_ids.clone()
    block = slice(starts[scale], starts[scale + 1])
    changed[..., block] = (changed[..., block] + 5) % debug_config.tokenizer.vocab_size
    with torch.no_grad():
        a, b = run(policy, batch), run(policy, dataclasses.replace(batch, target_ids=changed))
    torch.testing.assert_close(a["logits"][..., : block.stop, :], b["logits"][..., : block.stop, :], atol=1e-6, rtol=0)
    if scale < 2:
        assert (a["logits"] - b["logits"])[..., block.stop :, :].abs().max() > 1e-4


def test_fewer_resolutions_give_the_first_logits_of_the_full_run(policy, debug_config, make_batch):
    batch = make_batch(debug_config, T=1)
    with torch.no_grad():
        full = run(policy, batch)["logits"]
        policy.cfg.world_model.num_resolutions = 2
        cut = run(policy, batch)["logits"]
    assert cut.shape[2] == 5
    torch.testing.assert_close(cut, full[:, :, :5], atol=1e-5, rtol=1e-5)


def test_hidden_camera_does_not_matter(policy, debug_config, make_batch):
    batch = make_batch(debug_config)
    batch.camera_mask[..., 0] = False
    other = dataclasses.replace(batch, vision=batch.vision.clone())
    other.vision[:, :, 0] += 3.0
    with torch.no_grad():
        a, b = run(policy, batch), run(policy, other)
    assert torch.equal(a["logits"], b["logits"])
    assert torch.equal(a["memory_state"], b["memory_state"])


def test_invalid_steps_do_not_enter_loss_and_metrics(policy, debug_config, make_batch):
    batch = make_batch(debug_config, T=2)
    batch.valid = torch.tensor([[True, False], [True, True]])
    with torch.no_grad():
        out = run(policy, batch)
    nll = out["nll"].mean(-1)
    torch.testing.assert_close(out["loss"], (nll[0, 0] + nll[1, 0] + nll[1, 1]) / 3)
    sizes = torch.tensor([1.0, 4.0, 16.0])
    torch.testing.assert_close((out["metrics"]["loss_per_scale"] * sizes).sum() / 21, out["loss"])


def test_forced_inputs_are_corrupted_while_training_only_at_the_configured_rate(debug_policy, debug_config):
    wm, x = debug_policy.world_model, torch.zeros(2000, 20, 8)
    debug_config.world_model.mask_sample_prob, debug_config.world_model.mask_token_prob = 0.5, 0.25
    assert wm.eval().corrupt(x) is x
    replaced = wm.train().corrupt(x) == wm.mask_embedding
    assert torch.equal(replaced.all(-1), replaced.any(-1))  # whole vectors
    assert abs(replaced.float().mean().item() - 0.125) < 0.01
    assert abs(replaced.any(-1).any(-1).float().mean().item() - 0.5) < 0.05


def test_additions_have_no_effect_at_initialisation(debug_config, make_batch):
    batch = make_batch(debug_config, T=1)
    torch.manual_seed(3)
    policy = build_policy(debug_config).eval()
    with torch.no_grad():
        base = run(policy, batch)["logits"]
        other = dataclasses.replace(batch, actions=batch.actions + 1, state=batch.state + 1)
        assert torch.equal(base, run(policy, other, torch.ones(2, 2, 16))["logits"])


@pytest.mark.parametrize("project", [True, False])
def test_memory_enters_before_or_after_the_embedding_with_the_right_width(debug_config, project):
    debug_config.memory.memory_project_to_vae_dim = project
    policy = build_policy(debug_config).eval()
    assert policy.memory.out_proj.out_features == (8 if project else 32)
    torch.nn.init.normal_(policy.memory.out_proj.weight, std=1.0)
    h = torch.randn(2, 2, 16)
    with torch.no_grad():
        # By definition: add the read vector to every embedded history vector (tokens 1..L-1) and nowhere else.
        gen = torch.zeros(2, 30, 32)
        added = policy.add_memory(gen, h)
        read = policy.memory.read(h)
        expected = read @ policy.world_model.embed.weight.T if project else read
    assert added[:, 0].abs().max() == 0 and added[:, 21:].abs().max() == 0
    torch.testing.assert_close(added[:, 1:21], expected[:, None].expand(-1, 20, -1))


def test_memory_switched_off_returns_the_state_unchanged(debug_config, make_batch):
    debug_config.memory.memory_enabled = False
    policy = build_policy(debug_config)
    out = run(policy, make_batch(debug_config))
    assert out["memory_state"].abs().max() == 0
    out["loss"].backward()


@pytest.mark.parametrize(
    "mode", ["world_model_window", "world_model", "joint", "actions", "predict_images", "write_memory"]
)
def test_missing_memory_state_is_an_error_naming_the_call(debug_policy, debug_config, make_batch, mode):
    with pytest.raises(ValueError, match=rf"initial_memory_state is None in forward\(mode='{mode}'\)"):
        debug_policy(make_batch(debug_config, T=1), mode=mode, initial_memory_state=None)


def test_memory_state_of_another_shape_is_an_error(debug_policy, debug_config, make_batch):
    with pytest.raises(ValueError, match="expected"):
        debug_policy(make_batch(debug_config), mode="world_model_window", initial_memory_state=torch.zeros(2, 5, 16))


def test_gradient_checkpointing_changes_no_gradient(debug_config, make_batch):
    def gradient(recompute):
        torch.manual_seed(5)
        debug_config.trunk.gradient_checkpointing = recompute
        policy = build_policy(debug_config).eval()
        run(policy, make_batch(debug_config))["loss"].backward()
        return policy.trunk.gen.layers[0].self_attn.k_proj.weight.grad

    torch.testing.assert_close(gradient(False), gradient(True), atol=0, rtol=1e-6)


def test_bfloat16_weights_run_under_autocast_with_float32_heads(debug_config, make_batch):
    def loss(dtype):
        torch.manual_seed(5)
        policy = build_policy(debug_config, dtype=dtype).eval()
        assert policy.world_model.out_proj.weight.dtype == policy.memory.in_proj.weight.dtype == torch.float32
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = run(policy, make_batch(debug_config))
        out["loss"].backward()
        return out["loss"].detach()

    assert abs(loss(torch.bfloat16) - loss(torch.float32)) < 0.02


def test_bfloat16_autocast_stays_close_and_keeps_the_memory_in_float32(policy, debug_config, make_batch):
    batch = make_batch(debug_config)
    with torch.no_grad():
        exact = run(policy, batch)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = run(policy, batch)
    assert half["memory_state"].dtype == half["loss"].dtype == half["logits"].dtype == torch.float32
    assert abs(half["loss"] - exact["loss"]) < 0.02
