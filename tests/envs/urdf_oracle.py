"""Forward kinematics read from a URDF in plain numpy: the independent source for the kinematics tests."""

from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]


def _rotation(axis: npt.ArrayLike, angle: float) -> Matrix:
    """Rodrigues' formula, (4, 4)."""
    x, y, z = np.asarray(axis, np.float64) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    turned = np.eye(4)
    turned[:3, :3] = np.eye(3) + np.sin(angle) * cross + (1 - np.cos(angle)) * cross @ cross
    return turned


def _origin(joint: ElementTree.Element) -> Matrix:
    element = joint.find("origin")
    if element is None:
        return np.eye(4)
    roll, pitch, yaw = (float(v) for v in element.get("rpy", "0 0 0").split())
    pose = _rotation([0, 0, 1], yaw) @ _rotation([0, 1, 0], pitch) @ _rotation([1, 0, 0], roll)
    pose[:3, 3] = [float(v) for v in element.get("xyz", "0 0 0").split()]
    return pose


class UrdfChain:
    """The chain of joints from the root to `link`."""

    def __init__(self, path: Path, link: str) -> None:
        by_child = {j.find("child").get("link"): j for j in ElementTree.parse(path).getroot().iter("joint")}
        self.joints: list[ElementTree.Element] = []
        while link in by_child:
            self.joints.insert(0, by_child[link])
            link = by_child[link].find("parent").get("link")
        limits = [j.find("limit") for j in self.joints if j.get("type") == "revolute"]
        self.limits = np.array([[float(limit.get("lower")), float(limit.get("upper"))] for limit in limits])

    def pose(self, q: npt.NDArray[np.float64]) -> Matrix:
        """(4, 4) of the last link for joints `q`, one a revolute joint."""
        pose, positions = np.eye(4), iter(q)
        for joint in self.joints:
            pose = pose @ _origin(joint)
            if joint.get("type") == "revolute":
                axis = [float(v) for v in joint.find("axis").get("xyz").split()]
                pose = pose @ _rotation(axis, next(positions))
        return pose
