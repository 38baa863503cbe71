"""Which parameters train: freezing switches and adapters."""

import pytest
import torch

from f1_vla.lora import Role, add_lora, load_lora, lora_config, lora_state_dict
from f1_vla.trainable import (
    freeze_action_parts,
    memory_gate_parameters,
    part_of,
    set_policy_requires_grad,
    trainable_table,
)


def trainable_parts(policy) -> set[str]:
    return {part_of(n) for n, p in policy.named_parameters() if p.requires_grad}


ALL = {
    "vision projector",
    "text embedding",
    "und expert",
    "gen expert",
    "act expert",
    "action projections",
    "action and state conditioning",
    "world-model embeddings and head",
    "memory",
}


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({"freeze_vision_encoder": True}, ALL),
        ({"freeze_vision_encoder": False}, ALL | {"vision tower"}),
        ({"freeze_gen_expert": True}, ALL - {"gen expert"}),
        ({"train_act_expert_only": True}, ALL - {"vision projector", "text embedding", "und expert"}),
        (
            {"train_gen_expert_only": True},
            {"gen expert", "world-model embeddings and head", "action and state conditioning", "memory"},
        ),
    ],
)
def test_each_switch_freezes_exactly_its_parts(debug_policy, switches, expected):
    set_policy_requires_grad(debug_policy, **switches)
    assert trainable_parts(debug_policy) == expected


def test_contradicting_switches_are_refused(debug_policy):
    with pytest.raises(ValueError, match="exclude each other"):
        set_policy_requires_grad(debug_policy, train_act_expert_only=True, train_gen_expert_only=True)


def test_table_lists_every_part_and_the_totals(debug_policy):
    set_policy_requires_grad(debug_policy)
    lines = trainable_table(debug_policy).splitlines()
    total = sum(p.numel() for p in debug_policy.parameters())
    trained = sum(p.numel() for p in debug_policy.parameters() if p.requires_grad)
    assert lines[-1].split() == ["total", f"{trained:,}", f"{total:,}"]
    assert any(line.startswith("tokenizer") and line.split()[-2] == "0" for line in lines)


@pytest.mark.parametrize("T", [1, 3])
def test_every_trainable_parameter_of_the_teacher_gets_a_gradient(debug_policy, debug_config, make_batch, T):
    set_policy_requires_grad(debug_policy)
    freeze_action_parts(debug_policy)
    h = debug_policy.initial_memory_state(2)
    debug_policy(make_batch(debug_config, T=T), mode="world_model_window", initial_memory_state=h)["loss"].backward()
    assert [n for n, p in debug_policy.named_parameters() if p.requires_grad and p.grad is None] == []
    assert [n for n, p in debug_policy.named_parameters() if not p.requires_grad and p.grad is not None] == []


def test_memory_gate_parameters_are_the_gate_and_the_read_projection(debug_policy):
    assert {p.numel() for p in memory_gate_parameters(debug_policy)} == {1, 16 * 8}


def config(policy, role, **kw):
    options = {"r": 2, "lora_alpha": 8, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]} | kw
    return lora_config(policy, role, **options)


@pytest.mark.parametrize(
    ("role", "experts"), [(Role.world_model, {"und expert", "gen expert"}), (Role.explorer, {"act expert"})]
)
def test_adapters_stay_inside_the_experts_of_their_role(debug_policy, role, experts):
    added = add_lora(debug_policy, role, config(debug_policy, role))
    assert {part_of(n) for n in added} == experts
    # 2 layers, q and v, matrices A and B, per expert
    assert len(added) == 2 * 2 * 2 * len(experts)
    for n, p in debug_policy.named_parameters():
        if part_of(n) in experts:
            assert p.requires_grad == (n in added), n


def test_vision_tower_gets_adapters_only_when_asked(debug_policy):
    role = Role.world_model
    added = add_lora(debug_policy, role, config(debug_policy, role, vision_tower=True))
    assert "vision tower" in {part_of(n) for n in added}


def test_two_roles_share_one_base_and_keep_their_flags(debug_policy):
    set_policy_requires_grad(debug_policy)
    first = add_lora(debug_policy, Role.world_model, config(debug_policy, Role.world_model))
    second = add_lora(debug_policy, Role.explorer, config(debug_policy, Role.explorer))
    flags = {n: p.requires_grad for n, p in debug_policy.named_parameters()}
    assert all(flags[n] for n in first + second)
    assert flags["world_model.out_proj.weight"] and flags["vision.projector.weight"]
    assert not any(v for n, v in flags.items() if n.startswith("tokenizer."))


def test_fresh_adapter_changes_nothing_and_a_saved_one_comes_back(debug_policy, debug_config, make_batch):
    batch, h = make_batch(debug_config), debug_policy.initial_memory_state(2)
    run = lambda: debug_policy(batch, mode="world_model_window", initial_memory_state=h, return_logits=True)["logits"]  # noqa: E731
    with torch.no_grad():
        before = run()
        added = add_lora(debug_policy, Role.world_model, config(debug_policy, Role.world_model))
        assert torch.equal(run(), before)
        params = dict(debug_policy.named_parameters())
        for n in added:
            params[n].normal_(std=0.3)
        changed, state = run(), {k: v.clone() for k, v in lora_state_dict(debug_policy, Role.world_model).items()}
        assert not torch.allclose(changed, before, atol=1e-3)
        for n in added:
            params[n].zero_()
        load_lora(debug_policy, Role.world_model, state)
        assert torch.equal(run(), changed)
        state.pop(next(iter(state)))
        with pytest.raises(ValueError, match="missing"):
            load_lora(debug_policy, Role.world_model, state)


@pytest.mark.parametrize("order", [list(Role), list(Role)[::-1]])
def test_the_adapter_of_one_role_goes_on_acting_and_learning_beside_that_of_another(
    debug_policy, debug_config, make_batch, order
):
    batch, h = make_batch(debug_config, T=1), debug_policy.initial_memory_state(2)

    def run(mode, **options):
        torch.manual_seed(0)
        return debug_policy(batch, mode=mode, initial_memory_state=h, **options)

    def said():
        with torch.no_grad():
            return run("world_model_window", return_logits=True)["logits"], run("actions")["actions"]

    plain = said()
    for n in (first := add_lora(debug_policy, order[0], config(debug_policy, order[0]))):
        debug_policy.get_parameter(n).data.normal_(std=0.3)
    alone = said()
    assert any(not torch.allclose(a, b, atol=1e-3) for a, b in zip(plain, alone, strict=True))
    second = add_lora(debug_policy, order[1], config(debug_policy, order[1]))  # fresh: it changes nothing yet
    assert all(torch.equal(a, b) for a, b in zip(alone, said(), strict=True))
    run("world_model_window")["loss"].backward()
    ours = {n: debug_policy.get_parameter(n).grad for n in (*first, *second)}
    assert {n for n, g in ours.items() if g is not None} == {n for n in ours if f".{Role.world_model}." in n}


def test_unknown_target_module_is_refused(debug_policy):
    with pytest.raises(ValueError, match="qkv"):
        config(debug_policy, Role.explorer, target_modules=["qkv"])
