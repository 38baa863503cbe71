"""Acting with a queue, the key/value cache in place, precision, and what is never copied."""

import dataclasses

import pytest
import torch

from f1_vla import trunk as trunk_module
from f1_vla.acting import look_ahead, plan_suffix, velocity
from f1_vla.actor import Actor
from f1_vla.batch import F1Batch
from f1_vla.builders import build_policy
from f1_vla.loading import load_policy
from f1_vla.lora import Role, add_lora, lora_config
from f1_vla.parity_outputs import Sizes, fixture_batch
from f1_vla.policy import F1Policy
from f1_vla.rollout import Sampling
from f1_vla.trunk import KVCache, positions_of
from f1_vla.weights import export_directory, load_released
from f1_vla.window import memory_window


@pytest.fixture
def policy(debug_policy) -> F1Policy:
    with torch.no_grad():  # the memory acts
        debug_policy.memory.out_proj.weight.normal_()
    return debug_policy


def count_calls(monkeypatch, policy) -> list[tuple[str, int]]:
    """(mode, rows) of every forward."""
    seen = []
    original = F1Policy.forward

    def spy(self, batch, mode, initial_memory_state=None, **options):
        seen.append((mode, batch.size))
        return original(self, batch, mode, initial_memory_state, **options)

    monkeypatch.setattr(F1Policy, "forward", spy)
    return seen


def test_queue_hands_out_the_chunk_in_order_and_samples_again_when_it_is_empty(policy, debug_config, make_batch):
    noise = torch.randn(3, debug_config.chunk_size, 32)
    batch = make_batch(debug_config, B=3, T=1)
    actor = Actor(policy, 3, action_dim=8)
    first = policy(batch, mode="actions", initial_memory_state=actor.h, noise=noise)["actions"]
    taken = [actor.select_action(batch, noise) for _ in range(debug_config.chunk_size)]
    torch.testing.assert_close(torch.stack(taken, 1), first[:, :, :8])
    again = policy(batch, mode="actions", initial_memory_state=actor.h, noise=noise)["actions"]
    torch.testing.assert_close(actor.select_action(batch, noise), again[:, 0, :8])


def test_rows_run_out_and_restart_independently(policy, debug_config, make_batch, monkeypatch):
    batch, actor = make_batch(debug_config, B=3, T=1), Actor(policy, 3, action_dim=8)  # chunk of 2
    calls = count_calls(monkeypatch, policy)
    actor.select_action(batch)
    actor.reset(torch.tensor([False, True, False]))
    assert actor.h[:, 1].abs().max() == 0 and actor.h[:, 0].abs().max() > 0
    actor.select_action(batch)  # row 1 begins anew, the others have one action left
    actor.select_action(batch)  # rows 0 and 2 are empty
    expected = [("actions", 3), ("write_memory", 3)]
    expected += [("actions", 1), ("write_memory", 1), ("memory_only", 2)]
    expected += [("actions", 2), ("write_memory", 2), ("memory_only", 1)]
    assert calls == expected


@pytest.mark.parametrize("execute", [1, 2])
def test_memory_is_written_with_the_executed_action_whether_or_not_a_chunk_was_sampled(
    policy, debug_config, make_batch, execute
):
    batch = make_batch(debug_config, B=2, T=2)
    actor, h = Actor(policy, 2, action_dim=8, execute=execute), policy.initial_memory_state(2)
    for t in range(2):
        step = batch.window(t, t + 1)
        action = actor.select_action(step)
        done = dataclasses.replace(step.hide_current_action(), actions=step.actions.clone())
        done.actions[:, 0, -1] = torch.nn.functional.pad(action, (0, 24))
        with torch.no_grad():
            h = memory_window(policy, done, h)["memory_state"]
        torch.testing.assert_close(actor.h, h, atol=1e-6, rtol=1e-5)


def test_rows_of_a_batch_act_as_they_would_alone(policy, debug_config, make_batch):
    batch, noise = make_batch(debug_config, B=3, T=1), torch.randn(3, debug_config.chunk_size, 32)
    together = Actor(policy, 3, action_dim=8).select_action(batch, noise)
    for i in range(3):
        rows = slice(i, i + 1)
        alone = Actor(policy, 1, action_dim=8).select_action(batch.rows(rows), noise[rows])
        torch.testing.assert_close(together[rows], alone, atol=1e-5, rtol=1e-5)


def test_foresight_can_use_any_number_of_scales_and_more_change_the_action(policy, debug_config, make_batch):
    batch, noise = make_batch(debug_config, T=1), torch.randn(2, debug_config.chunk_size, 32)
    got = [Actor(policy, 2, 8, num_scales=n).select_action(batch, noise) for n in (1, 2, 3)]
    assert not torch.allclose(got[0], got[1], atol=1e-5) and not torch.allclose(got[1], got[2], atol=1e-6)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("execute", 3),
        ("num_scales", 4),
        ("action_dim", 33),
        ("execute", 0),
        ("num_steps", 0),
        ("precision", torch.int8),
    ],
)
def test_numbers_the_model_does_not_have_are_refused(policy, option, value):
    with pytest.raises(ValueError, match=f"{option} is {value}; "):
        Actor(policy, 2, **({"action_dim": 8} | {option: value}))


def test_batch_of_other_rows_than_the_actor_has_is_refused(policy, debug_config, make_batch):
    with pytest.raises(ValueError, match="the batch has 2 rows, this Actor has 3"):
        Actor(policy, 3, 8).select_action(make_batch(debug_config, T=1))


@pytest.mark.parametrize(
    ("mode", "options", "message"),
    [
        ("actions", {"noise": torch.zeros(2, 9, 32)}, r"noise is \(2, 9, 32\), this batch and model take \(2, 2, 32\)"),
        ("actions", {"num_steps": 0}, "num_steps is 0"),
        ("actions", {"num_scales": 4}, "num_scales is 4; this model has 1 to 3"),
        ("predict_images", {"num_scales": 0}, "num_scales is 0; this model has 1 to 3"),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused(policy, debug_config, make_batch, mode, options, message):
    with pytest.raises(ValueError, match=message):
        policy(make_batch(debug_config, T=1), mode=mode, initial_memory_state=policy.initial_memory_state(2), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": torch.zeros(2, 1, 9)}, r"state is \(2, 1, 9\), this model takes \(\.\.\., 32\)"),
        ({"actions": torch.zeros(2, 1, 3, 32)}, r"actions is .* takes \(\.\.\., 4, 32\)"),
        ({"lang_tokens": torch.zeros(2, 7).long()}, r"has 7 tokens, tokenizer_max_length is 6; .*max_length=7"),
        ({"lang_tokens": torch.zeros(2, 5).long()}, r"lang_masks is \(2, 6\), lang_tokens is \(2, 5\)"),
    ],
)
def test_batch_of_other_sizes_than_the_model_is_refused(policy, debug_config, make_batch, change, message):
    batch = dataclasses.replace(make_batch(debug_config, T=1), **change)
    with pytest.raises(ValueError, match=message):
        policy(batch, mode="actions", initial_memory_state=policy.initial_memory_state(2))


# --- key/value cache --------------------------------------------------------------------------------------------------


def prefix(policy: F1Policy, batch: F1Batch, capacity: int) -> KVCache:
    und, und_valid = policy.und_inputs(batch)
    gen = policy.gen_prefix(batch, None)
    valid = torch.cat([und_valid[:, 0], torch.ones(gen.shape[:2], dtype=torch.bool)], 1)
    block = policy.blocks(und.shape[2], 1)
    empty = KVCache.reserve(batch.size, capacity, policy.device) if capacity else None
    streams = {"und": und[:, 0], "gen": gen}
    return policy.trunk(streams, positions_of(valid), block, valid, cache=empty, keep_cache=True)[1]


def extend(policy: F1Policy, cache: KVCache, x: torch.Tensor, keep: bool = True):
    n = x.shape[1]
    positions, valid = torch.arange(n)[None] + len(cache), torch.ones(x.shape[:2], dtype=torch.bool)
    block = torch.full((1, n), 2, dtype=torch.int32)
    return policy.trunk({"gen": x}, positions, block, valid, cache=cache, keep_cache=keep)


def test_cache_in_place_equals_a_concatenated_one_even_when_it_branches_or_runs_over(policy, debug_config, make_batch):
    batch = make_batch(debug_config, T=1)
    a, b, c = (torch.randn(2, n, 32) for n in (4, 4, 5))
    with torch.no_grad():
        plain = prefix(policy, batch, 0)
        roomy = prefix(policy, batch, len(plain) + 8)
        results = []
        for cache in (plain, roomy):
            outs = [extend(policy, cache, a, keep=False)[0]["gen"]]
            out, first = extend(policy, cache, a)
            outs.append(out["gen"])
            out, second = extend(policy, cache, b)  # a branch of the same length
            outs += [out["gen"], extend(policy, second, c)[0]["gen"], extend(policy, first, b)[0]["gen"]]
            outs.append(extend(policy, first, c)[0]["gen"])  # more than there is room for
            results.append(outs)
    for x, y in zip(*results, strict=True):
        torch.testing.assert_close(x, y, atol=1e-6, rtol=1e-5)


def test_no_euler_step_copies_the_prefix(policy, debug_config, make_batch, monkeypatch):
    batch, state = make_batch(debug_config, T=1), torch.randn(2, 32)
    with torch.no_grad():
        foresight = look_ahead(policy, batch, policy.initial_memory_state(2), 2, Sampling())
        plan = plan_suffix(policy, foresight, debug_config.chunk_size)
        x, t = torch.randn(2, debug_config.chunk_size, 32), torch.ones(2)
        seen = []
        original = trunk_module.kernels.attention
        monkeypatch.setattr(
            trunk_module.kernels,
            "attention",
            lambda q, k, *a, **kw: (seen.append(k.data_ptr()), original(q, k, *a, **kw))[1],
        )
        velocity(policy, foresight, state, x, t, plan)
        velocity(policy, foresight, state, x, t, plan)
    layers = debug_config.trunk.num_layers
    assert seen[:layers] == seen[layers:] == [k.data_ptr() for k in foresight.cache.keys]


def test_gradients_flow_through_a_cache_made_for_training(policy, debug_config, make_batch):
    foresight = look_ahead(policy, make_batch(debug_config, T=1), policy.initial_memory_state(2), 2, Sampling())
    assert foresight.cache.room == [] and foresight.cache.keys[0].requires_grad


# --- precision --------------------------------------------------------------------------------------------------------


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual.float() - expected).norm() / expected.norm()).item()


def test_bfloat16_stays_within_two_percent_of_float32_on_the_recorded_inputs(
    parity_config, parity_state, parity_policy, parity_data
):
    half = build_policy(parity_config, dtype=torch.bfloat16)
    load_released(half, parity_state)
    half.memory.load_state_dict(parity_policy.memory.state_dict())
    batch = fixture_batch(parity_policy, parity_data, Sizes(4, 4))
    h, noise = parity_policy.initial_memory_state(2), parity_data["in.noise"]

    def run(policy):
        forced = policy(batch, mode="world_model", initial_memory_state=h, return_logits=True)
        # One scale: no drawn token is fed back, whose choice rounding could change.
        acted = policy(batch, mode="actions", initial_memory_state=h, noise=noise, num_scales=1)
        return forced["logits"], forced["loss"], forced["memory_state"], acted["actions"], acted["velocities"]

    with torch.no_grad():
        exact = run(parity_policy)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            rounded = run(half)
    errors = [relative(a, b) for a, b in zip(rounded, exact, strict=True)]
    assert max(errors) < 2e-2 and errors[0] > 1e-4  # it really ran in bfloat16


def test_actor_in_bfloat16_returns_float32_actions_close_to_float32(policy, debug_config, make_batch):
    batch, noise = make_batch(debug_config, T=1), torch.randn(2, debug_config.chunk_size, 32)
    exact, rounded = (
        Actor(policy, 2, 8, num_scales=1, precision=p).select_action(batch, noise)
        for p in (torch.float32, torch.bfloat16)
    )
    assert rounded.dtype == torch.float32 and 0 < relative(rounded, exact) < 2e-2


# --- one base ---------------------------------------------------------------------------------------------------------


def storages(policy: F1Policy) -> dict[int, int]:
    """Address -> bytes of everything the policy holds."""
    tensors = [*policy.parameters(), *policy.buffers()]
    return {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}


def test_adapters_of_all_roles_share_one_base_in_memory(debug_policy):
    before = {n: p.data_ptr() for n, p in debug_policy.named_parameters()}
    size = sum(storages(debug_policy).values())
    added = []
    for role in (Role.world_model, Role.explorer):
        config = lora_config(debug_policy, role, 2, 4, 0.0, ["q_proj", "v_proj"])
        added += add_lora(debug_policy, role, config)
    after = {n.replace(".base_layer.", "."): p.data_ptr() for n, p in debug_policy.named_parameters()}
    assert {n: after[n] for n in before} == before
    adapters = sum(debug_policy.get_parameter(n).numel() * 4 for n in added)
    assert sum(storages(debug_policy).values()) == size + adapters


def test_loading_a_checkpoint_leaves_no_second_copy(parity_config, parity_policy, tmp_path):
    export_directory(parity_policy, tmp_path / "x")
    policy = load_policy(parity_config, str(tmp_path / "x"))
    needed = sum(t.numel() * t.element_size() for t in (*policy.parameters(), *policy.buffers()))
    assert sum(storages(policy).values()) == needed
