"""ArmReach with physics and ArmReach seen by cameras."""

import numpy as np
import pytest
import torch

from rl.config import Encoder, PPONetworkConfig
from rl.envs.arm_expert import expert_actions
from rl.envs.arm_reach import HORIZON, JOINTS, TARGET, ArmReach
from rl.envs.arm_reach_physics import ArmReachPhysics
from rl.envs.vision_arm_reach import VisionArmReach
from rl.models.actor_critic import ActorCritic
from rl.models.gr00t_observation import observed


def actions(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 7, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_the_simulated_arm_starts_like_the_kinematic_one_and_moves_less_far() -> None:
    arm, physics = ArmReach(3, random_phase=False), ArmReachPhysics(3, random_phase=False)
    start = physics.reset(4)
    assert torch.equal(arm.reset(4), start)
    push = torch.tensor([[1.0, 0, 0, 0, 0, 0, 0]] * 3)
    moved = physics.step(push).next_observation[:, 0] - start[:, 0]
    assert bool(((moved > 0.04) & (moved < 0.1)).all())
    physics.close()


def test_the_expert_solves_the_simulated_arm() -> None:
    env = ArmReachPhysics(16, random_phase=False)
    obs = env.reset(1)
    for _ in range(HORIZON):
        step = env.step(expert_actions(obs))
        obs = step.observation
    assert float(step.infos["success"].float().mean()) >= 0.9
    assert bool(step.truncated.all())
    torch.testing.assert_close(obs[:, JOINTS], env.reset()[:, JOINTS])  # the next episode begins at home
    env.close()


def test_simulated_episodes_are_a_function_of_the_seed() -> None:
    def run(env: ArmReachPhysics, seed: int) -> torch.Tensor:
        obs = env.reset(seed)
        return torch.stack([obs, *[env.step(actions(2, t)).observation for t in range(HORIZON + 20)]])

    env, other = ArmReachPhysics(2), ArmReachPhysics(2, seed=5)
    first = run(env, 0)
    run(other, 3)  # a used environment gives the same episodes as a new one
    assert torch.equal(run(other, 0), first)
    assert not torch.equal(run(other, 1)[0, :, TARGET], first[0, :, TARGET])
    assert not env.resumes_exactly
    with pytest.raises(ValueError, match="cannot be saved"):
        env.state_dict()
    env.close()
    other.close()


def test_the_cameras_see_the_same_task_and_hide_the_target_from_the_numbers() -> None:
    arm, vision = ArmReach(2), VisionArmReach(2, image_size=64, frame_stack=3)
    arm.reset(7)
    first = vision.reset(7)
    assert isinstance(first, dict)
    assert first["pixels"].shape == (2, 27, 64, 64) and first["pixels"].dtype == torch.uint8
    assert first["state"].shape == (2, 17)
    for t in range(3):
        expected, step = arm.step(actions(2, t)), vision.step(actions(2, t))
        assert isinstance(step.observation, dict)
        assert torch.equal(step.reward, expected.reward)
        assert torch.equal(step.observation["state"], expected.observation[:, :17])
        assert vision.observation_space.contains({k: v[0].numpy() for k, v in step.observation.items()})
    vision.close()


def test_gr00t_is_shown_each_camera_of_the_newest_frame_by_name() -> None:
    vision = VisionArmReach(2, image_size=64, frame_stack=3)
    vision.reset(7)
    seen = vision.step(actions(2, 0)).observation
    assert isinstance(seen, dict)
    frames = seen["pixels"].view(2, 3, 3, 3, 64, 64)  # rows, frames, cameras, colours
    _, pictures, _ = observed(vision.observation_space)
    assert [camera.name for camera in pictures] == ["front", "side", "top"]
    assert all(torch.equal(camera.of(seen), frames[:, -1, i]) for i, camera in enumerate(pictures))
    vision.close()


def test_a_privileged_critic_sees_what_arm_reach_shows_and_the_actor_does_not() -> None:
    arm, vision = ArmReach(2), VisionArmReach(2, image_size=40, frame_stack=1, privileged_critic=True)
    seen, whole = vision.reset(7), arm.reset(7)
    assert isinstance(seen, dict) and torch.equal(seen["critic"], whole)
    for t in range(HORIZON):
        expected, step = arm.step(actions(2, t)), vision.step(actions(2, t))
        assert isinstance(step.observation, dict) and isinstance(step.next_observation, dict)
        assert torch.equal(step.observation["critic"], expected.observation)
        assert torch.equal(step.next_observation["critic"], expected.next_observation)
    policy = ActorCritic(vision.observation_space, vision.action_space, PPONetworkConfig(encoder=Encoder.keypoints))
    begins = torch.zeros(2, dtype=torch.bool)
    action, _ = policy.best(step.observation, None, begins)
    without = {k: v for k, v in step.observation.items() if k != "critic"}
    assert torch.equal(policy.best(without, None, begins)[0], action)
    vision.close()


def test_a_target_elsewhere_changes_the_pictures_of_every_camera() -> None:
    vision = VisionArmReach(8, frame_stack=1, random_phase=False)
    pixels = vision.reset(3)["pixels"].view(8, 3, 3, 64, 64).float()
    for camera in range(3):
        red = (pixels[:, camera, 0] > 200) & (pixels[:, camera, 1] < 90)
        assert int(red.flatten(1).any(1).sum()) >= 5  # the arm may hide it from one camera
        assert len(red.float().flatten(1).unique(dim=0)) >= 5
    vision.close()


def test_the_stack_moves_on_by_one_frame_and_never_holds_frames_of_another_episode() -> None:
    vision = VisionArmReach(2, image_size=40, frame_stack=3)
    pixels = vision.reset(0)["pixels"].view(2, 3, 9, 40, 40)
    assert torch.equal(pixels[:, 0], pixels[:, 2])
    ends = 0
    for t in range(HORIZON):
        before = pixels
        step = vision.step(actions(2, t))
        final = step.next_observation["pixels"].view(2, 3, 9, 40, 40)
        pixels = step.observation["pixels"].view(2, 3, 9, 40, 40)
        assert torch.equal(final[:, :2], before[:, 1:])
        for i in range(2):
            if bool(step.truncated[i]):
                ends += 1
                assert torch.equal(pixels[i, 0], pixels[i, 1]) and torch.equal(pixels[i, 1], pixels[i, 2])
                assert not torch.equal(pixels[i, 2], final[i, 2])
            else:
                assert torch.equal(pixels[i], final[i])
    assert ends == 2
    vision.close()


def test_a_restored_vision_environment_continues_exactly() -> None:
    vision, other = (VisionArmReach(2, image_size=40, frame_stack=2, seed=s) for s in (0, 1))
    vision.reset()
    other.reset()
    for t in range(30):
        vision.step(actions(2, t))
    seen = other.load_state_dict(vision.state_dict())
    assert isinstance(seen, dict) and torch.equal(seen["pixels"], vision._stack.flatten(1, 2))
    for t in range(90):
        a, b = vision.step(actions(2, 50 + t)), other.step(actions(2, 50 + t))
        assert all(torch.equal(a.observation[k], b.observation[k]) for k in ("pixels", "state"))
        assert all(torch.equal(a.next_observation[k], b.next_observation[k]) for k in ("pixels", "state"))
    smaller = VisionArmReach(2, image_size=64, frame_stack=2)
    with pytest.raises(ValueError, match="--image_size"):
        smaller.load_state_dict(vision.state_dict())
    for env in (vision, other, smaller):
        env.close()


def test_pictures_no_network_can_read_are_refused() -> None:
    with pytest.raises(ValueError, match="20 px"):
        VisionArmReach(1, image_size=20)
    with pytest.raises(ValueError, match="frame_stack is 0"):
        VisionArmReach(1, frame_stack=0)


def test_vision_without_a_renderer_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from rl.sims import rendering

    def no_device(gpu: int | None) -> None:
        raise ValueError(rendering.NO_DEVICE.format(detail="none"))

    monkeypatch.setattr(rendering, "shared_device", no_device)
    with pytest.raises(ValueError, match="no Vulkan device can render"):
        VisionArmReach(1)


def test_the_ball_is_drawn_where_the_target_is() -> None:
    """From the top camera: right of the base in the picture means negative y, up means positive x."""
    vision = VisionArmReach(64, frame_stack=1, random_phase=False)
    pixels = vision.reset(5)["pixels"].view(64, 3, 3, 64, 64).float()[:, 2]
    target = vision._arm.state_dict()["observation"][:, TARGET].numpy()
    red = ((pixels[:, 0] > 200) & (pixels[:, 1] < 90)).numpy()
    rows, columns = [], []
    for i in range(64):
        where = np.argwhere(red[i])
        rows.append(where[:, 0].mean() if len(where) else np.nan)
        columns.append(where[:, 1].mean() if len(where) else np.nan)
    seen = ~np.isnan(rows)
    assert seen.sum() > 50
    assert np.corrcoef(np.array(rows)[seen], target[seen, 0])[0, 1] < -0.95
    assert np.corrcoef(np.array(columns)[seen], target[seen, 1])[0, 1] < -0.95
    vision.close()
