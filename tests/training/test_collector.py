"""Collection of episodes: whole, counted over all environments, true at their ends, and repeatable."""

from collections.abc import Iterator

import numpy as np
import pytest

from rl.config import Config
from rl.f1_rl_env import TeacherEnv
from rl.training.collector import EpisodeCollector, RandomActions
from rl.types import EpisodeRecord

STEPS, ENVS, SEED = 5, 2, 3


def _config(num_envs: int) -> Config:
    config = Config()
    config.training.num_envs, config.training.steps_per_episode = num_envs, STEPS
    config.environment.num_objects = 2
    config.environment.vlm_size = 80  # another size than the world model's, so that they cannot be confused
    return config


def _collector(num_envs: int = ENVS, rank: int = 0) -> EpisodeCollector:
    return EpisodeCollector(_config(num_envs), "teacher", rank, "cpu", num_obs=4, stride=1, seed=SEED)


def _random(collector: EpisodeCollector, rank: int = 0) -> RandomActions:
    return RandomActions(SEED, rank, collector.action_mask, collector.num_envs)


@pytest.fixture(scope="module")
def three_rounds() -> Iterator[list[EpisodeRecord]]:
    collector = _collector()
    yield collector.collect_steps(3 * ENVS * STEPS, _random(collector))
    collector.close()


def _equal(a: EpisodeRecord, b: EpisodeRecord) -> bool:
    return all(
        np.array_equal(getattr(a, n), getattr(b, n)) for n in ("head", "wrist", "wrist_vlm", "states", "actions")
    )


def test_steps_are_counted_over_all_environments_and_episodes_are_whole(three_rounds: list[EpisodeRecord]) -> None:
    assert [(r.env_index, r.episode_index) for r in three_rounds] == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
    for r in three_rounds:
        assert r.head.shape == r.wrist_vlm.shape == (STEPS + 1, 80, 80, 3) and r.head.dtype == np.uint8
        assert r.wrist.shape == (STEPS + 1, 64, 64, 3) and r.wrist.dtype == np.uint8
        assert r.states.shape == (STEPS + 1, 32) and r.actions.shape == (STEPS, 32)


@pytest.mark.parametrize("number", [0, STEPS, ENVS * STEPS + 1])
def test_a_number_of_steps_that_cuts_an_episode_is_refused(number: int) -> None:
    collector = _collector()
    with pytest.raises(ValueError, match=f"with 2 environments and {STEPS} steps .* multiple of {ENVS * STEPS}"):
        collector.collect_steps(number, _random(collector))
    collector.close()


def test_every_frame_is_the_one_a_single_environment_shows_also_the_last(three_rounds: list[EpisodeRecord]) -> None:
    record = three_rounds[3]  # environment 1, episode 1: the vector step that ended episode 0 had already begun it
    env = TeacherEnv(_config(ENVS).environment, max_steps=STEPS, seed=SEED, env_index=1)
    observation, _ = env.reset(options={"episode": 1})
    for t in range(STEPS + 1):
        np.testing.assert_array_equal(record.head[t], observation["image0"])
        np.testing.assert_array_equal(record.wrist_vlm[t], observation["image1"])
        np.testing.assert_array_equal(record.wrist[t], observation["image0_history"][-1])
        np.testing.assert_array_equal(record.states[t], observation["state"])
        if t < STEPS:
            observation, _, _, truncated, info = env.step(record.actions[t])
            np.testing.assert_array_equal(record.actions[t], info["executed_action"])
    assert truncated
    assert not _equal(record, three_rounds[1]) and not _equal(record, three_rounds[2])
    env.close()


def test_random_actions_are_a_function_of_seed_rank_environment_and_episode() -> None:
    mask = np.arange(32) < 8

    def episode(index: int, seed: int = 0, rank: int = 0, envs: int = 2) -> np.ndarray:
        act = RandomActions(seed, rank, mask, envs)
        return np.stack([act({}, index, t) for t in range(4)])

    a = episode(5)
    assert a.shape == (4, 2, 32) and (np.abs(a) <= 1).all() and not a[:, :, 8:].any() and a[:, :, :8].all()
    act = RandomActions(0, 0, mask, 2)  # what was played before does not matter
    for played in (0, 5):
        again = np.stack([act({}, played, t) for t in range(4)])
    np.testing.assert_array_equal(again, a)
    np.testing.assert_array_equal(episode(5, envs=3)[:, :2], a)  # nor how many environments there are
    different = [a[:, 0], a[:, 1], episode(6)[:, 0], episode(5, seed=1)[:, 0], episode(5, rank=1)[:, 0]]
    assert len({d.tobytes() for d in different}) == len(different)


def test_after_a_rebuild_the_named_episode_is_played_as_if_nothing_had_happened(
    three_rounds: list[EpisodeRecord],
) -> None:
    collector = _collector()
    act = _random(collector)
    collector.collect_steps(ENVS * STEPS, act)
    collector.rebuild(2)
    for record, expected in zip(collector.collect_steps(ENVS * STEPS, act), three_rounds[4:], strict=True):
        assert _equal(record, expected) and record.episode_index == 2
    collector.rebuild(1)
    assert _equal(collector.collect_steps(ENVS * STEPS, act)[1], three_rounds[3])
    collector.close()


def test_ranks_collect_different_episodes(three_rounds: list[EpisodeRecord]) -> None:
    collector = _collector(1, rank=1)
    record = collector.collect_steps(STEPS, _random(collector, rank=1))[0]
    collector.close()
    assert not np.array_equal(record.wrist, three_rounds[0].wrist)
    assert not np.array_equal(record.actions, three_rounds[0].actions)
