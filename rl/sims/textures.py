"""Procedural textures as numpy arrays. Colours are sRGB in [0, 1]; pictures are (H, W, 4) uint8."""

import cv2
import numpy as np
import numpy.typing as npt

UInt8Array = npt.NDArray[np.uint8]
FloatArray = npt.NDArray[np.floating]


def srgb_to_linear(color: FloatArray) -> FloatArray:
    """The camera shader applies gamma 1/2.2 to its output; colours given to it must be linear."""
    return np.power(color, 2.2)


def smooth_noise(
    rng: np.random.Generator, cells: tuple[int, ...], size: int, contrast: float, mean: FloatArray
) -> FloatArray:
    """Sum of bicubically enlarged random grids.

    `cells`: cells per side of each grid, coarse to fine. `size`: pixels per side. `contrast`: amplitude of each
    grid around `mean` (3,) sRGB. Returns (size, size, 3) in [0, 1].
    """
    total = np.zeros((size, size, 3), np.float32)
    for n in cells:
        grid = rng.uniform(-1.0, 1.0, (n, n, 3)).astype(np.float32)
        total += cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC)
    return np.clip(mean + contrast * total, 0.0, 1.0)


def to_rgba(picture: FloatArray) -> UInt8Array:
    """(H, W, 3) sRGB in [0, 1] -> (H, W, 4) uint8 in linear light, as the renderer wants it."""
    rgba = np.full((*picture.shape[:2], 4), 255, np.uint8)
    rgba[..., :3] = np.rint(srgb_to_linear(picture) * 255)
    return rgba
