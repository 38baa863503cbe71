"""Observations for the critic alone (the group "critic" of Isaac Lab)."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl.config import PPONetworkConfig
from rl.models.actor_critic import ActorCritic

ACTION = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)


def box(width: int) -> gym.spaces.Box:
    return gym.spaces.Box(-np.inf, np.inf, (width,), np.float32)


@pytest.mark.parametrize("entries", [{"critic": 4}, {"critic_joints": 3, "critic_forces": 1}])
def test_the_actor_does_not_see_them_and_the_critic_sees_nothing_else(entries: dict[str, int]) -> None:
    space = gym.spaces.Dict({"policy": box(3)} | {n: box(w) for n, w in entries.items()})
    policy = ActorCritic(space, ACTION, PPONetworkConfig(hidden=[8]))
    observation = {n: torch.randn(5, s.shape[0]) for n, s in space.spaces.items() if s.shape is not None}
    actions = torch.randn(5, 2)
    found = policy(observation, actions)
    for name in observation:
        changed = policy(observation | {name: torch.randn_like(observation[name])}, actions)
        assert torch.equal(changed.logp, found.logp) is (name != "policy")
        assert torch.equal(changed.values, found.values) is (name == "policy")
    assert torch.equal(policy.value(observation), found.values)


def test_a_common_trunk_is_refused() -> None:
    space = gym.spaces.Dict({"policy": box(3), "critic": box(4)})
    with pytest.raises(ValueError, match=r"ppo\.network\.shared=false"):
        ActorCritic(space, ACTION, PPONetworkConfig(shared=True))


def test_without_hidden_layers_the_heads_have_the_widths_of_their_own_observations() -> None:
    space = gym.spaces.Dict({"policy": box(3), "critic": box(4)})
    policy = ActorCritic(space, ACTION, PPONetworkConfig(hidden=[]))
    assert (policy.actor_head.in_features, policy.critic_head.in_features) == (3, 4)
