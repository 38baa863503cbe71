import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.config import SupervisionConfig
from rl.data.returns import gae
from rl.envs.gymnasium_adapter import GymnasiumEnv
from rl.envs.vector import VectorEnv
from rl.sims.isaaclab import IsaacLabEnv
from rl.types import VectorStep
from tests.envs.counter_env import CounterEnv
from tests.sims.fake_isaaclab import IsaacCounters

MODES = list(AutoresetMode)
Adapter = Callable[[list[int], list[str]], VectorEnv]  # from lengths and kinds of episodes to E environments
KINDS = st.lists(st.sampled_from(["terminated", "truncated", "terminated and truncated"]), min_size=1, max_size=4)
LENGTHS = st.lists(st.integers(1, 5), min_size=1, max_size=4)
E = 3


def counters(lengths: list[int], kinds: list[str], as_dict: bool = False) -> Callable[[], CounterEnv]:
    """Environment i begins at another place of the lists."""
    numbers = itertools.count()

    def make() -> CounterEnv:
        i = next(numbers)
        return CounterEnv(lengths[i % len(lengths) :] + lengths[: i % len(lengths)], kinds, i, as_dict)

    return make


def in_this_process(mode: AutoresetMode) -> Adapter:
    return lambda lengths, kinds: GymnasiumEnv(counters(lengths, kinds), E, autoreset=mode)


def in_isaac_lab(lengths: list[int], kinds: list[str]) -> VectorEnv:
    return IsaacLabEnv(IsaacCounters(counters(lengths, kinds), E), action_limit=1.0, random_phase=False, seed=0)


SAME_STEP = in_this_process(AutoresetMode.SAME_STEP)
ADAPTERS = {**{mode.name: in_this_process(mode) for mode in MODES}, "Isaac Lab": in_isaac_lab}


@pytest.fixture(scope="module")
def in_processes() -> Iterator[Adapter]:
    """Processes are slow to start: always the same, with other episodes."""
    env = GymnasiumEnv(partial(CounterEnv, [1], ["terminated"]), E, processes=SupervisionConfig())

    def make(lengths: list[int], kinds: list[str]) -> VectorEnv:
        make_one = counters(lengths, kinds)
        wanted = [make_one() for _ in range(E)]
        for name in ("lengths", "kinds", "index", "episode"):
            env._envs.set_attr(name, [getattr(w, name) for w in wanted])
        return env

    yield make
    env.close()


def act(observation: torch.Tensor) -> torch.Tensor:
    """A function of the observation, so that the same transitions follow in every mode."""
    return torch.sin(observation.sum(1, keepdim=True)).float()


def play(env: VectorEnv, steps: int) -> list[tuple[torch.Tensor, torch.Tensor, VectorStep]]:
    observation, rows = env.reset(), []
    for _ in range(steps):
        assert isinstance(observation, torch.Tensor)
        actions = act(observation)
        step = env.step(actions)
        rows.append((observation, actions, step))
        observation = step.observation
    return rows


def transitions(rows: list[tuple[torch.Tensor, torch.Tensor, VectorStep]], env: int, count: int) -> list[list[float]]:
    """The first `count` transitions of one environment as plain numbers."""
    found = []
    for observation, actions, s in rows:
        if bool(s.valid[env]):
            assert isinstance(s.next_observation, torch.Tensor)
            numbers = [observation[env], actions[env], s.reward[env : env + 1], s.next_observation[env]]
            ends = [float(s.terminated[env]), float(s.truncated[env])]
            found.append([*torch.cat(numbers).tolist(), *ends])
    return found[:count]


def check_transitions(adapters: dict[str, Adapter], lengths: list[int], kinds: list[str]) -> None:
    played = {name: play(make(lengths, kinds), 24) for name, make in adapters.items()}
    for i in range(E):
        expected = by_hand(lengths[i % len(lengths) :] + lengths[: i % len(lengths)], kinds, i, 12)
        same_step = transitions(played["SAME_STEP"], i, 12)
        np.testing.assert_allclose(same_step, expected, atol=1e-5)
        for name, rows in played.items():
            assert transitions(rows, i, 12) == same_step, name


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, kinds=KINDS)
def test_every_kind_of_autoreset_gives_the_same_transitions(lengths: list[int], kinds: list[str]) -> None:
    check_transitions(ADAPTERS, lengths, kinds)


def by_hand(lengths: list[int], kinds: list[str], index: int, count: int) -> list[list[float]]:
    """What the counter environment does, without any vector environment."""
    rows: list[list[float]] = []
    for episode in itertools.count():
        length, kind = lengths[episode % len(lengths)], kinds[episode % len(kinds)]
        for t in range(length):
            action, ends = np.sin(episode + t + index), t + 1 == length
            terminated = ends and "terminated" in kind
            truncated = ends and kind == "truncated"
            row = [episode, t, index, action, t + 1 + 0.1 * action, episode, t + 1, index, terminated, truncated]
            rows.append([float(x) for x in row])
            if len(rows) == count:
                return rows
    raise AssertionError


def value(observation: torch.Tensor) -> torch.Tensor:
    return torch.cos(observation @ torch.tensor([0.3, 0.7, 1.1])).double()


def check_advantages(
    adapters: dict[str, Adapter], lengths: list[int], kinds: list[str], gamma: float, lam: float
) -> None:
    """Up to the last episode end that all have seen: after it the rollouts stop at different steps."""
    found = {}
    for name, make in adapters.items():
        rows = play(make(lengths, kinds), 40)
        steps = [s for _, _, s in rows]
        advantages, _ = gae(
            torch.stack([s.reward for s in steps]).double(),
            torch.stack([value(o) for o, _, _ in rows]),
            torch.stack([value(s.next_observation) for s in steps if isinstance(s.next_observation, torch.Tensor)]),
            torch.stack([s.terminated for s in steps]),
            torch.stack([s.truncated for s in steps]),
            torch.stack([s.valid for s in steps]),
            gamma, lam,
        )  # fmt: skip
        valid = torch.stack([s.valid for s in steps])
        ended = torch.stack([s.terminated | s.truncated for s in steps])
        own = []
        for i in range(E):
            closed = int(ended[:, i][valid[:, i]][:20].nonzero().max()) + 1  # after the last end within 20 transitions
            own.append(advantages[:, i][valid[:, i]][:closed])
        found[name] = torch.cat(own)
    for name, advantages in found.items():
        torch.testing.assert_close(advantages, found["SAME_STEP"], atol=1e-6, rtol=0, msg=name)


@settings(max_examples=30, deadline=None)
@given(lengths=LENGTHS, kinds=KINDS, gamma=st.floats(0.5, 1.0), lam=st.floats(0.0, 1.0))
def test_every_kind_of_autoreset_gives_the_same_advantages(
    lengths: list[int], kinds: list[str], gamma: float, lam: float
) -> None:
    check_advantages(ADAPTERS, lengths, kinds, gamma, lam)


@settings(max_examples=4, deadline=None)  # every step waits for the processes
@given(lengths=LENGTHS, kinds=KINDS)
def test_environments_in_processes_give_the_same_transitions_and_advantages(
    in_processes: Adapter, lengths: list[int], kinds: list[str]
) -> None:
    adapters = {"SAME_STEP": SAME_STEP, "processes": in_processes}
    check_transitions(adapters, lengths, kinds)
    check_advantages(adapters, lengths, kinds, 0.9, 0.8)


@pytest.mark.parametrize("mode", MODES)
def test_the_policy_sees_the_next_episode_and_the_transition_the_last_observation(mode: AutoresetMode) -> None:
    env = GymnasiumEnv(counters([2], ["truncated"]), 1, autoreset=mode)
    rows = play(env, 3)
    end = rows[1][2]
    assert end.next_observation.tolist() == [[0.0, 2.0, 0.0]]
    assert bool(end.truncated[0]) and bool(end.valid[0])
    if mode is AutoresetMode.NEXT_STEP:
        assert [bool(s.valid[0]) for _, _, s in rows] == [True, True, False]
        assert rows[2][2].observation.tolist() == [[1.0, 0.0, 0.0]]
    else:
        assert all(bool(s.valid[0]) for _, _, s in rows)
        assert end.observation.tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize("mode", MODES)
def test_observations_of_several_parts_keep_their_names(mode: AutoresetMode) -> None:
    env = GymnasiumEnv(counters([2, 3], ["truncated"], as_dict=True), 2, autoreset=mode)
    assert set(env.reset()) == {"count"}
    env.step(torch.zeros(2, 1))
    step = env.step(torch.zeros(2, 1))
    assert isinstance(step.next_observation, dict)
    assert step.next_observation["count"].tolist() == [[0.0, 2.0, 0.0], [0.0, 2.0, 1.0]]
    assert step.next_observation["count"].dtype == torch.float32


def test_gymnasium_tasks_are_a_function_of_the_seed() -> None:
    def observations(seed: int) -> torch.Tensor:
        env = GymnasiumEnv(lambda: gym.make("Pendulum-v1"), 2)
        first = env.reset(seed)
        assert env.max_episode_steps == 200 and isinstance(first, torch.Tensor)
        seen = [first, *[env.step(torch.ones(2, 1)).observation for _ in range(210)]]
        env.close()
        return torch.stack([s for s in seen if isinstance(s, torch.Tensor)])

    assert torch.equal(observations(1), observations(1))
    assert not torch.equal(observations(1), observations(2))


def test_the_time_limit_of_a_gymnasium_task_is_a_truncation_and_a_fall_is_a_termination() -> None:
    pendulum = GymnasiumEnv(lambda: gym.make("Pendulum-v1"), 2)
    pendulum.reset(0)
    for _ in range(200):
        step = pendulum.step(torch.zeros(2, 1))
    assert bool(step.truncated.all()) and not bool(step.terminated.any())
    pole = GymnasiumEnv(lambda: gym.make("CartPole-v1"), 2)
    pole.reset(0)
    ends: list[Any] = []
    while not ends:
        step = pole.step(torch.ones(2, dtype=torch.int64))
        ends = step.terminated.nonzero().tolist()
    assert not bool(step.truncated.any())


def test_actions_are_clipped_to_the_bounds_of_the_task() -> None:
    rewards = []
    for size in (1.0, 50.0):
        env = GymnasiumEnv(counters([5], ["truncated"]), 1)
        env.reset(0)
        rewards.append(float(env.step(torch.full((1, 1), size)).reward))
    assert rewards[0] == rewards[1] == pytest.approx(1.1)


def test_the_inner_state_of_a_gymnasium_task_cannot_be_saved_and_a_reset_goes_on_with_other_episodes() -> None:
    env = GymnasiumEnv(lambda: gym.make("CartPole-v1"), 2, seed=3)
    first, second, again = env.reset(), env.reset(), env.reset(3)
    assert isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor) and isinstance(again, torch.Tensor)
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert not env.resumes_exactly
    with pytest.raises(ValueError, match="cannot be saved"):
        env.state_dict()


class _Odd(gym.Env[Any, Any]):
    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Discrete(3, start=1)


def test_spaces_that_no_trainer_can_use_are_refused() -> None:
    with pytest.raises(ValueError, match="does not begin at 0"):
        GymnasiumEnv(_Odd, 1)
    with pytest.raises(ValueError, match="observation space Discrete"):
        GymnasiumEnv(lambda: gym.make("FrozenLake-v1"), 1)
    with pytest.raises(ValueError, match="num_envs is 0"):
        GymnasiumEnv(_Odd, 0)
    env = GymnasiumEnv(counters([2], ["truncated"]), 2)
    env.reset()
    with pytest.raises(ValueError, match=r"expected \(2, 1\)"):
        env.step(torch.zeros(3, 1))
