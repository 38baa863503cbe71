"""Pictures of a task for the play video: the arm by the simulator's cameras (or as a drawing), others by themselves."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

from rl.envs import franka_kinematics as franka
from rl.envs.arm_reach import STEP_SECONDS, SUCCESS_DISTANCE, ArmReach
from rl.envs.vector import VectorEnv
from rl.envs.vision_arm_reach import VisionArmReach
from rl.sims.isaaclab import IsaacLabEnv
from rl.training.media import labelled_row

log = logging.getLogger(__name__)
UInt8Array = npt.NDArray[np.uint8]
VIEW_METRES = 2.0  # width of a drawing
VIEWS = {"side": (0, 1, 2), "top": (1, -1, 0)}  # axis to the right, its sign, axis upwards
BACKGROUND, FLOOR, LINK, JOINT, BALL = (245, 245, 245), (200, 200, 200), (70, 90, 120), (30, 40, 60), (220, 40, 30)


class Pictures:
    """`frame()` shows the first environment as it is now, (H, W, 3) uint8 of one size."""

    def __init__(self, env: VectorEnv, size: int, gpu: int | None) -> None:
        """Raises ValueError for a task that draws nothing."""
        self.env, self.size = env, size
        self._draw: Callable[[], UInt8Array]
        self._close: Callable[[], None] = lambda: None
        if isinstance(env, ArmReach | VisionArmReach):
            self._draw = self._arm(gpu)
        elif isinstance(env, IsaacLabEnv):
            from rl.sims.isaaclab_picture import Picture

            self._draw = Picture(env.env, size).render
        elif hasattr(env, "render"):
            self._draw = env.render
        else:
            raise ValueError("this task has no pictures; leave --video out")

    def frame(self, caption: str) -> UInt8Array:
        """The picture under `caption`."""
        return labelled_row({caption: np.asarray(self._draw())})

    def close(self) -> None:
        self._close()

    def _arm(self, gpu: int | None) -> Callable[[], UInt8Array]:
        env: Any = self.env
        try:
            from rl.sims.arm_scene import ArmScene

            scene = ArmScene(self.size, gpu)
        except ValueError as e:
            log.warning("the arm is drawn as lines, because no camera can be simulated: %s", e)
            return lambda: drawing(env.posture(0), self.size)
        self._close = scene.close
        return lambda: np.concatenate(list(scene.draw(*env.posture(0))), 1)


def seconds_per_step(env: VectorEnv) -> float:
    """Real time of one step."""
    if isinstance(env, ArmReach | VisionArmReach):
        return STEP_SECONDS
    if isinstance(env, IsaacLabEnv):
        return env.step_seconds
    return 1 / 30


def drawing(posture: tuple[torch.Tensor, torch.Tensor, bool], size: int) -> UInt8Array:
    """Side and top view of the arm as lines, (size, 2 * size, 3) uint8; a filled hand is a closed one.

    `posture`: joints (7,), target (3,) and whether the gripper is closed.
    """
    joints, target, gripper_closed = posture
    arm = franka.link_poses(joints[None].double())[0, :, :3, 3].numpy()
    points = np.concatenate([arm, target.double().numpy()[None]])
    views = []
    for name, (right, sign, up) in VIEWS.items():
        canvas = Image.new("RGB", (size, size), BACKGROUND)
        draw = ImageDraw.Draw(canvas)
        middle = np.array([size / 2, size * (0.8 if name == "side" else 0.5)])
        scale = size / VIEW_METRES

        flat = np.stack([middle[0] + scale * sign * points[:, right], middle[1] - scale * points[:, up]], 1)
        if name == "side":
            draw.rectangle([0, middle[1], size, size], fill=FLOOR)
        *links, ball = (tuple(map(float, p)) for p in flat)
        draw.line(links, fill=LINK, width=max(2, size // 40), joint="curve")
        for p in links[:-1]:
            _circle(draw, p, size / 70, JOINT)
        _circle(draw, ball, scale * SUCCESS_DISTANCE, BALL)
        _circle(draw, links[-1], size / 50, JOINT if gripper_closed else BACKGROUND)
        views.append(np.asarray(canvas))
    return np.concatenate(views, 1)


def _circle(draw: ImageDraw.ImageDraw, centre: tuple[float, ...], radius: float, fill: tuple[int, int, int]) -> None:
    x, y = centre
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=fill, outline=JOINT)
