"""A policy that solves ArmReach without learning: damped least squares (Nakamura and Hanafusa 1986)."""

import torch
from torch import Tensor

from rl.envs import arm_reach
from rl.envs import franka_kinematics as franka

DAMPING = 0.05  # m; keeps the step bounded near singular poses
HOME_WEIGHT = 0.05  # pull towards the home pose in the null space, away from joint limits


def expert_actions(observation: Tensor) -> Tensor:
    """(E, 7) actions in [-1, 1] from ArmReach observations (E, 21 or more).

    dq = J^T (J J^T + damping^2 I)^-1 (target - tool) + (I - J^+ J) pull, shortened to 0.1 rad as a whole, so that its
    direction stays.
    """
    q = observation[:, arm_reach.JOINTS].double()
    error = (observation[:, arm_reach.TARGET] - observation[:, arm_reach.TOOL]).double()
    J = franka.jacobian(q)[:, :3]
    damped = J @ J.mT + DAMPING**2 * torch.eye(3, dtype=q.dtype, device=q.device)
    inverse = J.mT @ torch.linalg.inv(damped)  # (E, 7, 3)
    home = torch.tensor(franka.HOME, dtype=q.dtype, device=q.device)
    pull = HOME_WEIGHT * (home - q)
    step = (inverse @ error[:, :, None])[:, :, 0]
    step = step + pull - (inverse @ (J @ pull[:, :, None]))[:, :, 0]
    largest = step.abs().amax(1, keepdim=True).clamp_min(arm_reach.STEP_RADIANS)
    return (step / largest).float()
