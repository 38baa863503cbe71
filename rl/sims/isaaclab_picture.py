"""Pictures of an Isaac Lab robot without a renderer: its shapes, read from the USD stage, drawn as flat outlines.

Isaac Lab's own cameras need Isaac Sim, or shapes that its Newton physics loads only for them. This needs neither, nor a
GPU. Letters: N points, P pixels, B bodies.
"""

import colorsys
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw

UInt8Array = npt.NDArray[np.uint8]
Array = npt.NDArray[np.float64]
DIRECTION = np.array([0.87, -0.44, 0.22])  # from the robot to the camera
FIELD_OF_VIEW = math.radians(50)
SKY, FLOOR, LINES = (238, 240, 244), (222, 224, 228), (200, 202, 206)
MOST_POINTS = 400  # of one mesh


@dataclass
class Shape:
    """A convex piece of a body: its surface points in the body's frame, and its colour."""

    body: int
    points_N3: Array
    colour: tuple[int, int, int]


class Picture:
    """`render()` shows the first robot of the first environment, which the camera follows."""

    def __init__(self, env: Any, size: int) -> None:
        """`env`: an Isaac Lab environment. Raises ValueError for a task without an articulated robot or its shapes."""
        robots = list(env.scene.articulations.values())
        self.size = size
        self.shapes = shapes_of(robots[0], env.sim.stage) if robots else []
        if not self.shapes:
            raise ValueError("this task has no articulated robot that could be drawn; leave --video out")
        self.robot = robots[0]
        places, _ = poses(self.robot.data)
        radius = float(np.linalg.norm(places - places.mean(0), axis=-1).max()) + max(
            float(abs(s.points_N3).max()) for s in self.shapes
        )
        self.distance = min(max(2.2 * radius, 2.0), 7.0)

    def render(self) -> UInt8Array:
        """(size, size, 3)"""
        places, turns = poses(self.robot.data)
        target = places.mean(0)
        canvas = Image.new("RGB", (self.size, self.size), SKY)
        draw = ImageDraw.Draw(canvas)
        camera = Camera(target + self.distance * DIRECTION, target, self.size)
        draw_floor(draw, camera, target)
        flat = []
        for shape in self.shapes:
            world = shape.points_N3 @ rotation(turns[shape.body]).T + places[shape.body]
            pixels, depth = camera.project(world)
            flat.append((float(depth.mean()), hull(pixels), shape.colour))
        for _, outline, colour in sorted(flat, key=lambda f: -f[0]):
            edge = tuple(int(0.6 * c) for c in colour)
            draw.polygon([tuple(p) for p in outline.tolist()], fill=colour, outline=edge)
        return np.asarray(canvas).copy()


def poses(data: Any) -> tuple[Array, Array]:
    """Places (B, 3) and quaternions (B, 4), xyzw, of the first environment's B bodies. Before Isaac Lab 3.0 they are
    tensors and the real part comes first."""
    places, turns = data.body_pos_w, data.body_quat_w
    before_3 = isinstance(turns, torch.Tensor)
    first = [(x if before_3 else x.torch)[0].cpu().numpy().astype(np.float64) for x in (places, turns)]
    return first[0], np.roll(first[1], -1, -1) if before_3 else first[1]


class Camera:
    """A pinhole at `eye` that looks at `target`, its upper edge towards +z."""

    def __init__(self, eye: Array, target: Array, size: int) -> None:
        forward = (target - eye) / np.linalg.norm(target - eye)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        self.eye, self.axes = eye, np.stack([right, -np.cross(right, forward), forward])
        self.focal, self.size = 0.5 * size / math.tan(0.5 * FIELD_OF_VIEW), size

    def project(self, points_N3: Array) -> tuple[Array, Array]:
        """Pixels (N, 2), x to the right and y down, and depths (N,) in metres; what is behind is put in front."""
        x, y, depth = ((points_N3 - self.eye) @ self.axes.T).T
        depth = np.maximum(depth, 0.05)
        return 0.5 * self.size + self.focal * np.stack([x / depth, y / depth], 1), depth


def draw_floor(draw: ImageDraw.ImageDraw, camera: Camera, around: Array) -> None:
    """A metre grid at height 0, so that motion can be seen."""
    x0, y0 = np.floor(around[:2])
    corners = [(x0 - 8, y0 - 8), (x0 + 4, y0 - 8), (x0 + 4, y0 + 9), (x0 - 8, y0 + 9)]
    outline, _ = camera.project(np.array([[x, y, 0.0] for x, y in corners]))
    draw.polygon([tuple(p) for p in outline.tolist()], fill=FLOOR)
    for i in range(-8, 10):
        for line in ([(x0 - 8, y0 + i), (x0 + 4, y0 + i)], [(x0 + min(i, 4), y0 - 8), (x0 + min(i, 4), y0 + 9)]):
            ends, _ = camera.project(np.array([[x, y, 0.0] for x, y in line]))
            draw.line([tuple(p) for p in ends.tolist()], fill=LINES)


def hull(points_P2: Array) -> Array:
    """Corners of the convex hull in order (Andrew 1979)."""
    ordered = sorted(map(tuple, points_P2.tolist()))
    if len(set(ordered)) < 3:
        return np.array(ordered)

    def half(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
        kept: list[tuple[float, float]] = []
        for p in points:
            while len(kept) > 1:
                (ax, ay), (bx, by) = kept[-2:]
                if (bx - ax) * (p[1] - ay) - (by - ay) * (p[0] - ax) > 0:
                    break
                kept.pop()
            kept.append(p)
        return kept[:-1]

    return np.array(half(ordered) + half(ordered[::-1]))


def rotation(xyzw: Array) -> Array:
    """3 x 3 matrix of a unit quaternion."""
    x, y, z, w = xyzw
    return np.array([
        [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
        [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
        [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
    ])  # fmt: skip


def ball(radius: float) -> Array:
    """Points on a sphere."""
    i = np.arange(60)
    height = 1 - 2 * (i + 0.5) / 60
    angle, ring = math.pi * (1 + math.sqrt(5)) * i, np.sqrt(1 - height**2)
    return radius * np.stack([ring * np.cos(angle), ring * np.sin(angle), height], 1)


def shapes_of(robot: Any, stage: Any) -> list[Shape]:
    """All shapes of the robot in the first environment, by the body that carries them."""
    from pxr import Usd, UsdGeom

    path = robot.cfg.prim_path
    for any_environment in ("env_[^/]+", "env_.*"):
        path = path.replace(any_environment, "env_0")
    root = stage.GetPrimAtPath(path)
    names, cache, found = list(robot.body_names), UsdGeom.XformCache(), []
    for prim in Usd.PrimRange(root, Usd.TraverseInstanceProxies()) if root else []:
        points = surface(prim)
        body = prim
        while body and body.GetName() not in names and body != root:
            body = body.GetParent()
        if points is None or not body or body.GetName() not in names:
            continue
        index = names.index(body.GetName())
        to_body = cache.GetLocalToWorldTransform(prim) * cache.GetLocalToWorldTransform(body).GetInverse()
        matrix = np.array(to_body)  # rows times matrix, as USD does
        red, green, blue = colorsys.hsv_to_rgb(0.61 * index % 1.0, 0.45, 0.8)
        colour = int(255 * red), int(255 * green), int(255 * blue)
        found.append(Shape(index, points @ matrix[:3, :3] + matrix[3, :3], colour))
    return found


def surface(prim: Any) -> Array | None:
    """Points on the surface of a shape, in its own frame; None for what is no shape."""
    from pxr import UsdGeom

    kind = prim.GetTypeName()
    if kind == "Cube":
        half = 0.5 * UsdGeom.Cube(prim).GetSizeAttr().Get()
        return half * np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], np.float64)
    if kind == "Sphere":
        return ball(UsdGeom.Sphere(prim).GetRadiusAttr().Get())
    if kind in ("Capsule", "Cylinder"):
        shape = getattr(UsdGeom, kind)(prim)
        radius, half = shape.GetRadiusAttr().Get(), 0.5 * shape.GetHeightAttr().Get()
        ends = ball(radius)
        if kind == "Cylinder":
            ends = radius * np.array([[math.cos(a), math.sin(a), 0.0] for a in np.linspace(0, 2 * math.pi, 24)])
        shift = np.array([0.0, 0.0, half])
        points = np.concatenate([ends + shift, ends - shift])
        return np.roll(points, {"Z": 0, "X": 1, "Y": 2}[shape.GetAxisAttr().Get()], axis=1)
    if kind == "Mesh":
        points = np.array(UsdGeom.Mesh(prim).GetPointsAttr().Get(), np.float64)
        return points[:: max(1, len(points) // MOST_POINTS)] if len(points) else None
    return None
