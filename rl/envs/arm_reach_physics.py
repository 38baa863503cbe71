"""`ArmReachPhysics-v1`: ArmReach with a simulated arm (SAPIEN, PhysX): inertia, contacts with itself and the floor.

Everything but the motion is ArmReach's. The drives aim at the measured joint positions plus the action, so the
observation says all there is to know; in 0.1 s the arm goes about two thirds of the way.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rl.config import SupervisionConfig
from rl.envs import arm_reach
from rl.envs import franka_kinematics as franka
from rl.envs.arm_reach import ArmReach
from rl.envs.supervised_sims import SupervisedArmPhysics
from rl.envs.vector import cannot_save

TIMESTEP = 0.01  # s
SUBSTEPS = round(arm_reach.STEP_SECONDS / TIMESTEP)


class ArmReachPhysics(ArmReach):
    """Implements `rl.envs.vector.VectorEnv` with a world for every environment; PhysX runs on the CPU.

    The inner state of a world cannot be saved, and a reset builds worlds anew.
    """

    resumes_exactly = False

    def __init__(
        self, num_envs: int, device: torch.device | str = "cpu", *, seed: int = 0,
        random_phase: bool = True, reach_bonus: bool = False, processes: SupervisionConfig | None = None,
    ) -> None:  # fmt: skip
        """As ArmReach. `processes`: every world in a supervised process of its own; None: all in this one."""
        super().__init__(num_envs, device, seed=seed, random_phase=random_phase, reach_bonus=reach_bonus)
        bounded = self.observation_space  # a moving arm may overshoot
        self.observation_space = spaces.Box(-np.inf, np.inf, bounded.shape, np.float32)
        self._processes = processes
        self._physics: Any = None
        self._resets = -1

    def reset(self, seed: int | None = None) -> Tensor:
        """In new worlds, because a used one remembers contacts."""
        if self._processes is not None:
            if self._physics is None:
                self._physics = SupervisedArmPhysics(self.num_envs, TIMESTEP, self._processes)
            else:
                self._physics.renew()
        else:
            from rl.sims.arm_physics import ArmPhysics  # a simulator is loaded only when it is chosen

            self.close()
            self._physics = ArmPhysics(self.num_envs, TIMESTEP)
        return super().reset(seed)

    def state_dict(self) -> dict[str, Any]:
        raise cannot_save("a PhysX world")

    def load_state_dict(self, state: dict[str, Any]) -> Tensor:
        raise cannot_save("a PhysX world")

    def close(self) -> None:
        if self._physics is not None:
            self._physics.close()
            self._physics = None

    def _move(self, q: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        target = torch.add(q, actions.clamp(-1.0, 1.0), alpha=arm_reach.STEP_RADIANS)
        target = target.maximum(self._low).minimum(self._high)
        closed = self._obs[:, arm_reach.DISTANCE][:, 0] < arm_reach.GRIPPER_DISTANCE
        self._physics.move(target.cpu().numpy(), closed.cpu().numpy(), SUBSTEPS)
        positions, velocities = self._physics.joints()
        if self._processes is not None:
            self._lost = torch.from_numpy(self._physics.take_lost()).to(self.device)
        return torch.from_numpy(positions).to(self.device), torch.from_numpy(velocities).to(self.device)

    def _begin_episodes(self, where: Tensor) -> None:
        for world in where.nonzero()[:, 0].tolist():
            self._physics.place(world, franka.HOME)
