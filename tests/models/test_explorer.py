"""The explorer on a frozen policy: what trains, what a stored decision remembers, what the value head sees."""

import pytest
import torch

from f1_vla.acting import look_ahead, velocity
from f1_vla.batch import F1Batch
from f1_vla.builders import build_policy
from f1_vla.config import F1Config, FlowKind, StochasticSteps
from f1_vla.flow_likelihood import FlowProcess
from f1_vla.rollout import Sampling
from f1_vla.trainable import part_of
from rl import config as rl_config
from rl.models.explorer import Explorer, Prefix, explorer_parameters
from rl.training.plan import random_batch

MASK = torch.arange(32) < 8


def arch() -> F1Config:
    return rl_config.load_model("debug_test")


def explorer(kind: str = "sde", chunk: int = 2, execute: int = 1, stochastic: str = "all") -> Explorer:
    torch.manual_seed(0)
    process = FlowProcess(FlowKind(kind), 3, 0.5, StochasticSteps(stochastic))
    return Explorer(build_policy(arch()), process, MASK, chunk, execute, 16, (0.08, 0.16)).eval()


def step_batch(rows: int = 3) -> F1Batch:
    torch.manual_seed(1)
    config = rl_config.Config()
    config.training.batch_size, config.training.bptt_length = rows, 1
    return random_batch(config, arch(), torch.device("cpu"))


def looked(e: Explorer, rows: int = 3) -> Prefix:
    torch.manual_seed(2)
    h = torch.randn(2, rows, 16)
    return e.look(step_batch(rows), h)[0]


def generators(rows: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(i) for i in range(rows)]


def test_only_the_action_expert_its_projections_and_the_heads_train() -> None:
    e = explorer("noise")
    trained = {n for n, p in e.named_parameters() if p.requires_grad}
    inside = {part_of(n.removeprefix("policy.")) for n in trained if n.startswith("policy.")}
    assert inside == {"act expert", "action projections"}
    assert {n.split(".")[0] for n in trained} == {"policy", "value", "noise"}
    policy, value = explorer_parameters(e)
    assert len(policy) + len(value) == len(trained)
    assert {id(p) for p in value} == {id(p) for p in e.value.parameters()}


@pytest.mark.parametrize("kind", ["sde", "noise"])
def test_every_trained_parameter_gets_a_gradient_and_nothing_frozen_does(kind: str) -> None:
    e = explorer(kind).train()
    prefix = looked(e)
    chain, _, _ = e.act(prefix, generators(3))
    with torch.no_grad():
        e.value.layers[-1].weight.fill_(0.1)  # starts at zero, which stops the gradient of what lies before
        if e.noise is not None:
            e.noise.out.weight.fill_(0.1)
    out = e(prefix, chain)
    (out["log_prob"].sum() + out["value"].sum()).backward()
    for name, p in e.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
        assert p.grad is None or p.grad.abs().sum() > 0, name


def test_a_stored_decision_gives_the_velocity_of_the_live_cache() -> None:
    e, batch = explorer(), step_batch()
    torch.manual_seed(2)
    h = torch.randn(2, 3, 16)
    prefix, features = e.look(batch, h)
    x, time = torch.randn(3, 2, 32), torch.full((3,), 0.5)
    with torch.no_grad():
        seen = look_ahead(e.policy, batch.hide_current_action(), h, 3, Sampling())
        expected = velocity(e.policy, seen, batch.state[:, 0], x, time)
    torch.testing.assert_close(e._velocity(prefix)(x, time), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features, seen.memory_features)


def test_the_value_sees_memory_pooled_features_and_state() -> None:
    e = explorer()
    prefix = looked(e)
    assert prefix.features.shape == (3, 2 * 16 + 32 + 32 + 32)  # memory layers, und, gen, state
    h = torch.randn(2, 3, 16)
    other, features = e.look(step_batch(), h)
    torch.testing.assert_close(other.features[:, :32], h.permute(1, 0, 2).flatten(1))
    torch.testing.assert_close(other.features[:, 32:96], features)
    torch.testing.assert_close(other.features[:, 96:], step_batch().state[:, 0])


def test_acting_and_the_training_forward_agree_on_stored_rows_in_any_order() -> None:
    for kind, stochastic in (("sde", "all"), ("sde", "one"), ("noise", "all")):
        e = explorer(kind, stochastic=stochastic)
        prefix = looked(e)
        chain, log_prob, value = e.act(prefix, generators(3))
        out = e.train()(prefix, chain)
        torch.testing.assert_close(out["log_prob"].detach(), log_prob, rtol=0, atol=1e-4)
        torch.testing.assert_close(out["value"].detach(), value)
        order = torch.tensor([2, 0])
        part = e(prefix.rows(order), chain.rows(order))
        torch.testing.assert_close(part["log_prob"], out["log_prob"][order], rtol=0, atol=1e-4)


def test_likelihoods_are_float32_under_autocast_and_on_a_half_precision_prefix() -> None:
    e = explorer()
    prefix = looked(e)
    prefix.keys, prefix.values = prefix.keys.bfloat16(), prefix.values.bfloat16()
    chain, log_prob, _ = e.act(prefix, generators(3))
    plain = e(prefix, chain)["log_prob"]
    with torch.autocast("cpu", torch.bfloat16):
        cast = e(prefix, chain)
    assert cast["log_prob"].dtype == cast["value"].dtype == torch.float32
    assert torch.equal(cast["log_prob"], plain)
    torch.testing.assert_close(plain.detach(), log_prob, rtol=0, atol=1e-4)


def test_what_a_row_draws_depends_on_its_own_generator_only() -> None:
    e = explorer()
    prefix = looked(e)
    chain, _, _ = e.act(prefix, generators(3))
    alone, _, _ = e.act(prefix.rows(slice(2, 3)), [torch.Generator().manual_seed(2)])
    torch.testing.assert_close(alone.x[0], chain.x[2], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(chain.x[0], chain.x[1])


@pytest.mark.parametrize(("chunk", "execute"), [(3, 1), (2, 3), (2, 0)])
def test_chunks_that_the_model_cannot_draw_are_refused(chunk: int, execute: int) -> None:
    with pytest.raises(ValueError, match=r"student\.chunk_exec_steps"):
        explorer(chunk=chunk, execute=execute)


def test_the_noise_head_stays_between_its_bounds_and_starts_in_their_middle() -> None:
    e = explorer("noise")
    assert e.noise is not None
    features = 100 * torch.randn(50, e.noise.norm.normalized_shape[0])
    time = torch.rand(50)
    middle = (0.08 * 0.16) ** 0.5
    torch.testing.assert_close(e.noise(features, time), torch.full((50, 1, 32), middle))
    torch.nn.init.normal_(e.noise.out.weight, std=5.0)
    std = e.noise(features, time)
    assert std.min() >= 0.08 - 1e-6 and std.max() <= 0.16 + 1e-6 and std.std() > 0.01
