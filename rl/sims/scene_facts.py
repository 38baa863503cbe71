"""What only the simulator knows about a scene: who touches whom, and what a camera could see.

Letters: K objects.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import sapien


def touched_by_robot(contacts: Iterable[Any], objects: Sequence[sapien.Entity]) -> npt.NDArray[np.bool_]:
    """(K,): a robot link pressed on the object in the last physics step (a pair that is merely near has no impulse)."""
    index = {entity.per_scene_id: k for k, entity in enumerate(objects)}
    link = sapien.physx.PhysxArticulationLinkComponent
    touched = np.zeros(len(objects), np.bool_)
    for contact in contacts:
        first, second = contact.bodies
        if isinstance(first, link) == isinstance(second, link):
            continue
        k = index.get((second if isinstance(first, link) else first).entity.per_scene_id)
        if k is not None and any(np.any(point.impulse) for point in contact.points):
            touched[k] = True
    return touched


def in_view(
    extrinsic_34: npt.NDArray[np.floating], fov: float, points_K3: npt.NDArray[np.floating],
    radius_K: npt.NDArray[np.floating],
) -> npt.NDArray[np.bool_]:  # fmt: skip
    """(K,): part of the ball around the point lies in the square view of `fov` rad; what stands before it is ignored.

    extrinsic_34: world to camera, x right, y down, z forward.
    """
    points = points_K3 @ extrinsic_34[:, :3].T + extrinsic_34[:, 3]
    sine, cosine = np.sin(fov / 2), np.cos(fov / 2)
    outside = np.abs(points[:, :2]) * cosine - points[:, 2:] * sine  # distance from the four side planes
    return (outside < radius_K[:, None]).all(1) & (points[:, 2] > -radius_K)
