import importlib.util

import gymnasium as gym
import pytest
import torch

from rl.envs import registry
from rl.envs.registry import TaskOptions, make_vector_env


def test_a_task_is_made_by_its_id_with_its_options() -> None:
    env = make_vector_env("ArmReach-v1", 3, options=TaskOptions(reach_bonus=True, random_phase=False))
    assert env.num_envs == 3 and env.observation_space.shape == (22,) and env.max_episode_steps == 100
    pixels = make_vector_env("VisionArmReach-v1", 1, options=TaskOptions(image_size=40, frame_stack=2))
    assert pixels.observation_space["pixels"].shape == (18, 40, 40)
    pixels.close()
    pole = make_vector_env("CartPole-v1", 2)
    assert pole.max_episode_steps == 500 and pole.action_space == gym.spaces.Discrete(2)
    pole.close()


@pytest.mark.parametrize(
    ("task", "nearest"),
    [("ArmReech-v1", "ArmReach-v1"), ("cartpole-v1", "CartPole-v1"), ("Pendulum-v9", "Pendulum-v1")],
)
def test_an_unknown_task_names_the_nearest_ones(task: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"task '{task}' is unknown; did you mean .*{nearest}"):
        make_vector_env(task, 1)


def test_a_name_like_no_other_lists_them_all() -> None:
    with pytest.raises(
        ValueError, match=r"there are ArmReach-v1, ArmReachPhysics-v1, VisionArmReach-v1, .*CartPole-v1"
    ):
        registry.check_task("xyzzyplugh")


def test_a_task_whose_package_is_missing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(task: str, **kwargs: object) -> None:
        raise gym.error.DependencyNotInstalled("MuJoCo is not installed, run `pip install gymnasium[mujoco]`")

    monkeypatch.setattr(gym, "make", make)
    with pytest.raises(ValueError, match=r"task Ant-v5 needs a package .* -m pip install -r requirements/mujoco.txt"):
        make_vector_env("Ant-v5", 1)


@pytest.mark.skipif(importlib.util.find_spec("mujoco") is None, reason="needs requirements/mujoco.txt")
@pytest.mark.parametrize("task", ["Ant-v5", "HalfCheetah-v5", "Humanoid-v5"])
def test_mujoco_tasks_step_through_the_same_interface(task: str) -> None:
    env = make_vector_env(task, 2, seed=1)
    first = env.reset(0)
    assert torch.equal(env.reset(0), first) and env.max_episode_steps == 1000
    step = env.step(torch.zeros(2, *env.action_space.shape))
    assert step.valid.all() and step.reward.shape == (2,) and torch.isfinite(step.observation).all()
    env.close()
