"""Forward kinematics of the Franka Panda, batched in torch: any device, float32 or float64.

Modified (Craig) Denavit-Hartenberg parameters and joint limits of the manufacturer's interface documentation
(Franka Control Interface, "Denavit-Hartenberg parameters"), plus the flange and the tool centre of its gripper.
Shapes: N rows, 7 joints. Metres and radians, in the frame of the base.
"""

import math

import torch
from torch import Tensor

NUM_JOINTS = 7
# (a, d, alpha) of joints 1 to 7: turn by alpha and move by a along x, turn by the joint and move by d along z.
DENAVIT_HARTENBERG = (
    (0.0, 0.333, 0.0),
    (0.0, 0.0, -math.pi / 2),
    (0.0, 0.316, math.pi / 2),
    (0.0825, 0.0, math.pi / 2),
    (-0.0825, 0.384, -math.pi / 2),
    (0.0, 0.0, math.pi / 2),
    (0.088, 0.0, math.pi / 2),
)
TOOL = 0.107 + 0.1034  # flange plus tool centre point, along z of the last joint
JOINT_LOW = (-2.8973, -1.7628, -2.8973, -3.0718, -2.8973, -0.0175, -2.8973)
JOINT_HIGH = (2.8973, 1.7628, 2.8973, -0.0698, 2.8973, 3.7525, 2.8973)
HOME = (0.0, -math.pi / 4, 0.0, -3 * math.pi / 4, 0.0, math.pi / 2, math.pi / 4)  # tool at (0.307, 0, 0.487)


def tool_position(q: Tensor) -> Tensor:
    """Tool centre (3, N) of joints `q` (7, N): rows first, which keeps every operation on contiguous memory.

    The chain is applied to the one point from the hand to the base, written out because every alpha is a multiple of
    90 degrees and the last joint turns about the tool's own axis.
    """
    s, c = q.sin(), q.cos()
    (d1, d3, d5) = (DENAVIT_HARTENBERG[i][1] for i in (0, 2, 4))
    elbow, wrist = DENAVIT_HARTENBERG[3][0], DENAVIT_HARTENBERG[6][0]
    # Frame 6 seen from 5; a turn by +90 degrees about x takes (x, y, z) to (x, -z, y), by -90 to (x, z, -y).
    x = torch.add(wrist * c[5], s[5], alpha=TOOL)
    z = torch.sub(wrist * s[5], c[5], alpha=TOOL)
    # Joint 5: its y is 0, its z runs along the forearm.
    y, x = torch.mul(s[4], x), torch.mul(c[4], x) - elbow
    z = z + d5
    x, y, z = x, z, -y  # from joint 5 to 4
    x, y = torch.addcmul(c[3] * x, s[3], y, value=-1) + elbow, torch.addcmul(s[3] * x, c[3], y)
    y, z = -z, y + d3  # from 4 to 3
    x, y = torch.addcmul(c[2] * x, s[2], y, value=-1), torch.addcmul(s[2] * x, c[2], y)
    y, z = -z, y  # from 3 to 2
    x, y = torch.addcmul(c[1] * x, s[1], y, value=-1), torch.addcmul(s[1] * x, c[1], y)
    y, z = z, d1 - y  # from 2 to 1
    return torch.stack((torch.addcmul(c[0] * x, s[0], y, value=-1), torch.addcmul(s[0] * x, c[0], y), z))


def link_poses(q: Tensor) -> Tensor:
    """(N, 9, 4, 4) poses of the base, the frames of joints 1 to 7 and the tool, for joints `q` (N, 7)."""
    N = q.shape[0]
    pose = torch.eye(4, dtype=q.dtype, device=q.device).expand(N, 4, 4)
    poses = [pose]
    for i, (a, d, alpha) in enumerate(DENAVIT_HARTENBERG):
        s, c, sa, ca = q[:, i].sin(), q[:, i].cos(), math.sin(alpha), math.cos(alpha)
        zero, one = torch.zeros_like(s), torch.ones_like(s)
        rows = [c, -s, zero, one * a, s * ca, c * ca, -one * sa, -one * sa * d]
        rows += [s * sa, c * sa, one * ca, one * ca * d, zero, zero, zero, one]
        pose = pose @ torch.stack(rows, 1).view(N, 4, 4)
        poses.append(pose)
    tool = torch.eye(4, dtype=q.dtype, device=q.device)
    tool[2, 3] = TOOL
    return torch.stack([*poses, pose @ tool], 1)


def jacobian(q: Tensor) -> Tensor:
    """(N, 6, 7) geometric Jacobian of the tool: linear velocity (3 rows), angular velocity (3 rows) by joint speed."""
    poses = link_poses(q)
    axes = poses[:, 1:8, :3, 2]
    arms = poses[:, 8:9, :3, 3] - poses[:, 1:8, :3, 3]
    return torch.cat([torch.linalg.cross(axes, arms), axes], 2).transpose(1, 2)


def joint_limits(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Lowest and highest joint positions, (7,) each."""
    low = torch.tensor(JOINT_LOW, dtype=dtype, device=device)
    return low, torch.tensor(JOINT_HIGH, dtype=dtype, device=device)
