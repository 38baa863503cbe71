import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.envs import franka_kinematics as franka
from rl.sims.panda_assets import panda_directory
from tests.envs.urdf_oracle import UrdfChain


@pytest.fixture(scope="module")
def chain() -> UrdfChain:
    return UrdfChain(panda_directory() / "panda_v2.urdf", "panda_hand_tcp")


def joints(count: int, seed: int) -> torch.Tensor:
    low, high = franka.joint_limits(dtype=torch.float64)
    return low + (high - low) * torch.rand(count, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_the_home_pose_puts_the_tool_in_front_of_the_base() -> None:
    home = torch.tensor([franka.HOME], dtype=torch.float64)
    expected = torch.tensor([[0.307, 0.0, 0.487]], dtype=torch.float64)
    torch.testing.assert_close(franka.tool_position(home.t()).t(), expected, atol=5e-4, rtol=0)


def test_the_tool_is_where_the_urdf_of_the_robot_puts_it(chain: UrdfChain) -> None:
    q = joints(50, 0)
    expected = np.stack([chain.pose(row)[:3, 3] for row in q.numpy()])
    np.testing.assert_allclose(franka.tool_position(q.t()).t().numpy(), expected, atol=1e-5)


def test_the_joint_limits_lie_within_those_of_the_urdf(chain: UrdfChain) -> None:
    low, high = franka.joint_limits(dtype=torch.float64)
    np.testing.assert_allclose(torch.stack([low, high], 1).numpy(), chain.limits, atol=1e-3)


def test_the_tool_points_where_the_urdf_says(chain: UrdfChain) -> None:
    q = joints(20, 1)
    expected = np.stack([chain.pose(row)[:3, 2] for row in q.numpy()])  # the hand is turned about this axis only
    np.testing.assert_allclose(franka.link_poses(q)[:, 8, :3, 2].numpy(), expected, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_short_formula_of_the_tool_agrees_with_the_chain_of_frames(seed: int) -> None:
    q = joints(4, seed)
    expected = franka.link_poses(q)[:, 8, :3, 3]
    torch.testing.assert_close(franka.tool_position(q.t()).t(), expected, atol=1e-12, rtol=0)


def test_the_jacobian_is_the_derivative_of_the_pose() -> None:
    q = joints(10, 2)
    J = franka.jacobian(q)
    step = 1e-6
    for i in range(7):
        dq = torch.zeros(7, dtype=torch.float64)
        dq[i] = step
        ahead, behind = franka.link_poses(q + dq)[:, 8], franka.link_poses(q - dq)[:, 8]
        linear = (ahead[:, :3, 3] - behind[:, :3, 3]) / (2 * step)
        spin = (ahead[:, :3, :3] - behind[:, :3, :3]) / (2 * step) @ franka.link_poses(q)[:, 8, :3, :3].mT
        angular = torch.stack([spin[:, 2, 1], spin[:, 0, 2], spin[:, 1, 0]], 1)
        torch.testing.assert_close(J[:, :3, i], linear, atol=1e-8, rtol=0)
        torch.testing.assert_close(J[:, 3:, i], angular, atol=1e-8, rtol=0)


def test_single_precision_is_exact_to_a_micrometre() -> None:
    q = joints(1000, 3)
    exact = franka.tool_position(q.t())
    torch.testing.assert_close(franka.tool_position(q.float().t()).double(), exact, atol=2e-6, rtol=0)
