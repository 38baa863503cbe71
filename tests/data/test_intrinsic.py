"""Intrinsic rewards against numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.config import DivergenceSign, StudentRewardsConfig, Uncertainty
from rl.data.intrinsic import (
    ReturnScale,
    action_rate,
    credited_reward,
    memory_divergence,
    normalised_names,
    potential_reward,
    reward_components,
    sum_over_decisions,
    total_reward,
)


def test_divergence_is_the_distance_relative_to_the_sizes_averaged_over_layers() -> None:
    full = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    wrist = torch.tensor([[3.0, 0.0], [-1.0, 0.0]])
    # layer 0: 4 / (5 + 3); layer 1: opposite states: 1
    assert float(memory_divergence(full, wrist)) == pytest.approx((0.5 + 1.0) / 2)
    assert float(memory_divergence(torch.zeros(2, 2), torch.zeros(2, 2))) == 0.0
    assert float(memory_divergence(full, full)) == 0.0


@settings(max_examples=30, deadline=None)
@given(gamma=st.floats(0.0, 1.0), steps=st.integers(1, 20), seed=st.integers(0, 999))
def test_a_potential_pays_out_its_change_and_nothing_else(gamma: float, steps: int, seed: int) -> None:
    phi = torch.rand(2, steps + 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rewards = potential_reward(phi, gamma)
    discounted = (rewards * gamma ** torch.arange(steps, dtype=torch.float64)).sum(1)
    torch.testing.assert_close(discounted, gamma**steps * phi[:, -1] - phi[:, 0])


@settings(max_examples=30, deadline=None)
@given(gamma=st.floats(0.1, 1.0), steps=st.integers(1, 20), weight=st.floats(0.0, 2.0), seed=st.integers(0, 999))
def test_crediting_the_last_gap_changes_a_return_by_the_potential_of_its_first_state_alone(
    gamma: float, steps: int, weight: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    phi = torch.rand(2, steps + 1, generator=generator, dtype=torch.float64)
    other = torch.randn(2, steps, generator=generator, dtype=torch.float64)
    potential = potential_reward(phi, gamma)
    whole = other + weight * potential
    credited = credited_reward(
        StudentRewardsConfig(memory_divergence_weight=weight), whole, potential, phi[:, -1], gamma
    )
    for t in range(steps):
        discount = gamma ** torch.arange(steps - t, dtype=torch.float64)
        there, here = (credited[:, t:] * discount).sum(1), (whole[:, t:] * discount).sum(1)
        torch.testing.assert_close(there, here + weight * phi[:, t])
    torch.testing.assert_close(credited[:, :-1], other[:, :-1])


def test_the_action_rate_counts_real_dims_and_spares_the_first_step() -> None:
    actions = torch.zeros(1, 3, 4)
    actions[0, 1] = torch.tensor([1.0, 0.0, 9.0, 9.0])
    actions[0, 2] = torch.tensor([1.0, 2.0, 0.0, 0.0])
    mask = torch.tensor([True, True, False, False])
    assert action_rate(actions, mask).tolist() == [[0.0, 0.5, 2.0]]
    assert action_rate(actions[:, :1], mask).tolist() == [[0.0]]


def test_a_decision_gets_the_sum_over_its_steps() -> None:
    assert sum_over_decisions(torch.tensor([[1.0, 2.0, 3.0, 4.0]]), 2).tolist() == [[3.0, 7.0]]


@pytest.mark.parametrize(("sign", "factor"), [(DivergenceSign.seek, 1.0), (DivergenceSign.close, -1.0)])
def test_the_sign_turns_the_divergence_reward_round(sign: DivergenceSign, factor: float) -> None:
    divergence = torch.tensor([[0.0, 0.1, 0.3, 0.2, 0.6]])
    found = reward_components(
        StudentRewardsConfig(divergence_sign=sign), divergence, {"entropy": torch.ones(1, 4)}, torch.zeros(1, 4, 2),
        torch.tensor([True, True]), gamma=0.5, chunk=2,
    )  # fmt: skip
    # chunks of two steps: potentials 0.0, 0.3, 0.6
    expected = factor * torch.tensor([[0.5 * 0.3 - 0.0, 0.5 * 0.6 - 0.3]])
    torch.testing.assert_close(found["memory_divergence"], expected)
    assert found["entropy"].tolist() == [[2.0, 2.0]] and found["action_rate"].tolist() == [[0.0, 0.0]]


def test_the_total_weighs_scaled_components_and_a_raw_penalty() -> None:
    raw = {"action_rate": torch.tensor([[0.5, 1.0]])}
    scaled = {
        "memory_divergence": torch.tensor([[1.0, -1.0]]), "disagreement": torch.tensor([[2.0, 3.0]]),
        "entropy": torch.tensor([[7.0, 8.0]]),
    }  # fmt: skip
    rewards = StudentRewardsConfig(memory_divergence_weight=0.5, wm_uncertainty_weight=2.0, action_rate_weight=0.1)
    torch.testing.assert_close(total_reward(rewards, raw, scaled), torch.tensor([[4.45, 5.4]]))
    rewards.uncertainty = Uncertainty.entropy
    torch.testing.assert_close(total_reward(rewards, raw, scaled), torch.tensor([[14.45, 15.4]]))


def test_noise_is_rewarded_by_entropy_and_not_by_disagreement() -> None:
    """A noisy screen (every member predicts the same flat distribution) against something unknown (members differ)."""
    codes = 8
    flat = math.log(codes)
    screen = {"entropy": flat, "disagreement": 0.0, "share": 0.0}
    unknown = {"entropy": 0.5, "disagreement": 0.5, "share": 1.0}
    paid = {}
    for kind in Uncertainty:
        rewards = StudentRewardsConfig(memory_divergence_weight=0.0, wm_uncertainty_weight=1.0, uncertainty=kind)
        paid[kind] = [
            float(total_reward(
                rewards, {"action_rate": torch.zeros(1, 1)},
                {k: torch.full((1, 1), v) for k, v in {**x, "memory_divergence": 0.0}.items()},
            ))
            for x in (screen, unknown)
        ]  # fmt: skip
    assert paid[Uncertainty.entropy][0] > paid[Uncertainty.entropy][1]
    for kind in (Uncertainty.disagreement, Uncertainty.share):
        assert paid[kind][0] == 0.0 < paid[kind][1]


def test_components_are_divided_by_the_std_of_their_discounted_returns_and_clipped() -> None:
    scale = ReturnScale(["entropy", "memory_divergence"], gamma=0.5, clip=2.0)
    raw = {"entropy": torch.tensor([[1.0, 1.0, 1.0]]), "memory_divergence": torch.tensor([[4.0, 0.0, 0.0]])}
    scale.merge(*scale.moments(raw))
    # discounted running returns: 1, 1.5, 1.75 and 4, 2, 1
    assert scale.std("entropy") == pytest.approx(np.std([1, 1.5, 1.75]))
    assert scale.std("memory_divergence") == pytest.approx(np.std([4, 2, 1]))
    found = scale.scaled(raw)
    assert found["entropy"].tolist() == [[2.0, 2.0, 2.0]]  # 1 / 0.31 = 3.2, clipped; never centred
    assert found["memory_divergence"].tolist() == [[2.0, 0.0, 0.0]]
    small = scale.scaled({**raw, "memory_divergence": torch.full((1, 1), -0.5)})["memory_divergence"]
    assert float(small) == pytest.approx(-0.5 / np.std([4, 2, 1]))


def test_merging_the_moments_of_ranks_equals_seeing_all_episodes_at_once() -> None:
    g = torch.Generator().manual_seed(0)
    parts = [{"entropy": 5 + torch.randn(n, 6, generator=g)} for n in (2, 3, 1)]
    apart, together = (ReturnScale(["entropy"], 0.9, 5.0) for _ in range(2))
    for part in parts:
        apart.merge(*apart.moments(part))
    together.merge(*together.moments({"entropy": torch.cat([p["entropy"] for p in parts])}))
    assert apart.count == together.count == 36
    assert apart.std("entropy") == pytest.approx(together.std("entropy"), rel=1e-12)
    copy = ReturnScale(["entropy"], 0.9, 5.0)
    copy.load_state_dict(apart.state_dict())
    assert copy.std("entropy") == apart.std("entropy")
    with pytest.raises(ValueError, match="reward statistics are of"):
        ReturnScale(["disagreement"], 0.9, 5.0).load_state_dict(apart.state_dict())


def test_a_component_that_never_varies_is_left_as_it_is() -> None:
    scale = ReturnScale(["entropy"], gamma=0.0, clip=5.0)
    with pytest.raises(ValueError, match="no statistics yet"):
        scale.std("entropy")
    scale.merge(*scale.moments({"entropy": torch.full((1, 4), 0.25)}))
    assert scale.scaled({"entropy": torch.full((1, 1), 0.25)})["entropy"].tolist() == [[0.25]]


def test_disagreement_needs_heads_and_entropy_does_not() -> None:
    assert normalised_names(StudentRewardsConfig(), True) == ["memory_divergence", "entropy", "disagreement"]
    with pytest.raises(ValueError, match="no ensemble heads"):
        normalised_names(StudentRewardsConfig(), False)
    entropy = StudentRewardsConfig(uncertainty=Uncertainty.entropy)
    assert normalised_names(entropy, False) == ["memory_divergence", "entropy"]
    share = StudentRewardsConfig(uncertainty=Uncertainty.share)
    assert normalised_names(share, True) == ["memory_divergence", "entropy", "disagreement", "share"]
    with pytest.raises(ValueError, match=r"student\.rewards\.uncertainty is share, but .* no ensemble heads"):
        normalised_names(share, False)


def test_the_share_of_disagreement_in_what_is_uncertain_is_paid_only_where_it_is_the_reward() -> None:
    uncertainty = {
        "disagreement": torch.tensor([[0.5, 0.1], [0.0, 0.2]]),
        "entropy": torch.tensor([[1.0, 4.0], [0.0, 0.2]]),
    }
    divergence, actions, mask = torch.zeros(2, 3), torch.zeros(2, 2, 1), torch.ones(1, dtype=torch.bool)
    for kind in Uncertainty:
        raw = reward_components(StudentRewardsConfig(uncertainty=kind), divergence, uncertainty, actions, mask, 0.9, 1)
        assert ("share" in raw) is (kind is Uncertainty.share)
        if "share" in raw:  # by hand; nothing uncertain and nothing disagreed upon is a share of nothing
            torch.testing.assert_close(raw["share"], torch.tensor([[0.5, 0.025], [0.0, 1.0]]))
            scaled = raw | {"memory_divergence": torch.zeros(2, 2)}
            weight = StudentRewardsConfig().wm_uncertainty_weight
            paid = total_reward(StudentRewardsConfig(uncertainty=kind), raw, scaled)
            torch.testing.assert_close(paid, weight * raw["share"])
    assert normalised_names(StudentRewardsConfig(wm_uncertainty_weight=0.0), False) == ["memory_divergence", "entropy"]
