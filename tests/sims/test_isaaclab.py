"""The Isaac Lab adapter against an environment of its contract; tests/isaaclab has the real one."""

import logging

import gymnasium as gym
import pytest
import torch

from rl.sims.isaaclab import IsaacLabEnv
from rl.types import VectorStep
from tests.sims.fake_isaaclab import FakeIsaacEnv


def adapter(fake: FakeIsaacEnv, limit: float | None = 1.0, random_phase: bool = False) -> IsaacLabEnv:
    return IsaacLabEnv(fake, limit, random_phase, seed=0)


def steps(env: IsaacLabEnv, count: int) -> list[VectorStep]:
    return [env.step(torch.zeros(env.num_envs, 1)) for _ in range(count)]


def test_the_true_last_observation_is_told_where_an_episode_ended_and_only_there() -> None:
    env = adapter(FakeIsaacEnv())
    env.reset(0)
    taken = steps(env, 5)
    # Environment 0 terminates at count 3 and goes on; the others are cut at 5.
    assert [s.next_observation[0, 0].item() for s in taken] == [1, 2, 3, 1, 2]  # type: ignore[index]
    assert [s.next_observation[1, 0].item() for s in taken] == [1, 2, 3, 4, 5]  # type: ignore[index]
    assert [s.observation[0, 0].item() for s in taken] == [1, 2, 0, 1, 2]  # type: ignore[index]
    assert taken[4].observation[1, 0] == 0  # type: ignore[index]
    assert [s.terminated[0].item() for s in taken] == [False, False, True, False, False]
    assert taken[4].truncated.tolist() == [False, True, True]


def test_what_was_returned_is_not_written_over_by_later_steps() -> None:
    env = adapter(FakeIsaacEnv())
    first = env.reset(0)
    taken = steps(env, 2)
    assert isinstance(first, torch.Tensor)
    assert first[:, 0].tolist() == [0, 0, 0]
    assert taken[0].reward.tolist() == [1, 1, 1]
    assert taken[0].observation[:, 0].tolist() == [1, 1, 1]  # type: ignore[index]


def test_the_simulator_steps_in_inference_mode_and_what_it_hands_out_can_be_trained_on() -> None:
    env = adapter(FakeIsaacEnv(), random_phase=True)
    first = env.reset(0)
    taken = steps(env, 4)
    assert env.env.episode_length_buf.is_inference()
    handed = [first, *(x for s in taken for x in (s.observation, s.next_observation, s.reward, s.terminated,
                                                  s.truncated, s.valid))]  # fmt: skip
    assert all(isinstance(x, torch.Tensor) and not x.is_inference() for x in handed)


def test_an_end_by_time_and_by_failure_at_once_is_a_failure() -> None:
    env = adapter(FakeIsaacEnv(limit=3, fatal=3))
    env.reset(0)
    last = steps(env, 3)[-1]
    assert last.terminated.tolist() == [True, False, False]
    assert last.truncated.tolist() == [False, True, True]


def test_the_end_of_a_finite_horizon_is_a_termination() -> None:
    env = adapter(FakeIsaacEnv(limit=2, finite=True))
    env.reset(0)
    last = steps(env, 2)[-1]
    assert last.terminated.all()
    assert not last.truncated.any()


def test_without_final_observations_the_one_before_stands_in_and_it_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    env = adapter(FakeIsaacEnv(final_obs=False))
    env.reset(0)
    taken = steps(env, 5)
    assert taken[4].next_observation[1, 0] == 4  # type: ignore[index]
    assert sum("stands in" in r.message for r in caplog.records) == 1


def test_actions_are_bounded_by_us() -> None:
    fake = FakeIsaacEnv()
    env = adapter(fake, limit=0.5)
    assert isinstance(env.action_space, gym.spaces.Box)
    assert (env.action_space.low.item(), env.action_space.high.item()) == (-0.5, 0.5)
    env.reset(0)
    env.step(torch.tensor([[-3.0], [0.2], [9.0]]))
    assert fake.sent[0].flatten().tolist() == pytest.approx([-0.5, 0.2, 0.5])
    free = FakeIsaacEnv()
    unbounded = adapter(free, limit=None)
    unbounded.reset(0)
    unbounded.step(torch.full((3, 1), 9.0))
    assert free.sent[0].flatten().tolist() == [9.0, 9.0, 9.0]
    with pytest.raises(ValueError, match="actions have shape"):
        env.step(torch.zeros(3))


def test_the_critics_group_stays_apart_by_its_name() -> None:
    env = adapter(FakeIsaacEnv(critic=True))
    first = env.reset(0)
    assert isinstance(env.observation_space, gym.spaces.Dict)
    assert set(env.observation_space.spaces) == {"critic", "policy"}
    assert isinstance(first, dict)
    last = steps(env, 3)[-1].next_observation
    assert isinstance(last, dict)
    assert last["critic"][0].item() == 30


def test_first_episodes_begin_anywhere_in_training_and_at_the_beginning_in_evaluation() -> None:
    fake = FakeIsaacEnv(num_envs=64, limit=100)
    env = adapter(fake, random_phase=True)
    env.reset(0)
    assert len(fake.episode_length_buf.unique()) > 20
    view = env.evaluating()
    view.reset(0)
    assert not fake.episode_length_buf.any()
    view.close()
    assert fake.closed == 0
    env.close()
    assert fake.closed == 1


def test_steps_of_an_evaluation_do_not_count_for_a_curriculum() -> None:
    fake = FakeIsaacEnv()
    env = adapter(fake)
    env.reset(0)
    steps(env, 4)
    view = env.evaluating()
    view.reset(0)
    steps(view, 9)
    view.close()
    assert env.steps_taken == 4
    env.steps_taken = 4_500  # of the run that this one continues
    steps(env, 1)
    assert fake.common_step_counter == 4_501


def test_seeds_are_a_function_of_the_seed_and_the_number_of_resets() -> None:
    fakes = FakeIsaacEnv(), FakeIsaacEnv()
    for fake in fakes:
        env = adapter(fake)
        for seed in (7, None, 7, 8):
            env.reset(seed)
    assert fakes[0].seeds == fakes[1].seeds
    assert fakes[0].seeds[0] == fakes[0].seeds[2]
    assert len(set(fakes[0].seeds)) == 3


def test_its_state_cannot_be_saved() -> None:
    env = adapter(FakeIsaacEnv())
    assert not env.resumes_exactly
    with pytest.raises(ValueError, match="cannot be saved"):
        env.state_dict()
    with pytest.raises(ValueError, match="cannot be saved"):
        env.load_state_dict({})
