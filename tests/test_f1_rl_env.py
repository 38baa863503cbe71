"""The gymnasium environments: contract, views, alignment, padding, refusals."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from rl.config import EnvironmentConfig
from rl.f1_rl_env import F1RLEnv, StudentEnv, TeacherEnv, gpu_of
from rl.gym_wrapper import make_env

CONFIG = EnvironmentConfig()


@pytest.fixture(scope="module")
def teacher() -> Iterator[TeacherEnv]:
    env = TeacherEnv(CONFIG, max_steps=6)
    yield env
    env.close()


def _action(rng: np.random.Generator) -> np.ndarray:
    return rng.uniform(-1, 1, 32).astype(np.float32)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("phase", ["teacher", "student", "adversarial"])
def test_gymnasium_checker_accepts_every_phase(phase: str) -> None:
    env = make_env(CONFIG, phase, obs_img_stride=2, max_steps=5, render_mode="rgb_array")
    check_env(env)
    assert env.render().shape == (64, 128, 3)
    env.close()


def test_teacher_sees_head_and_wrist_and_the_history_is_the_wrist(teacher: TeacherEnv) -> None:
    observation, info = teacher.reset(options={"episode": 0})
    assert set(observation) == set(teacher.observation_space.spaces)
    np.testing.assert_array_equal(observation["image0"], teacher.sim.render("head"))
    np.testing.assert_array_equal(observation["image1"], teacher.sim.render("wrist"))
    np.testing.assert_array_equal(observation["image0_history"][-1], observation["image1"])
    assert info == {"episode_index": 0}


def test_student_observes_the_wrist_only_and_the_head_is_privileged() -> None:
    student, teacher = StudentEnv(CONFIG), TeacherEnv(CONFIG)
    seen, info = student.reset()
    full, _ = teacher.reset()
    assert "image1" not in seen
    np.testing.assert_array_equal(seen["image0"], full["image1"])
    np.testing.assert_array_equal(seen["image0_history"], full["image0_history"])
    np.testing.assert_array_equal(info["privileged"]["head"], full["image0"])
    info = student.step(np.zeros(32, np.float32))[4]
    assert set(info["privileged"]) == {"head"}
    student.close()
    teacher.close()


@pytest.mark.parametrize("stride", [1, 2])
def test_history_shows_what_was_seen_before_each_executed_action(stride: int) -> None:
    env = TeacherEnv(CONFIG, obs_img_stride=stride, max_steps=20)
    rng = np.random.default_rng(0)
    observation, _ = env.reset()
    wrist, executed = [observation["image1"]], []
    for t in range(1, 12):
        observation, _, _, _, info = env.step(_action(rng))
        wrist.append(observation["image1"])
        executed.append(info["executed_action"])
        for slot in range(4):
            time = t - (3 - slot) * stride
            np.testing.assert_array_equal(observation["image0_history"][slot], wrist[max(time, 0)])
            assert observation["history_mask"][slot] == (time >= 0)
            assert observation["action_known"][slot] == (slot < 3)
            span = executed[max(time, 0) : max(time + stride, 0)] if slot < 3 else []
            np.testing.assert_allclose(observation["action_history"][slot], np.sum([np.zeros(32), *span], 0), atol=1e-6)
    env.close()


def test_episodes_are_truncated_at_max_steps_and_never_terminated(teacher: TeacherEnv) -> None:
    teacher.reset()
    rows = [teacher.step(np.zeros(32, np.float32)) for _ in range(6)]
    assert [r[3] for r in rows] == [False] * 5 + [True]
    assert not any(r[2] for r in rows) and all(r[1] == 0.0 for r in rows)
    with pytest.raises(ValueError, match="reset"):
        teacher.step(np.zeros(32, np.float32))


def test_only_the_real_dims_are_executed_and_reported(teacher: TeacherEnv) -> None:
    assert teacher.action_mask.tolist() == [True] * 8 + [False] * 24
    assert teacher.state_mask.tolist() == [True] * 22 + [False] * 10
    full, padded = np.full(32, 0.5, np.float32), np.zeros(32, np.float32)
    padded[:8] = 0.5
    results = []
    for action in (full, padded):
        teacher.reset(options={"episode": 1})
        results.append(teacher.step(action))
    np.testing.assert_array_equal(results[0][0]["image1"], results[1][0]["image1"])
    info = results[0][4]
    np.testing.assert_allclose(info["executed_action"][:7], 0.5, atol=1e-6)
    assert not info["executed_action"][8:].any()
    assert not results[0][0]["state"][22:].any() and results[0][0]["state"][:7].any()


def test_each_reset_is_the_next_episode_and_a_seed_starts_over(teacher: TeacherEnv) -> None:
    first, info = teacher.reset(seed=5)
    assert info["episode_index"] == 0
    second, info = teacher.reset()
    assert info["episode_index"] == 1
    assert (first["image1"] != second["image1"]).any()
    again, info = teacher.reset(seed=5)
    assert info["episode_index"] == 0
    for key in first:
        np.testing.assert_array_equal(first[key], again[key])
    jumped, info = teacher.reset(options={"episode": 1})
    assert info["episode_index"] == 1 and teacher.next_episode == 2
    np.testing.assert_array_equal(jumped["image1"], second["image1"])
    teacher.reset(seed=0)


def test_rebuild_begins_the_running_episode_again(teacher: TeacherEnv) -> None:
    first, info = teacher.reset(options={"episode": 3})
    teacher.step(np.ones(32, np.float32))
    teacher.rebuild()
    with pytest.raises(ValueError, match="reset"):
        teacher.step(np.ones(32, np.float32))
    again, info_again = teacher.reset()
    assert info_again == info
    np.testing.assert_array_equal(again["image0"], first["image0"])


def test_what_the_two_consumers_see_has_its_own_size() -> None:
    env = TeacherEnv(dataclasses.replace(CONFIG, vlm_size=128, wm_size=64))
    observation, _ = env.reset()
    assert observation["image0"].shape == observation["image1"].shape == (128, 128, 3)
    assert observation["image0_history"].shape == (4, 64, 64, 3)
    expected = cv2.resize(observation["image1"], (64, 64), interpolation=cv2.INTER_AREA)
    np.testing.assert_array_equal(observation["image0_history"][-1], expected)
    env.close()


def test_action_scale_replaces_the_configured_one() -> None:
    moved = []
    for scale in (None, 0.02):
        env = F1RLEnv(CONFIG, action_scale=scale)
        before, _ = env.reset()
        after = env.step(np.eye(32, dtype=np.float32)[0])[0]
        moved.append(float(after["state"][0] - before["state"][0]))
        env.close()
    assert moved[1] == pytest.approx(moved[0] / 5, rel=0.05)
    assert CONFIG.action_scale == 0.1


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"phase": "pupil"}, "teacher, student, adversarial"),
        ({"teacher_policy": object()}, "IntrinsicStepReward"),
        ({"history_length": 0}, "n_obs_img_steps"),
        ({"obs_img_stride": 0}, "obs_img_stride"),
        ({"max_steps": 0}, "max_steps"),
        ({"action_scale": -0.1}, "action_scale"),
        ({"single_arm": False}, "single_arm"),
        ({"device": "tpu"}, "cuda"),
        ({"render_mode": "human"}, "rgb_array"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        F1RLEnv(CONFIG, **options)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"task_name": "fold_laundry"}, "random_exploration"),
        ({"vlm_size": 32}, "vlm_size"),
        ({"wm_size": 512}, "wm_size"),
    ],
)
def test_bad_configurations_are_refused_by_key(change: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        TeacherEnv(dataclasses.replace(CONFIG, **change))


@pytest.mark.parametrize("bad", [np.zeros(8), np.zeros((1, 32)), np.full(32, np.nan)])
def test_bad_actions_are_refused_and_the_episode_goes_on(teacher: TeacherEnv, bad: np.ndarray) -> None:
    teacher.reset()
    with pytest.raises(ValueError, match="action"):
        teacher.step(bad.astype(np.float32))
    observation = teacher.step(np.zeros(32, np.float32))[0]
    assert observation["history_mask"].tolist() == [0, 0, 1, 1]


def test_unknown_reset_options_are_refused(teacher: TeacherEnv) -> None:
    with pytest.raises(ValueError, match="scene"):
        teacher.reset(options={"scene": 1})


def test_device_strings_name_the_gpu_to_draw_on() -> None:
    assert gpu_of("cpu") is None and gpu_of("cuda") == 0 and gpu_of("cuda:3") == 3
    with pytest.raises(ValueError, match="cuda:x"):
        gpu_of("cuda:x")
