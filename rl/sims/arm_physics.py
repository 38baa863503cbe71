"""A Panda above a floor in PhysX, several of them in worlds of their own; nothing is drawn."""

import numpy as np
import numpy.typing as npt
import sapien
from sapien import physx

from rl.sims.panda_robot import GRIPPER_RANGE, NUM_JOINTS, load_panda

FloatArray = npt.NDArray[np.float32]


class ArmPhysics:
    """`count` worlds. Arrays have a row a world; joints in rad, velocities in rad/s."""

    def __init__(self, count: int, timestep: float) -> None:
        self._worlds, self._robots, self._drives = [], [], []
        for _ in range(count):
            system = physx.PhysxCpuSystem()
            system.timestep = timestep
            scene = sapien.Scene([system])
            _add_floor(scene)
            robot = load_panda(scene, low_poly=True, visible=False)
            self._worlds.append(scene)
            self._robots.append(robot)
            self._drives.append(robot.active_joints)

    def place(self, world: int, joints: npt.ArrayLike) -> None:
        """The arm at rest at `joints` (7,), gripper open."""
        robot = self._robots[world]
        robot.set_qpos(np.append(np.asarray(joints), [GRIPPER_RANGE[1]] * 2).astype(np.float32))
        robot.set_qvel(np.zeros(NUM_JOINTS + 2, np.float32))

    def move(self, targets: FloatArray, gripper_closed: npt.NDArray[np.bool_], substeps: int) -> None:
        """Drives the joints to `targets` (E, 7) for `substeps` of physics."""
        fingers = np.where(gripper_closed, *GRIPPER_RANGE)
        for scene, drives, target, finger in zip(self._worlds, self._drives, targets, fingers, strict=True):
            for joint, value in zip(drives, [*target, finger, finger], strict=True):
                joint.set_drive_target(float(value))
            for _ in range(substeps):
                scene.step()

    def joints(self) -> tuple[FloatArray, FloatArray]:
        """Positions and velocities of the arms, (E, 7) each."""
        positions = np.stack([r.qpos[:NUM_JOINTS] for r in self._robots])
        return positions, np.stack([r.qvel[:NUM_JOINTS] for r in self._robots])

    def close(self) -> None:
        """Releases the worlds."""
        self._robots.clear()
        self._drives.clear()
        for scene in self._worlds:
            scene.clear()
        self._worlds.clear()


def _add_floor(scene: sapien.Scene) -> None:
    body = physx.PhysxRigidStaticComponent()
    body.attach(physx.PhysxCollisionShapeBox([2.5, 2.5, 0.05], physx.get_default_material()))
    entity = sapien.Entity()
    entity.add_component(body)
    entity.pose = sapien.Pose([0, 0, -0.05])
    scene.add_entity(entity)
