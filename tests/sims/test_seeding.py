"""Random streams and textures."""

import numpy as np

from rl.sims.seeding import Purpose, StreamKey, stream
from rl.sims.textures import smooth_noise, to_rgba


def test_streams_of_neighbouring_keys_indices_and_purposes_differ() -> None:
    keys = [StreamKey(0, 0, 0), StreamKey(1, 0, 0), StreamKey(0, 1, 0), StreamKey(0, 0, 1)]
    draws = {
        tuple(stream(key, index, purpose).integers(0, 2**62, 2))
        for key in keys
        for index in (0, 1)
        for purpose in Purpose
    }
    assert len(draws) == len(keys) * 2 * len(Purpose)


def test_a_stream_repeats_itself() -> None:
    key = StreamKey(3, 1, 2)
    first, second = (stream(key, 9, Purpose.arm).uniform(size=5) for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_noise_is_smooth_at_the_scale_of_its_cells() -> None:
    picture = smooth_noise(np.random.default_rng(0), (4,), 128, 0.3, np.full(3, 0.5))
    assert picture.shape == (128, 128, 3) and picture.min() >= 0.0 and picture.max() <= 1.0
    assert picture.std() > 0.05
    # A cell is 32 px wide; between neighbours a bicubic grid of amplitude 0.3 changes by about 0.6 / 32 x 1.5 at most.
    assert np.abs(np.diff(picture, axis=0)).max() < 0.05


def test_textures_are_linear_light_with_full_opacity() -> None:
    rgba = to_rgba(np.full((2, 2, 3), 0.5))
    assert rgba[0, 0].tolist() == [55, 55, 55, 255]  # 0.5 ** 2.2 * 255 = 55.498
