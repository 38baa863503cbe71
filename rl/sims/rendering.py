"""SAPIEN's renderer: which device draws, one renderer per process, cameras and their pictures."""

import functools
import logging

import cv2
import numpy as np
import numpy.typing as npt
import sapien

from rl.sims import vulkan_driver
from rl.sims.shaders import camera_shader_directory

UInt8Array = npt.NDArray[np.uint8]
logger = logging.getLogger(__name__)

# One render system per device lives as long as the process: it holds the engine (shaders, pipelines) that
# all scenes of the process share.
_KEPT: list[sapien.render.RenderSystem] = []

NO_DEVICE = (
    "no Vulkan device can render ({detail}); a GPU needs its Vulkan driver, a machine without one needs Mesa lavapipe "
    ">= 24.3: run `bash train.sh doctor`, which says what is missing and how to install it"
)


@functools.cache
def shared_device(gpu: int | None) -> sapien.Device:
    """The device that draws for this process: GPU `gpu` (counted after CUDA_VISIBLE_DEVICES), else the software
    renderer; with None the software renderer, else GPU 0. Raises ValueError when none of the two draws."""
    vulkan_driver.use_installed_driver()  # again, for those who import the simulator's module themselves
    sapien.render.set_log_level("error")
    sapien.render.set_camera_shader_dir(str(camera_shader_directory()))
    sapien.render.set_picture_format("Color", "r8g8b8a8unorm")
    complaints = []
    for name in ["cpu", "cuda:0"] if gpu is None else [f"cuda:{gpu}", "cpu"]:
        try:
            device = sapien.Device(name)
            _KEPT.append(sapien.render.RenderSystem(device))
        except RuntimeError as e:  # SAPIEN's answer when no Vulkan driver knows the device
            complaints.append(f"{name}: {e}")
            continue
        logger.info("SAPIEN draws on %s", name)
        return device
    raise ValueError(NO_DEVICE.format(detail="; ".join(complaints)))


def is_software(device: sapien.Device) -> bool:
    """Whether the CPU draws."""
    return not device.is_cuda()


def picture(camera: sapien.render.RenderCameraComponent) -> UInt8Array:
    """Draws now. (H, W, 3) uint8, contiguous; the scene's `update_render` must have been called."""
    camera.take_picture()
    return cv2.cvtColor(camera.get_picture("Color"), cv2.COLOR_RGBA2RGB)


def segmentation(camera: sapien.render.RenderCameraComponent) -> npt.NDArray[np.int32]:
    """Draws now. (H, W) int32: `per_scene_id` of the entity a pixel shows, 0 for none."""
    camera.take_picture()
    return camera.get_picture("PositionSegmentation")[..., 3].astype(np.int32)


def look_at(eye: npt.ArrayLike, target: npt.ArrayLike) -> sapien.Pose:
    """World pose of a camera at `eye` (m) facing `target` (m), upright (x forward, y left, z up)."""
    eye, target = np.asarray(eye, np.float64), np.asarray(target, np.float64)
    forward = (target - eye) / np.linalg.norm(target - eye)
    left = np.cross([0.0, 0.0, 1.0], forward)
    left /= np.linalg.norm(left)
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([forward, left, np.cross(forward, left)], axis=1)
    matrix[:3, 3] = eye
    return sapien.Pose(matrix)
