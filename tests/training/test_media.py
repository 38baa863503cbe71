import os
import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from rl.training import media
from rl.training.atomic_io import atomic_path, write_atomic


def picture(height: int = 64, width: int = 64, value: int = 200) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def test_a_video_is_h264_in_yuv420p_with_even_sides_and_all_frames(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (7, 257, 301, 3), dtype=np.uint8)
    media.save_video(tmp_path / "v" / "episode_1.mp4", frames, fps=5)
    told = subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(tmp_path / "v" / "episode_1.mp4")],
        capture_output=True,
        text=True,
        check=False,
    ).stderr
    assert re.search(r"Video: h264 .*yuv420p.* 302x258", told)
    assert imageio_ffmpeg.count_frames_and_secs(str(tmp_path / "v" / "episode_1.mp4"))[0] == 7
    assert [p.name for p in (tmp_path / "v").iterdir()] == ["episode_1.mp4"]


def test_the_index_of_a_video_stands_before_its_pictures(tmp_path: Path) -> None:
    media.save_video(tmp_path / "a.mp4", [picture()] * 3)
    data = (tmp_path / "a.mp4").read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")


def test_small_frames_are_enlarged_by_whole_factors_without_smoothing() -> None:
    # 100 px needs a factor of 3 to reach 256 px
    image = np.random.default_rng(0).integers(0, 255, (100, 50, 3), dtype=np.uint8)
    large = media.enlarge(image)
    assert large.shape == (300, 150, 3)
    assert np.array_equal(large[1::3, 1::3], image)
    assert media.enlarge(picture(256, 10)).shape == (256, 10, 3)


@pytest.mark.parametrize("frames", [[], [picture(), picture(32)]])
def test_frames_that_make_no_video_are_refused_and_leave_no_file(frames: list, tmp_path: Path) -> None:
    with pytest.raises(ValueError):
        media.save_video(tmp_path / "a.mp4", frames)
    assert list(tmp_path.iterdir()) == []


def test_a_sample_picture_shows_its_columns_side_by_side(tmp_path: Path) -> None:
    media.sample_picture(
        {"Last frame": picture(value=10), "Error": np.full((64, 64, 3), 0.5, np.float32)},
        tmp_path / "s" / "episode_1.png",
    )
    image = np.asarray(Image.open(tmp_path / "s" / "episode_1.png"))
    assert image.shape == (256 + 18, 2 * 256 + 4, 3)
    assert (image[18:, :256] == 10).all() and (image[18:, 260:] == 128).all()  # 0.5 * 255 = 127.5, rounded to even
    assert (image[:18, :256] > 200).any()  # the label


def test_a_video_frame_has_head_wrist_and_prediction() -> None:
    frame = media.video_frame(picture(value=1), picture(value=2), picture(value=3))
    assert frame.shape == (274, 3 * 256 + 8, 3)
    assert [int(frame[100, x, 0]) for x in (10, 270, 530)] == [1, 2, 3]


@pytest.mark.parametrize("bad", [np.zeros((4, 4)), np.zeros((4, 4, 3), np.int64), np.zeros((3, 4, 4), np.uint8)])
def test_pictures_of_another_form_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="picture has"):
        media.to_uint8(bad)


def test_thinning_keeps_the_first_and_the_newest_by_number(tmp_path: Path) -> None:
    for n in (1, 2, 9, 10, 11):
        (tmp_path / f"episode_{n}.png").touch()
    (tmp_path / "notes.txt").touch()
    assert [p.name for p in media.thin(tmp_path, 2)] == ["episode_2.png", "episode_9.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "episode_1.png",
        "episode_10.png",
        "episode_11.png",
        "notes.txt",
    ]
    assert media.thin(tmp_path, 10) == [] and media.thin(tmp_path / "missing", 1) == []


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "status.json"
    write_atomic(target, "old")
    with pytest.raises(KeyboardInterrupt), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    with pytest.raises(OSError, match="no"):
        write_atomic(target, "new")
    assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["status.json"]
