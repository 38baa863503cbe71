"""Exploration measures against numbers made by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.data.exploration import (
    board_share,
    farthest_moved,
    moved_objects,
    novel_maps,
    on_table,
    pose_voxels,
    rotation_axes,
)

UPRIGHT = [1.0, 0.0, 0.0, 0.0]
HALF = 0.5**0.5
ABOUT_Z = [HALF, 0.0, 0.0, HALF]  # 90 degrees: x -> y
ABOUT_X = [HALF, HALF, 0.0, 0.0]  # 90 degrees: z -> -y


def test_axes_of_known_rotations() -> None:
    x, z = rotation_axes(np.array([UPRIGHT, ABOUT_Z, ABOUT_X, [0.0, 1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(x, [[1, 0, 0], [0, 1, 0], [1, 0, 0], [1, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(z, [[0, 0, 1], [0, 0, 1], [0, -1, 0], [0, 0, -1]], atol=1e-12)


def test_a_voxel_is_counted_once_however_often_and_by_which_sign_of_the_quaternion_it_is_visited() -> None:
    first = [0.01, 0.02, 0.0, *UPRIGHT]
    same_cell = [0.02, -0.02, 0.01, *UPRIGHT]  # cubes of 5 cm are centred on 0
    other_sign = [0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0]
    next_cell = [0.03, 0.0, 0.0, *UPRIGHT]
    turned = [0.0, 0.0, 0.0, *ABOUT_Z]
    poses = np.array([first, same_cell, other_sign, next_cell, turned, turned], np.float32)
    assert pose_voxels(poses, 0.05, 0.5) == {
        (0, 0, 0, 2, 0, 0, 0, 0, 2), (1, 0, 0, 2, 0, 0, 0, 0, 2), (0, 0, 0, 0, 2, 0, 0, 0, 2),
    }  # fmt: skip
    assert len(pose_voxels(poses, 0.1, 0.5)) == 2  # 0.03 m falls into the same cube of 10 cm
    assert len(pose_voxels(poses, 0.1, 10.0)) == 1  # and orientation does not count


@given(st.integers(0, 2**32 - 1), st.integers(1, 30))
def test_voxels_are_the_rounded_coordinates_of_a_brute_force_count(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    poses = rng.normal(size=(count, 7))
    poses[:, 3:] /= np.linalg.norm(poses[:, 3:], axis=1, keepdims=True)
    seen = set()
    for p in poses:
        w, x, y, z = p[3:]
        matrix = np.array(
            [
                [w * w + x * x - y * y - z * z, 2 * (x * y - w * z), 2 * (x * z + w * y)],
                [2 * (x * y + w * z), w * w - x * x + y * y - z * z, 2 * (y * z - w * x)],
                [2 * (x * z - w * y), 2 * (y * z + w * x), w * w - x * x - y * y + z * z],
            ]
        )
        numbers = [*(p[:3] / 0.3), *(matrix[:, 0] / 0.7), *(matrix[:, 2] / 0.7)]
        seen.add(tuple(int(np.floor(v + 0.5)) for v in numbers))
    assert pose_voxels(poses, 0.3, 0.7) == seen


def test_distance_is_the_farthest_from_the_first_place_not_the_last_and_not_the_path() -> None:
    # Object 0 goes 3-4-5 away and comes back half way; object 1 is jostled by 1 cm; object 2 stays.
    path = np.zeros((4, 3, 3), np.float32)
    path[1, 0] = [0.3, 0.4, 0.0]
    path[2:, 0] = [0.15, 0.2, 0.0]
    path[1:, 1] = [0.0, 0.01, 0.0]
    path += np.array([0.5, -0.2, 0.03], np.float32)
    np.testing.assert_allclose(farthest_moved(path), [0.5, 0.01, 0.0], atol=1e-6)
    assert moved_objects(path, 0.02) == (1, pytest.approx(0.5))
    assert moved_objects(path, 0.005) == (2, pytest.approx(0.51))
    assert moved_objects(path, 1.0) == (0, 0.0)


def test_a_fall_is_a_move_but_no_distance() -> None:
    # Frames of 50 ms, resting at 3 cm. Object 0 is pushed 10 cm and over the edge; object 1 through the table where it
    # stands, and is thrown up again; object 2 is pressed in by 1 cm, never with its centre; object 3 is lifted.
    path = np.full((6, 4, 3), [0.5, 0.0, 0.03], np.float32)
    path[1:, 0, 0] = [0.55, 0.6, 0.65, 0.7, 0.75]
    path[:, 0, 2] = [0.03, 0.03, 0.03, -0.01, -0.08, -27.0]
    path[:, 1, 2] = [0.03, 0.025, -0.02, -0.3, 0.4, -9.0]
    path[2:, 2, 2] = 0.02
    path[3:, 3, 2] = 0.13
    assert on_table(path).sum(0).tolist() == [3, 2, 6, 6]
    np.testing.assert_allclose(farthest_moved(path), [0.1, 0.005, 0.01, 0.1], atol=1e-6)
    assert moved_objects(path, 0.02) == (3, pytest.approx(0.205))  # the one that fell where it stood, too
    assert moved_objects(path, 0.005) == (4, pytest.approx(0.215))
    assert moved_objects(path[:2], 0.02) == (1, pytest.approx(0.05))  # nothing has fallen yet


def test_novel_maps_have_too_few_tokens_in_common_with_every_map_of_the_reference() -> None:
    seen = np.array([[1, 2, 3, 4, 5], [9, 9, 9, 9, 9]], np.int16)
    new = np.array([[1, 2, 3, 4, 5], [1, 2, 3, 0, 0], [1, 2, 0, 9, 9], [9, 9, 9, 4, 5], [0, 9, 0, 0, 9]], np.int64)
    # tokens in common with the nearest: 5, 3, 2, 3 and 2 of 5
    assert novel_maps(new, seen, 0.6).tolist() == [False, False, True, False, True]
    assert novel_maps(new, seen, 1.0).tolist() == [False, True, True, True, True]
    assert novel_maps(new, seen, 0.61).tolist() == [False, True, True, True, True]  # 4 of 5 are needed
    assert novel_maps(new, seen, 0.4).tolist() == [False] * 5
    assert novel_maps(new, seen[:0], 0.6).all()


def test_a_board_fills_the_share_of_the_view_that_its_angles_take() -> None:
    # From 0.6 m a view of 90 degrees is 1.2 m wide: a board of 0.9 x 0.6 m fills 0.75 x 0.5 of it.
    facing = [0.45, 0.3, 0.6, 0.0, 1.0, 0.0, 0.0]  # z axis turned down
    away = [0.45, 0.3, 0.6, *UPRIGHT]
    ahead = [0.45, 0.3, 0.6, HALF, -HALF, 0.0, 0.0]  # along +y: the board ends where this view begins, 45 degrees below
    moved = [0.75, 0.3, 0.6, *facing[3:]]  # by a quarter of the view: five sixths of the board are left in it
    beside = [0.45, 3.3, 0.6, *facing[3:]]
    poses = np.array([facing, away, ahead, moved, beside])
    share = board_share(poses, np.pi / 2, np.array([0.45, 0.3, 0.0]), np.array([0.45, 0.3, 0.01]))
    np.testing.assert_allclose(share, [0.375, 0.0, 0.0, 0.3125, 0.0])
