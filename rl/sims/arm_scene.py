"""Pictures of the reaching arm: one SAPIEN scene that is posed and drawn, without physics, for any environment."""

import numpy as np
import numpy.typing as npt
import sapien

from rl.sims import rendering
from rl.sims.panda_robot import GRIPPER_RANGE, load_panda
from rl.types import ARM_CAMERAS

UInt8Array = npt.NDArray[np.uint8]
EYES = {"front": (1.9, 0.0, 0.9), "side": (0.0, -1.9, 0.9), "top": (-0.02, 0.0, 2.3)}
LOOK_AT = (0.0, 0.0, 0.3)
FIELD_OF_VIEW = 0.8  # rad; shows every target and the arm
TARGET_SIZE = 0.05  # m, the radius within which the tool must come
TARGET_COLOR = (1.0, 0.02, 0.02, 1.0)  # linear; shines by itself, so that no shadow hides it
FLOOR_COLOR = (0.25, 0.3, 0.35, 1.0)


class ArmScene:
    """A Panda on a floor and a red ball at the target, seen by `ARM_CAMERAS`."""

    def __init__(self, image_size: int, gpu: int | None = None) -> None:
        """`gpu`: CUDA ordinal to draw on, None for the software renderer. Raises ValueError when nothing can draw and
        for a picture below 36 px (what the convolutional encoder needs)."""
        if not 36 <= image_size <= 1024:
            raise ValueError(f"the image size is {image_size} px; it must lie between 36 and 1024")
        device = rendering.shared_device(gpu)
        self._scene = sapien.Scene([sapien.physx.PhysxCpuSystem(), sapien.render.RenderSystem(device)])
        self._scene.ambient_light = [0.5, 0.5, 0.5]
        self._scene.add_directional_light([-0.4, 0.3, -1.0], [1.2, 1.2, 1.2])
        self._robot = load_panda(self._scene, low_poly=rendering.is_software(device))
        _add_shape(self._scene, sapien.render.RenderShapeBox([2.5, 2.5, 0.01], _material(FLOOR_COLOR)), [0, 0, -0.01])
        glowing = _material((0.0, 0.0, 0.0, 1.0))
        glowing.emission = list(TARGET_COLOR)
        self._target = _add_shape(self._scene, sapien.render.RenderShapeSphere(TARGET_SIZE, glowing), [0, 0, 0])
        self._cameras = []
        for name in ARM_CAMERAS:
            camera = self._scene.add_camera(name, image_size, image_size, FIELD_OF_VIEW, 0.05, 10.0)
            camera.local_pose = rendering.look_at(EYES[name], LOOK_AT)
            self._cameras.append(camera)

    def draw(self, joints: npt.ArrayLike, target: npt.ArrayLike, gripper_closed: bool) -> UInt8Array:
        """(3, H, W, 3) uint8: front, side, top; `joints` (7,) rad, `target` (3,) m."""
        self.pose(joints, target, gripper_closed)
        return np.stack([rendering.picture(camera) for camera in self._cameras])

    def pose(self, joints: npt.ArrayLike, target: npt.ArrayLike, gripper_closed: bool) -> None:
        """Puts arm and ball in place for the next pictures."""
        fingers = [GRIPPER_RANGE[0] if gripper_closed else GRIPPER_RANGE[1]] * 2
        self._robot.set_qpos(np.append(np.asarray(joints), fingers).astype(np.float32))
        self._target.pose = sapien.Pose(np.asarray(target, np.float32))
        self._scene.update_render()

    def close(self) -> None:
        """Releases scene and cameras."""
        self._cameras.clear()
        self._scene.clear()


def _material(color: tuple[float, float, float, float]) -> sapien.render.RenderMaterial:
    return sapien.render.RenderMaterial(base_color=list(color), roughness=1.0, specular=0.0)


def _add_shape(scene: sapien.Scene, shape: sapien.render.RenderShape, position: list[float]) -> sapien.Entity:
    body = sapien.render.RenderBodyComponent()
    body.attach(shape)
    entity = sapien.Entity()
    entity.add_component(body)
    entity.pose = sapien.Pose(position)
    scene.add_entity(entity)
    return entity
