"""Actor and critic over vectors, pictures and both; recurrent policies; the deterministic policy that is exported."""

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from rl.config import InitKind, PPONetworkConfig
from rl.models.action_map import ActionMap, DeterministicPolicy
from rl.models.actor_critic import ActorCritic
from rl.models.cnn import NatureCNN
from rl.models.running_norm import ObservationNormalizer

VECTOR = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
CAMERA = gym.spaces.Box(0, 255, (4, 40, 44), np.uint8)
BOTH = gym.spaces.Dict({"state": VECTOR, "camera": CAMERA})
ACTIONS = gym.spaces.Box(-1, 1, (2,), np.float32)
NO_STATE = torch.empty(0)


def sample(space: gym.Space, count: int) -> Tensor | dict[str, Tensor]:
    if isinstance(space, gym.spaces.Dict):
        return {k: torch.stack([torch.from_numpy(s.sample()) for _ in range(count)]) for k, s in space.spaces.items()}
    return torch.stack([torch.from_numpy(np.asarray(space.sample())) for _ in range(count)])


@pytest.mark.parametrize("space", [VECTOR, CAMERA, BOTH])
@pytest.mark.parametrize("shared", [False, True])
def test_training_forward_agrees_with_acting(space: gym.Space, shared: bool) -> None:
    torch.manual_seed(0)
    space.seed(0)
    policy = ActorCritic(space, ACTIONS, PPONetworkConfig(hidden=[8], shared=shared, cnn_width=16))
    x, actions = sample(space, 5), torch.randn(5, 2)
    out, value, _ = policy.step(x, None, NO_STATE)
    found = policy(x, actions)
    torch.testing.assert_close(found.out, out)
    torch.testing.assert_close(found.logp, policy.distribution.log_prob(out, actions))
    torch.testing.assert_close(found.values, policy.value(x))
    assert (value is not None) == policy.value_with_action == (shared or space is not VECTOR)
    if value is not None:
        torch.testing.assert_close(value, found.values)
    found.logp.sum().backward(retain_graph=True)
    found.values.sum().backward()
    assert all(p.grad is not None for p in policy.parameters())


def test_channels_may_come_last() -> None:
    torch.manual_seed(0)
    first = ActorCritic(CAMERA, ACTIONS, PPONetworkConfig(hidden=[8]))
    last_space = gym.spaces.Box(0, 255, (40, 44, 4), np.uint8)
    last = ActorCritic(last_space, ACTIONS, PPONetworkConfig(hidden=[8]))
    last.load_state_dict(first.state_dict())
    x = torch.randint(0, 255, (2, 4, 40, 44), dtype=torch.uint8)
    torch.testing.assert_close(last.value(x.movedim(1, -1)), first.value(x))


@pytest.mark.parametrize(
    ("shape", "last"),
    [((4, 84, 84), False), ((84, 84, 4), True), ((72, 64, 64), False), ((64, 64, 72), True), ((40, 60, 3), True)],
)
def test_channels_are_found_where_they_are(shape: tuple[int, ...], last: bool) -> None:
    cnn = NatureCNN(shape, 4)
    assert cnn.channels_last == last
    assert cnn(torch.zeros(1, *shape, dtype=torch.uint8)).shape == (1, 4)


def test_a_picture_that_is_too_small_and_a_space_without_encoder_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 36"):
        ActorCritic(gym.spaces.Box(0, 255, (3, 20, 20), np.uint8), ACTIONS, PPONetworkConfig())
    with pytest.raises(ValueError, match="no encoder"):
        ActorCritic(gym.spaces.Discrete(3), ACTIONS, PPONetworkConfig())
    with pytest.raises(ValueError, match="activation 'gelu'"):
        ActorCritic(VECTOR, ACTIONS, PPONetworkConfig(activation="gelu"))
    masked = gym.spaces.Dict({"x": VECTOR, "action_mask": gym.spaces.MultiBinary(2)})
    with pytest.raises(ValueError, match="discrete"):
        ActorCritic(masked, ACTIONS, PPONetworkConfig())


def test_torch_initialisation_is_that_of_the_layers() -> None:
    policy = ActorCritic(VECTOR, ACTIONS, PPONetworkConfig(init=InitKind.torch))
    assert policy.actor_head.bias.abs().max() > 0 and policy.actor_head.weight.abs().max() > 0.05


def test_actor_and_critic_parameters_divide_all_parameters() -> None:
    policy = ActorCritic(VECTOR, ACTIONS, PPONetworkConfig())
    actor, critic = {id(p) for p in policy.actor_parameters()}, {id(p) for p in policy.critic_parameters()}
    assert not actor & critic and actor | critic == {id(p) for p in policy.parameters()}


def test_a_recurrent_policy_acts_step_by_step_as_it_is_trained_in_one_sequence() -> None:
    torch.manual_seed(0)
    policy = ActorCritic(VECTOR, ACTIONS, PPONetworkConfig(hidden=[8], lstm=6))
    x, begins = torch.randn(7, 3, 3), torch.rand(7, 3) < 0.3
    start = (torch.randn(1, 3, 6), torch.randn(1, 3, 6))
    state, outs, values = start, [], []
    for t in range(7):
        out, value, state = policy.step(x[t], state, begins[t])  # type: ignore[assignment]
        outs.append(out)
        values.append(value)
    found = policy(x, torch.zeros(21, 2), start, begins)
    torch.testing.assert_close(found.out, torch.cat(outs))
    torch.testing.assert_close(found.values, torch.cat(values))  # type: ignore[arg-type]
    order = torch.tensor([2, 0, 1])
    again = policy(x[:, order], torch.zeros(21, 2), (start[0][:, order], start[1][:, order]), begins[:, order])
    torch.testing.assert_close(again.values.reshape(7, 3), found.values.reshape(7, 3)[:, order])


def test_the_environment_gets_rescaled_and_clipped_actions() -> None:
    space = gym.spaces.Box(np.array([-2, 0], np.float32), np.array([2, 10], np.float32))
    actions = torch.tensor([[0.5, -1.0], [3.0, 0.0]])
    assert ActionMap(space, clip=True, rescale=True)(actions).tolist() == [[1.0, 0.0], [2.0, 5.0]]
    assert ActionMap(space, clip=True, rescale=False)(actions).tolist() == [[0.5, 0.0], [2.0, 0.0]]
    assert torch.equal(ActionMap(space, clip=False, rescale=False)(actions), actions)
    discrete = torch.tensor([1, 2])
    assert torch.equal(ActionMap(gym.spaces.Discrete(3), clip=True, rescale=True)(discrete), discrete)
    with pytest.raises(ValueError, match="bounded"):
        ActionMap(VECTOR, clip=True, rescale=True)


def test_the_deterministic_policy_can_be_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    norm = ObservationNormalizer(VECTOR, 1e-8, False, 10.0)
    norm.update(torch.randn(30, 3) * 5 + 2)
    policy = DeterministicPolicy(
        ActorCritic(VECTOR, ACTIONS, PPONetworkConfig(hidden=[8])), norm, ActionMap(ACTIONS, True, False)
    ).eval()
    x = torch.randn(4, 3) * 10
    traced = torch.jit.trace(policy, x[:1])
    torch.testing.assert_close(traced(x), policy(x))


def test_a_recurrent_deterministic_policy_remembers_until_told_of_a_new_episode() -> None:
    torch.manual_seed(0)
    network = ActorCritic(VECTOR, ACTIONS, PPONetworkConfig(hidden=[8], lstm=6, init=InitKind.torch))
    policy = DeterministicPolicy(network, None, ActionMap(ACTIONS, True, False))
    x = torch.randn(2, 3)
    first, second = policy(x), policy(x)
    assert not torch.allclose(first, second)
    policy.begin(torch.tensor([True, False]))
    third = policy(x)
    torch.testing.assert_close(third[0], first[0])
    assert not torch.allclose(third[1], first[1])
    policy.begin()
    torch.testing.assert_close(policy(x), first)


# --- an estimator of what the critic alone is shown ------------------------------------------------------------------

TOLD = gym.spaces.Dict({"state": VECTOR, "critic": gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)})


def estimating() -> tuple[ActorCritic, dict[str, Tensor]]:
    torch.manual_seed(0)
    policy = ActorCritic(TOLD, ACTIONS, PPONetworkConfig(hidden=[8], estimator=6, init=InitKind.torch))
    return policy, {"state": torch.randn(5, 3), "critic": torch.randn(5, 4)}


def test_the_actor_is_given_the_estimate_and_never_the_truth() -> None:
    policy, x = estimating()
    out, _, _ = policy.step(x, None, NO_STATE)
    hidden, last = policy.estimator[0], policy.estimator[2]
    estimate = torch.tanh(x["state"] @ hidden.weight.T + hidden.bias) @ last.weight.T + last.bias
    seen = torch.cat([x["state"], estimate], -1)
    body = policy.actor_body[0]
    by_hand = torch.tanh(seen @ body.weight.T + body.bias) @ policy.actor_head.weight.T + policy.actor_head.bias
    torch.testing.assert_close(out[:, :2], by_hand)
    other, _, _ = policy.step(x | {"critic": torch.randn(5, 4)}, None, NO_STATE)
    assert torch.equal(out, other)
    found = policy(x, torch.randn(5, 2))
    torch.testing.assert_close(found.out, out)
    torch.testing.assert_close(found.estimator_error, (estimate - x["critic"]).square().mean(-1))


def test_the_estimator_learns_from_the_truth_alone_and_not_from_what_the_policy_wants() -> None:
    policy, x = estimating()
    own = list(policy.estimator.parameters())
    policy(x, torch.randn(5, 2)).logp.sum().backward()
    assert all(p.grad is None for p in own) and policy.actor_body[0].weight.grad[:, 3:].abs().sum() > 0
    policy(x, torch.randn(5, 2)).estimator_error.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in own)


@pytest.mark.parametrize("space", [VECTOR, gym.spaces.Dict({"state": VECTOR, "critic": CAMERA})])
def test_an_estimator_without_anything_to_estimate_is_refused(space: gym.Space) -> None:
    with pytest.raises(ValueError, match=r"ppo\.network\.estimator .* arm\.privileged_critic=true"):
        ActorCritic(space, ACTIONS, PPONetworkConfig(estimator=6))
