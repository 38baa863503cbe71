"""The simulators of the arm tasks in supervised processes, behind the methods that they have without."""

from functools import partial

import numpy as np
import numpy.typing as npt

from rl.config import SupervisionConfig
from rl.envs import franka_kinematics as franka
from rl.envs.supervised import Lost, Workers

FloatArray = npt.NDArray[np.float32]


def _physics(timestep: float) -> object:
    from rl.sims.arm_physics import ArmPhysics  # a simulator is loaded only in its own process

    return ArmPhysics(1, timestep)


def _scene(image_size: int, gpu: int | None) -> object:
    from rl.sims.arm_scene import ArmScene

    return ArmScene(image_size, gpu)


class SupervisedArmPhysics:
    """`rl.sims.arm_physics.ArmPhysics` with a process for every world. A lost one is built again, its arm at rest at
    home, and told by `take_lost`."""

    def __init__(self, count: int, timestep: float, limits: SupervisionConfig) -> None:
        self._workers = Workers([partial(_physics, timestep)] * count, limits)
        self._lost = np.zeros(count, np.bool_)

    def renew(self) -> None:
        """New worlds."""
        self._workers.build_again()  # one that is lost in it has been built, too
        self._lost[:] = False

    def place(self, world: int, joints: npt.ArrayLike) -> None:
        """As ArmPhysics."""
        while isinstance(self._workers.call("place", [(0, np.asarray(joints))], [world])[0], Lost):
            continue  # built again, so place it again; `Workers` says when that is too often

    def move(self, targets: FloatArray, gripper_closed: npt.NDArray[np.bool_], substeps: int) -> None:
        """As ArmPhysics; all worlds at the same time."""
        self._workers.step()
        arguments = [(t[None], c[None], substeps) for t, c in zip(targets, gripper_closed, strict=True)]
        self._note(self._workers.call("move", arguments))

    def joints(self) -> tuple[FloatArray, FloatArray]:
        """As ArmPhysics; of a lost world those at home."""
        answers = self._workers.call("joints")
        self._note(answers)
        home = (np.asarray([franka.HOME], np.float32), np.zeros((1, franka.NUM_JOINTS), np.float32))
        rows = [home if lost else answer for lost, answer in zip(self._lost, answers, strict=True)]
        return np.concatenate([r[0] for r in rows]), np.concatenate([r[1] for r in rows])

    def _note(self, answers: list[object]) -> None:
        self._lost |= np.array([isinstance(a, Lost) for a in answers])

    def take_lost(self) -> npt.NDArray[np.bool_]:
        """(E,) worlds lost since the last call."""
        lost, self._lost = self._lost, np.zeros_like(self._lost)
        return lost

    def close(self) -> None:
        self._workers.close()


class SupervisedArmScene:
    """`rl.sims.arm_scene.ArmScene` in a process. A picture is a function of what is posed: when the process is lost,
    it is drawn again and no episode notices."""

    def __init__(self, image_size: int, gpu: int | None, limits: SupervisionConfig) -> None:
        """Raises ValueError as ArmScene."""
        self._workers = Workers([partial(_scene, image_size, gpu)], limits)

    def draw(self, joints: npt.ArrayLike, target: npt.ArrayLike, gripper_closed: bool) -> npt.NDArray[np.uint8]:
        """As ArmScene."""
        arguments = [(np.asarray(joints), np.asarray(target), gripper_closed)]
        self._workers.step()
        while isinstance(picture := self._workers.call("draw", arguments)[0], Lost):
            continue  # `Workers` says when that is too often
        return np.asarray(picture)

    @property
    def losses(self) -> int:
        return len(self._workers.losses)

    def close(self) -> None:
        self._workers.close()
