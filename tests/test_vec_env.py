"""Several environments of one process: seeds, SAME_STEP autoreset and what it hides."""

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from rl.config import EnvironmentConfig
from rl.vec_env import make_vector_env, true_info, true_next_observation

CONFIG = EnvironmentConfig()


def test_autoreset_keeps_the_final_observation_and_info() -> None:
    envs = make_vector_env(CONFIG, "student", 2, max_steps=3)
    assert envs.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    envs.reset()
    actions = np.full((2, 32), 0.3, np.float32)
    for _ in range(2):
        observations, _, _, truncated, infos = envs.step(actions)
        assert not truncated.any()
        assert true_next_observation(observations, infos) is observations
        np.testing.assert_array_equal(true_info(infos, "executed_action", 2), infos["executed_action"])
    observations, _, terminated, truncated, infos = envs.step(actions)
    assert truncated.all() and not terminated.any()
    # What is returned belongs to the next episode, what is restored to the one that ended.
    assert (observations["history_mask"].sum(1) == 1).all()
    true = true_next_observation(observations, infos)
    assert (true["history_mask"] == 1).all()
    np.testing.assert_allclose(true["action_history"][:, :3, :7], 0.3, atol=1e-6)
    np.testing.assert_allclose(true_info(infos, "executed_action", 2)[:, :7], 0.3, atol=1e-6)
    assert true_info(infos, "episode_index", 2).tolist() == [0, 0]
    assert infos["episode_index"].tolist() == [1, 1]
    head = infos["final_info"]["privileged"]["head"]
    assert head.shape == (2, 64, 64, 3) and (head != infos["privileged"]["head"]).any()
    envs.close()


def test_environments_that_end_at_different_steps_are_told_apart() -> None:
    envs = make_vector_env(CONFIG, "teacher", 2, max_steps=4)
    envs.reset()
    actions = np.zeros((2, 32), np.float32)
    envs.step(actions)
    envs.envs[1].reset()  # now one step behind the first
    for _ in range(2):
        envs.step(actions)
    observations, _, _, truncated, infos = envs.step(actions)
    assert truncated.tolist() == [True, False]
    true = true_next_observation(observations, infos)
    assert true["history_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 1, 1]]
    assert observations["history_mask"].tolist() == [[0, 0, 0, 1], [1, 1, 1, 1]]
    np.testing.assert_array_equal(true["image1"][1], observations["image1"][1])
    assert true_info(infos, "episode_index", 2).tolist() == [0, 1]
    envs.close()


def test_environments_and_ranks_play_different_episodes_and_repeat_themselves() -> None:
    def first_frames(rank: int) -> np.ndarray:
        envs = make_vector_env(CONFIG, "teacher", 2, rank=rank, seed=7)
        frames = envs.reset()[0]["image1"]
        envs.close()
        return frames

    a, b = first_frames(0), first_frames(1)
    assert len({f.tobytes() for f in (*a, *b)}) == 4
    np.testing.assert_array_equal(a, first_frames(0))


def test_resume_sets_the_next_episode_of_every_environment() -> None:
    envs = make_vector_env(CONFIG, "teacher", 2)
    envs.set_attr("next_episode", [4, 9])
    infos = envs.reset()[1]
    assert infos["episode_index"].tolist() == [4, 9]
    assert envs.get_attr("next_episode") == (5, 10)
    envs.close()


def test_a_missing_info_is_an_error() -> None:
    with pytest.raises(KeyError, match="executed_action"):
        true_info({}, "executed_action", 2)


@pytest.mark.parametrize("num_envs", [0, -1])
def test_no_environments_are_refused(num_envs: int) -> None:
    with pytest.raises(ValueError, match="num_envs"):
        make_vector_env(CONFIG, "teacher", num_envs)


def test_an_unknown_phase_is_refused() -> None:
    with pytest.raises(ValueError, match="teacher, student, adversarial"):
        make_vector_env(CONFIG, "pupil", 1)
