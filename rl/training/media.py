"""Pictures and videos of a run: labelled comparisons and H.264 files that play in a browser."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rl.training.atomic_io import atomic_path

_MIN_HEIGHT = 256  # px; smaller pictures are enlarged by whole factors, without smoothing
_LABEL_HEIGHT = 18
_GAP = 4
_NUMBERED = re.compile(r"episode_([0-9]+)\.[a-z0-9]+")


def to_uint8(image: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 as it is, or float in [0, 1] scaled; anything else raises ValueError."""
    if image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"picture has shape {image.shape}; expected (H, W, 3)")
    if image.dtype == np.uint8:
        return image
    if not np.issubdtype(image.dtype, np.floating):
        raise ValueError(f"picture has dtype {image.dtype}; expected uint8 or float in [0, 1]")
    return np.rint(np.clip(image, 0.0, 1.0) * 255.0).astype(np.uint8)


def enlarge(image: np.ndarray, min_height: int = _MIN_HEIGHT) -> np.ndarray:
    """Repeats pixels (nearest neighbour) by the smallest whole factor that reaches `min_height`."""
    factor = max(1, -(-min_height // image.shape[0]))
    return image.repeat(factor, axis=0).repeat(factor, axis=1)


def labelled_row(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Pictures side by side, each under its label; (H, W, 3) uint8."""
    if not columns:
        raise ValueError("a comparison picture needs at least one column")
    pictures = [enlarge(to_uint8(p)) for p in columns.values()]
    height = max(p.shape[0] for p in pictures) + _LABEL_HEIGHT
    width = sum(p.shape[1] for p in pictures) + _GAP * (len(pictures) - 1)
    canvas = Image.new("RGB", (width, height), (24, 24, 24))
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default()
    x = 0
    for label, picture in zip(columns, pictures, strict=True):
        draw.text((x + 2, 3), label, fill=(235, 235, 235), font=font)
        canvas.paste(Image.fromarray(picture), (x, _LABEL_HEIGHT))
        x += picture.shape[1] + _GAP
    return np.asarray(canvas)


def sample_picture(columns: Mapping[str, np.ndarray], path: Path) -> None:
    """Writes the comparison of one step, e.g. Last frame | Ground truth | Prediction | Error, as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        Image.fromarray(labelled_row(columns)).save(temporary, format="PNG")


def video_frame(head: np.ndarray, wrist: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """One frame Head | GT Wrist | Predicted."""
    return labelled_row({"Head": head, "GT Wrist": wrist, "Predicted": predicted})


def save_video(path: Path, frames: Sequence[np.ndarray] | np.ndarray, fps: int = 10) -> None:
    """Writes (T, H, W, 3) uint8 frames as H.264 yuv420p with the index in front, for playing while it loads.

    Sides are made even by repeating the last row or column, which yuv420p needs.
    """
    if len(frames) == 0:
        raise ValueError(f"{path}: a video needs at least one frame")
    prepared = [_even(enlarge(to_uint8(np.asarray(f)))) for f in frames]
    if len({p.shape for p in prepared}) != 1:
        raise ValueError(f"{path}: frames of different sizes {sorted({p.shape for p in prepared})}")
    height, width = prepared[0].shape[:2]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        writer = imageio_ffmpeg.write_frames(
            str(temporary), (width, height), fps=fps, codec="libx264", pix_fmt_in="rgb24", pix_fmt_out="yuv420p",
            macro_block_size=2, ffmpeg_log_level="error",
            output_params=["-movflags", "+faststart", "-preset", "veryfast"],
        )  # fmt: skip
        writer.send(None)
        try:
            for frame in prepared:
                writer.send(np.ascontiguousarray(frame))
        finally:
            writer.close()


def _even(image: np.ndarray) -> np.ndarray:
    return np.pad(image, ((0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)), mode="edge")


def thin(directory: Path, keep: int) -> list[Path]:
    """Deletes episode_{n} files except the first and the newest `keep`; returns the deleted ones."""
    if not directory.is_dir():
        return []
    numbered = [(int(m.group(1)), p) for p in directory.iterdir() if (m := _NUMBERED.fullmatch(p.name)) and p.is_file()]
    files = [p for _, p in sorted(numbered)]
    doomed = files[1 : max(1, len(files) - keep)]
    for path in doomed:
        path.unlink()
    return doomed
