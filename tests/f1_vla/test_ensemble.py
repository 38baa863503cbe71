"""Ensemble heads: what they measure, and that the world model never notices them."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from f1_vla.builders import build_policy
from f1_vla.config import F1Config
from f1_vla.ensemble import EnsembleHeads, mean_over_scales, mutual_information, token_entropy
from f1_vla.policy import F1Policy

K, d, V = 3, 12, 7


def with_heads(cfg: F1Config, heads: int) -> F1Policy:
    torch.manual_seed(0)
    changed = dataclasses.replace(cfg.world_model, ensemble_heads=heads, ensemble_features=8)
    return build_policy(dataclasses.replace(cfg, world_model=changed))


# --- numbers ---------------------------------------------------------------------------------------------------------


def test_members_that_agree_on_noise_know_everything_there_is_to_know() -> None:
    """Two members, two codes. Both say 50:50: entropy log 2, no disagreement. Each is sure of another code: log 2."""
    fair = torch.tensor([0.5, 0.5])
    assert float(mutual_information(fair, token_entropy(fair))) == pytest.approx(0.0, abs=1e-7)
    assert float(token_entropy(fair)) == pytest.approx(math.log(2))
    sure = torch.zeros(())
    assert float(mutual_information(fair, sure)) == pytest.approx(math.log(2))
    # p = (0.8, 0.2) and (0.4, 0.6): H of the mean 0.673012, entropies 0.500402 and 0.673012
    p = torch.tensor([[0.8, 0.2], [0.4, 0.6]])
    assert float(mutual_information(p.mean(0), token_entropy(p).mean(0))) == pytest.approx(0.086305, abs=1e-6)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.floats(0.0, 30.0))
def test_disagreement_is_the_brute_force_mutual_information_and_lies_between_zero_and_log_k(
    seed: int, size: float
) -> None:
    g = torch.Generator().manual_seed(seed)
    heads = EnsembleHeads(K, d, 8, V)
    hidden, base = torch.randn(2, 4, d, generator=g), size * torch.randn(2, 4, V, generator=g)
    found = heads.disagreement(hidden, base)
    p = torch.stack([heads.member_logits(hidden, base, k).double().softmax(-1) for k in range(K)])
    log_p = p.clamp_min(1e-300).log()
    mean = p.mean(0)
    expected = (p * (log_p - mean.clamp_min(1e-300).log())).sum(-1).mean(0)  # mean KL to the mixture
    torch.testing.assert_close(found.double(), expected.detach(), rtol=1e-3, atol=1e-5)
    assert (found >= 0).all() and (found <= math.log(K) + 1e-6).all()


def test_every_scale_weighs_the_same() -> None:
    per_token = torch.tensor([4.0, 1.0, 1.0, 1.0, 5.0])  # scales of 1 and 4 tokens: means 4 and 2
    assert float(mean_over_scales(per_token, [1, 4])) == 3.0


# --- training --------------------------------------------------------------------------------------------------------


def test_each_member_trains_on_its_own_rows_only() -> None:
    heads = EnsembleHeads(2, d, 8, V)
    hidden, base, target = torch.randn(3, 4, d), torch.randn(3, 4, V), torch.randint(V, (3, 4))
    weight = torch.tensor([[True, False], [True, True], [False, False]])
    loss = heads.loss(hidden, base, target, weight)
    pairs = [(0, 0), (1, 0), (1, 1)]  # row, member
    parts = [torch.nn.functional.cross_entropy(heads.member_logits(hidden, base, k)[n], target[n]) for n, k in pairs]
    torch.testing.assert_close(loss, torch.stack(parts).mean())
    only_first = heads.loss(hidden, base, target, torch.tensor([[True, False]] * 3))
    only_first.backward()
    assert heads.readout.grad is not None
    assert heads.readout.grad[0].abs().sum() > 0 and not heads.readout.grad[1].any()
    nobody = heads.loss(hidden, base, target, torch.zeros(3, 2, dtype=torch.bool))
    assert float(nobody.detach()) == 0.0


def _trained(rows: Tensor, target: Tensor, members: int = 5) -> EnsembleHeads:
    heads = EnsembleHeads(members, d, 32, V)
    optimizer = torch.optim.Adam(heads.parameters(), 3e-2)
    base = torch.zeros(*rows.shape[:-1], V)
    mask = torch.rand(len(rows), members, generator=torch.Generator().manual_seed(1)) < 0.5
    for _ in range(150):
        optimizer.zero_grad()
        heads.loss(rows, base, target, mask).backward()
        optimizer.step()
    return heads


def test_noise_is_not_taken_for_ignorance_after_training_and_unseen_inputs_are() -> None:
    """Half of the seen inputs have a random target: entropy stays high there, disagreement falls. Inputs from elsewhere
    keep their disagreement."""
    g = torch.Generator().manual_seed(0)
    known, noisy, elsewhere = (torch.randn(1, d, generator=g) for _ in range(3))
    rows = torch.cat([known.expand(200, -1), noisy.expand(200, -1)])[:, None]
    rows = rows + 0.05 * torch.randn(rows.shape, generator=g)
    target = torch.cat([torch.full((200,), 2), torch.randint(V, (200,), generator=g)])[:, None]
    heads = _trained(rows, target)
    inputs = torch.cat([known, noisy, elsewhere])[:, None]
    base = torch.zeros(3, 1, V)
    disagreement = heads.disagreement(inputs, base)[:, 0]
    p = torch.stack([heads.member_logits(inputs, base, k).softmax(-1) for k in range(heads.members)]).mean(0)
    entropy = token_entropy(p.detach())[:, 0]
    assert entropy[1] > 1.5 > 0.3 > entropy[0]  # of log 7 = 1.95
    assert disagreement[1] < 0.1 * entropy[1]
    assert disagreement[2] > 3 * disagreement[:2].max()


# --- in the policy ---------------------------------------------------------------------------------------------------


def test_heads_change_no_output_no_gradient_and_no_initial_weight_of_the_model(debug_config, make_batch) -> None:
    batch = make_batch(debug_config)
    found = []
    for heads in (0, 3):
        policy = with_heads(debug_config, heads).train()
        if heads:
            batch.bootstrap = torch.ones(batch.size, heads, dtype=torch.bool)
        torch.manual_seed(5)
        out = policy(batch, mode="world_model_window", initial_memory_state=policy.initial_memory_state(batch.size))
        (out["loss"] + out.get("ensemble_loss", 0.0)).backward()
        others = {n: p for n, p in policy.named_parameters() if ".ensemble." not in n}
        found.append((out["loss"], {n: p.detach() for n, p in others.items()}, {n: p.grad for n, p in others.items()}))
        assert ("ensemble_loss" in out) == bool(heads)
        if policy.world_model.ensemble is not None:
            assert policy.world_model.ensemble.readout.grad.abs().sum() > 0
    (loss, weights, gradients), (other_loss, other_weights, other_gradients) = found
    assert torch.equal(loss, other_loss) and weights.keys() == other_weights.keys()
    for n in weights:
        assert torch.equal(weights[n], other_weights[n]), n
        assert (gradients[n] is None) == (other_gradients[n] is None), n
        assert gradients[n] is None or torch.equal(gradients[n], other_gradients[n]), n


def test_a_window_reports_entropy_and_disagreement_of_every_token(debug_config, make_batch) -> None:
    policy, batch = with_heads(debug_config, 3).eval(), make_batch(debug_config)
    h = policy.initial_memory_state(batch.size)
    options = {"mode": "world_model_window", "initial_memory_state": h, "return_logits": True}
    with torch.no_grad():
        out = policy(batch, **options, uncertainty=True)
        assert "entropy" not in policy(batch, **options)
    p = out["logits"].double().softmax(-1)
    torch.testing.assert_close(out["entropy"].double(), -(p * p.log()).sum(-1), rtol=1e-4, atol=1e-5)
    assert out["disagreement"].shape == out["entropy"].shape == out["nll"].shape
    assert (out["disagreement"] > 0).any()
    plain = with_heads(debug_config, 0).eval()
    with torch.no_grad():
        assert "disagreement" not in plain(batch, **options, uncertainty=True)


def test_only_first_and_last_valid_steps_of_a_window_train_the_heads(debug_config, make_batch) -> None:
    policy, batch = with_heads(debug_config, 2), make_batch(debug_config, T=4)
    batch.bootstrap = torch.ones(batch.size, 2, dtype=torch.bool)
    h = policy.initial_memory_state(batch.size)

    def loss() -> float:
        return float(policy(batch, mode="world_model_window", initial_memory_state=h)["ensemble_loss"].detach())

    policy.eval()
    before = loss()
    batch.target_ids[:, 1:3] = (batch.target_ids[:, 1:3] + 1) % 32
    assert loss() == before
    batch.target_ids[:, 3] = (batch.target_ids[:, 3] + 1) % 32
    assert loss() != before
    batch.valid[:, 0] = False
    batch.valid[:, 3] = False
    assert loss() == 0.0


def test_memory_states_of_a_burn_in_are_those_of_the_window(debug_config, make_batch) -> None:
    policy, batch = with_heads(debug_config, 0).eval(), make_batch(debug_config)
    h = policy.initial_memory_state(batch.size)
    with torch.no_grad():
        a = policy(batch, mode="memory_only", initial_memory_state=h)
        b = policy(batch, mode="world_model_window", initial_memory_state=h)
    torch.testing.assert_close(a["memory_states"], b["memory_states"], rtol=1e-5, atol=1e-6)
    assert not a["memory_states"][:, 0].any()


@pytest.mark.parametrize(
    ("change", "message"), [({"ensemble_heads": 1}, "at least 2"), ({"ensemble_features": 0}, "1")]
)
def test_an_ensemble_that_cannot_disagree_is_refused(debug_config, change: dict, message: str) -> None:
    config = dataclasses.replace(debug_config, world_model=dataclasses.replace(debug_config.world_model, **change))
    with pytest.raises(ValueError, match=message):
        config.validate()
