"""Intrinsic rewards as functions of what the frozen world model says, and the scale they are brought to.

Letters: E environments or episodes, T steps, N decisions, M memory layers (tokens where it says so), H hidden size,
A action dims, C components.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from rl.config import DivergenceSign, StudentRewardsConfig, Uncertainty

Components = dict[str, Tensor]
LEAST_ENTROPY = 1e-6  # nats


def memory_divergence(full_MH: Tensor, wrist_MH: Tensor) -> Tensor:
    """|h_full - h_wrist| / (|h_full| + |h_wrist|), mean over layers: (..., M, H) twice -> (...), from 0 to 1.

    Both states come from the same frozen weights, one under all cameras, one under the wrist camera alone. Two states
    of zeros (the start of an episode) do not differ.
    """
    distance = (full_MH - wrist_MH).norm(dim=-1)
    size = full_MH.norm(dim=-1) + wrist_MH.norm(dim=-1)
    return (distance / size.clamp_min(1e-8)).mean(-1)


def potential(rewards: StudentRewardsConfig, divergence: Tensor) -> Tensor:
    """Phi of states: their memory divergence, with the sign of `divergence_sign`."""
    return divergence if rewards.divergence_sign is DivergenceSign.seek else -divergence


def potential_reward(potential_EN1: Tensor, gamma: float) -> Tensor:
    """gamma * Phi(s') - Phi(s) (Ng et al. 1999): (E, N + 1) -> (E, N). Its discounted sum telescopes to
    gamma^N Phi(s_N) - Phi(s_0), so a constant potential is no income. The last potential counts also where time ends
    the episode."""
    return gamma * potential_EN1[:, 1:] - potential_EN1[:, :-1]


def action_rate(actions_ETA: Tensor, action_mask_A: Tensor) -> Tensor:
    """Mean squared change of the executed action over real dims (E, T); 0 at the first step."""
    change = (actions_ETA[:, 1:] - actions_ETA[:, :-1])[..., action_mask_A].square().mean(-1)
    return torch.cat([change.new_zeros(len(change), 1), change], 1)


def sum_over_decisions(per_step_ET: Tensor, chunk: int) -> Tensor:
    """(E, T) -> (E, T / chunk), the sum over the steps of each decision."""
    return per_step_ET.unflatten(1, (-1, chunk)).sum(-1)


def reward_components(
    rewards: StudentRewardsConfig, divergence_ET1: Tensor, uncertainty: Mapping[str, Tensor], actions_ETA: Tensor,
    action_mask_A: Tensor, gamma: float, chunk: int,
) -> Components:  # fmt: skip
    """Raw components of every decision (E, N).

    divergence_ET1: (E, T + 1) of the states before each step and after the last. uncertainty: by kind (E, T), entropy
    always, disagreement with an ensemble; their share is added where it is the reward. actions_ETA: executed.
    """
    components = {
        "memory_divergence": potential_reward(potential(rewards, divergence_ET1[:, ::chunk]), gamma),
        "action_rate": sum_over_decisions(action_rate(actions_ETA, action_mask_A), chunk),
    }
    if rewards.uncertainty is Uncertainty.share and "disagreement" in uncertainty:
        uncertainty = {**uncertainty, "share": epistemic_share(uncertainty)}
    return components | {kind: sum_over_decisions(x, chunk) for kind, x in uncertainty.items()}


def epistemic_share(uncertainty: Mapping[str, Tensor]) -> Tensor:
    """Disagreement (mutual information of outcome and ensemble member) / entropy, in 0 .. 1: Theil's uncertainty
    coefficient, what of the uncertainty more data could remove. Shapes as given."""
    return uncertainty["disagreement"] / uncertainty["entropy"].clamp_min(LEAST_ENTROPY)


def credited_reward(
    rewards: StudentRewardsConfig, reward_EN: Tensor, scaled_EN: Tensor, last_potential_E: Tensor, gamma: float
) -> Tensor:
    """`reward_EN` with its potential part told as what it telescopes to: gamma * Phi(s_N), all at the last decision.

    The potential of every other state cancels out of a return but for -Phi(s_t), which no later action changes: it is
    a baseline, known exactly, that the value head cannot know (it sees one camera). Taking it out leaves the gradient
    of an episode's return in expectation and removes most of its noise. What would follow the episode is estimated, as
    at every time limit, by a value of credited returns; it does not take the gap at the end back, as the value of a
    potential's returns would.

    reward_EN: total. scaled_EN: its potential part as it went in, unweighted. last_potential_E: Phi(s_N) in the same
    scale.
    """
    credited = reward_EN - rewards.memory_divergence_weight * scaled_EN
    credited[:, -1] += rewards.memory_divergence_weight * gamma * last_potential_E
    return credited


class ReturnScale:
    """Running std of the discounted return of each component (Burda et al. 2019), over all that was ever seen.

    Components are divided by it, never centred: a reward keeps its sign. float64 count, mean and M2 by Chan's formula;
    `moments` of several ranks are merged by whoever calls `merge`.
    """

    def __init__(self, names: list[str], gamma: float, clip: float) -> None:
        self.names, self.gamma, self.clip = sorted(names), gamma, clip
        self.count = 0
        self.mean = torch.zeros(len(names), dtype=torch.float64)
        self.m2 = torch.zeros(len(names), dtype=torch.float64)

    def moments(self, components: Components) -> tuple[int, Tensor, Tensor]:
        """Count, mean and M2 (C,) of the discounted returns of new episodes (E, N each), for `merge`."""
        rewards = torch.stack([components[n] for n in self.names], -1).double().cpu()
        running, rows = torch.zeros_like(rewards[:, 0]), []
        for t in range(rewards.shape[1]):
            running = self.gamma * running + rewards[:, t]
            rows.append(running)
        returns = torch.stack(rows, 1).flatten(0, 1)
        mean = returns.mean(0)
        return len(returns), mean, (returns - mean).square().sum(0)

    def merge(self, count: int, mean: Tensor, m2: Tensor) -> None:
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.m2 = self.m2 + m2 + delta.square() * (self.count * count / total)
        self.count = total

    def std(self, name: str) -> float:
        """Of one component's discounted return; 1 while it has not varied, so that a constant stays as it is."""
        if self.count == 0:
            raise ValueError("the scale of rewards has no statistics yet: merge() or load_state_dict() first")
        value = float((self.m2[self.names.index(name)] / self.count).sqrt())
        return value if value > 1e-8 else 1.0

    def scaled(self, components: Components) -> Components:
        """Each of `names` divided by its std and clipped."""
        return {n: (components[n] / self.std(n)).clamp(-self.clip, self.clip) for n in self.names}

    def state_dict(self) -> dict[str, Tensor | int | list[str]]:
        """Plain data."""
        return {"names": list(self.names), "count": self.count, "mean": self.mean.clone(), "m2": self.m2.clone()}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError for the statistics of other components."""
        if state["names"] != self.names:
            raise ValueError(f"reward statistics are of {state['names']}, this run has {self.names}")
        self.count, self.mean, self.m2 = int(state["count"]), state["mean"].clone(), state["m2"].clone()


def total_reward(rewards: StudentRewardsConfig, raw: Components, scaled: Components) -> Tensor:
    """(E, N): weighted normalised components minus the action-rate penalty in its own units."""
    total = -rewards.action_rate_weight * raw["action_rate"]
    total = total + rewards.memory_divergence_weight * scaled["memory_divergence"]
    if rewards.wm_uncertainty_weight > 0:
        total = total + rewards.wm_uncertainty_weight * scaled[rewards.uncertainty.value]
    return total


def rewarded_names(rewards: StudentRewardsConfig) -> list[str]:
    """The components that `total_reward` pays for; the penalty is none."""
    weights = {
        "memory_divergence": rewards.memory_divergence_weight, rewards.uncertainty.value: rewards.wm_uncertainty_weight
    }  # fmt: skip
    return [name for name, weight in weights.items() if weight > 0]


def normalised_names(rewards: StudentRewardsConfig, has_ensemble: bool) -> list[str]:
    """The components that are divided by their running scale. Raises ValueError when the chosen uncertainty is not
    there to be measured."""
    needed = rewards.uncertainty in (Uncertainty.disagreement, Uncertainty.share)
    if needed and rewards.wm_uncertainty_weight > 0 and not has_ensemble:
        raise ValueError(
            f"student.rewards.uncertainty is {rewards.uncertainty}, but the world model has no ensemble heads; take a "
            "teacher with arch.world_model.ensemble_heads, or set student.rewards.uncertainty=entropy"
        )
    shared = ["share"] if rewards.uncertainty is Uncertainty.share and has_ensemble else []
    return ["memory_divergence", "entropy", *(["disagreement"] if has_ensemble else []), *shared]
