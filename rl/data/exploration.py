"""How much of its world an explorer has seen: measures of finished episodes, from what only the simulator knows.

Positions are in the frame of the scene: m, z up, table top at z = 0.
Letters: F frames, K objects, N and R token maps, L tokens of a map.
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]


def rotation_axes(quaternions_F4: Array) -> tuple[Array, Array]:
    """Directions (F, 3) of the rotated x and z axis; unit quaternions wxyz, q and -q give the same."""
    w, x, y, z = np.asarray(quaternions_F4, np.float64).T
    x_axis = np.stack([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], -1)
    z_axis = np.stack([2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], -1)
    return x_axis, z_axis


def pose_voxels(poses_F7: Array, cell: float, direction_cell: float) -> set[tuple[int, ...]]:
    """Cells of wrist poses that were visited: position in cubes of `cell` metres, and orientation coarsely, as the
    directions of x and z axis in cubes of `direction_cell` (unit vectors, so 0.5 makes about 45 degrees).

    poses_F7: position (m) and quaternion wxyz. Cubes are centred on multiples of their size.
    """
    poses = np.asarray(poses_F7, np.float64)
    axes = np.concatenate(rotation_axes(poses[:, 3:]), 1)
    cells = np.concatenate([poses[:, :3] / cell, axes / direction_cell], 1)
    return {tuple(row) for row in np.floor(cells + 0.5).astype(int).tolist()}


def board_share(poses_F7: Array, fov: float, center: Array, half_size: Array, rays: int = 32) -> Array:
    """Share of a square view of `fov` rad (F,) that a board fills, nothing standing before it; z is the line of sight.

    poses_F7: position (m) and quaternion wxyz. center, half_size: (3,) in m; the board lies across the z axis. Counted
    are the rays x rays lines of sight through the middles of equal cells of the view that meet it.
    """
    poses = np.asarray(poses_F7, np.float64)
    x_axis, z_axis = rotation_axes(poses[:, 3:])
    y_axis = np.cross(z_axis, x_axis)
    middles = np.tan(fov / 2) * ((np.arange(rays) + 0.5) / rays * 2 - 1)
    u, v = (m[None, :, :, None] for m in np.meshgrid(middles, middles))
    sight = z_axis[:, None, None] + u * x_axis[:, None, None] + v * y_axis[:, None, None]
    ahead = np.where(np.abs(sight[..., 2]) < 1e-9, 1e-9, sight[..., 2])
    way = (center[2] - poses[:, None, None, 2]) / ahead
    met = poses[:, None, None, :3] + way[..., None] * sight
    inside = (np.abs(met[..., :2] - center[:2]) < half_size[:2]).all(-1)
    return np.asarray((inside & (way > 0)).mean((1, 2)))


def on_table(positions_FK3: Array) -> Bools:
    """(F, K): up to this frame the object's centre was never below the table top.

    At rest it is 2 cm above it or more, half the size of the smallest object. There is no floor: what was pushed
    through the table or over its edge falls on until the episode ends.
    """
    return ~np.logical_or.accumulate(np.asarray(positions_FK3)[..., 2] < 0, axis=0)


def farthest_moved(positions_FK3: Array) -> Array:
    """How far each object was ever from where it stood first (K,), in m, while it was on the table (`on_table`)."""
    offset = np.asarray(positions_FK3, np.float64) - positions_FK3[:1]
    return np.where(on_table(positions_FK3), np.linalg.norm(offset, axis=-1), 0.0).max(0)


def moved_objects(positions_FK3: Array, least: float) -> tuple[int, float]:
    """Objects that were moved by at least `least` m or fell off the table, and the sum of their distances in m, which
    end where an object left the table (`farthest_moved`)."""
    far = farthest_moved(positions_FK3)
    moved = far[(far >= least) | ~on_table(positions_FK3)[-1]]
    return len(moved), float(moved.sum())


def novel_maps(maps_NL: npt.NDArray[np.integer], reference_RL: npt.NDArray[np.integer], overlap: float) -> Bools:
    """(N,): no map of the reference has at least the share `overlap` of its tokens in common with this one.

    An overlap of 1 asks for an equal map.
    """
    needed = int(np.ceil(overlap * maps_NL.shape[1] - 1e-9))
    known = [((row == reference_RL).sum(1) >= needed).any() for row in maps_NL]
    return ~np.array(known, np.bool_)
