"""What stands in the tabletop scene: table, walls, lights and objects, drawn from the random streams.

Frame: robot base at the origin, x forward, z up, table top at z = 0. Lengths in m, colours linear unless stated.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import sapien
import trimesh
from sapien import physx
from sapien.render import (
    RenderBodyComponent,
    RenderMaterial,
    RenderShapeBox,
    RenderShapeCylinder,
    RenderShapeSphere,
    RenderShapeTriangleMesh,
    RenderTexture2D,
)

from rl.sims.textures import smooth_noise, srgb_to_linear, to_rgba

FloatArray = npt.NDArray[np.float64]

TABLE_SIZE = 3.0
TABLE_CENTER = (0.4, 0.0)
TABLE_THICKNESS = 0.05
TABLE_CELLS = (12, 24)  # 25 cm and 12.5 cm
WALL_CELLS = (6, 12)
WALL_HEIGHT = 2.5
WALL_DISTANCE = 1.6  # of each wall from the table's centre
TEXTURE_SIZE = 512
# Where objects may start: ring around the base, in front of it.
OBJECT_RADIUS_RANGE = (0.30, 0.80)
OBJECT_ANGLE_RANGE = (-1.1, 1.1)
OBJECT_CLEARANCE = 0.005
MAX_OBJECTS = 24
OBJECT_SIZE_RANGE = (0.02, 0.04)  # radius or half size: a gripper opens 8 cm
UPRIGHT = sapien.Pose(q=[0.5**0.5, 0, 0.5**0.5, 0])  # a SAPIEN cylinder lies along x
SPHERE_SUBDIVISIONS = 2  # 320 faces
OBJECT_DENSITY = 300.0  # kg/m^3
FIXED_TABLE_MEAN = np.array([0.55, 0.50, 0.45])  # sRGB
FIXED_WALL_MEAN = np.array([0.60, 0.65, 0.70])
# sRGB; random_appearance replaces them.
PALETTE = np.array(
    [
        [0.90, 0.10, 0.10], [0.10, 0.60, 0.15], [0.10, 0.25, 0.90], [0.95, 0.80, 0.10],
        [0.80, 0.15, 0.75], [0.05, 0.75, 0.80], [0.95, 0.50, 0.05], [0.45, 0.15, 0.65],
        [0.95, 0.95, 0.95], [0.10, 0.10, 0.12], [0.55, 0.30, 0.12], [0.95, 0.55, 0.65],
    ]
)  # fmt: skip


@dataclass(frozen=True)
class ObjectSpec:
    """One graspable object. `size` is radius or half size; a cylinder stands, its half length is `half_height`."""

    kind: str  # box | cylinder | sphere
    size: float
    half_height: float
    color: tuple[float, float, float]  # sRGB


def background_textures(
    rng: np.random.Generator, randomize: bool, tint: FloatArray
) -> tuple[RenderTexture2D, RenderTexture2D]:
    """Table and wall texture. `tint` (3,) multiplies the table's colour. Not randomised: always the same two."""
    if randomize:
        table_mean, wall_mean = rng.uniform(0.35, 0.65, 3), rng.uniform(0.3, 0.8, 3)
    else:
        rng = np.random.Generator(np.random.Philox(0))
        table_mean, wall_mean = FIXED_TABLE_MEAN, FIXED_WALL_MEAN
    table = smooth_noise(rng, TABLE_CELLS, TEXTURE_SIZE, 0.35, table_mean) * tint
    wall = smooth_noise(rng, WALL_CELLS, TEXTURE_SIZE // 2, 0.25, wall_mean)
    return _texture(table), _texture(wall)


def _texture(rgb: npt.NDArray[np.floating]) -> RenderTexture2D:
    return RenderTexture2D(to_rgba(np.clip(rgb, 0.0, 1.0)), format="R8G8B8A8Unorm", address_mode="mirror")


def add_room(scene: sapien.Scene, table: RenderTexture2D, wall: RenderTexture2D) -> None:
    """Static table (with collision) and four walls (visual only)."""
    x, y = TABLE_CENTER
    half = TABLE_SIZE / 2
    _add_box(scene, "table", [x, y, -TABLE_THICKNESS / 2], [half, half, TABLE_THICKNESS / 2], table, collide=True)
    middle = WALL_HEIGHT / 2 - 0.5
    d = WALL_DISTANCE
    for name, dx, dy, size in [
        ("wall_back", -d, 0.0, [0.02, d, WALL_HEIGHT / 2]),
        ("wall_front", d, 0.0, [0.02, d, WALL_HEIGHT / 2]),
        ("wall_left", 0.0, d, [d, 0.02, WALL_HEIGHT / 2]),
        ("wall_right", 0.0, -d, [d, 0.02, WALL_HEIGHT / 2]),
    ]:
        _add_box(scene, name, [x + dx, y + dy, middle], size, wall, collide=False)


def _add_box(
    scene: sapien.Scene, name: str, center: list[float], half: list[float], texture: RenderTexture2D, collide: bool
) -> None:
    entity = sapien.Entity()
    entity.name = name
    material = RenderMaterial(roughness=1.0, specular=0.0)
    material.base_color_texture = texture
    body = RenderBodyComponent()
    body.attach(RenderShapeBox(half, material))
    entity.add_component(body)
    if collide:
        physics = physx.PhysxRigidStaticComponent()
        physics.attach(physx.PhysxCollisionShapeBox(half, physx.get_default_material()))
        entity.add_component(physics)
    entity.pose = sapien.Pose(center)
    scene.add_entity(entity)


def object_specs(shapes: np.random.Generator, colors: np.random.Generator | None, count: int) -> list[ObjectSpec]:
    """`count` random objects; colours from the palette unless a `colors` stream is given."""
    specs = []
    for i in range(count):
        kind = str(shapes.choice(["box", "cylinder", "sphere"]))
        size, half_height = shapes.uniform(*OBJECT_SIZE_RANGE, 2)
        color = PALETTE[i % len(PALETTE)] if colors is None else colors.uniform(0.05, 0.95, 3)
        if kind != "cylinder":
            half_height = size
        r, g, b = color
        specs.append(ObjectSpec(kind, float(size), float(half_height), (float(r), float(g), float(b))))
    return specs


def _low_poly_sphere(radius: float, material: RenderMaterial) -> RenderShapeTriangleMesh:
    """SAPIEN's own sphere has 960 faces; four of them outweigh the low-poly arm."""
    ball = trimesh.creation.icosphere(subdivisions=SPHERE_SUBDIVISIONS)
    points = np.asarray(ball.vertices, np.float32)
    uv = np.zeros((len(points), 2), np.float32)
    return RenderShapeTriangleMesh(points * np.float32(radius), np.asarray(ball.faces, np.uint32), points, uv, material)


def add_object(scene: sapien.Scene, name: str, spec: ObjectSpec, low_poly: bool) -> sapien.Entity:
    """Visible object of `spec`, its origin at its centre; `renew_body` gives it its rigid body."""
    color = [*srgb_to_linear(np.array(spec.color)), 1.0]
    material = RenderMaterial(base_color=color, roughness=0.7, specular=0.2)
    if spec.kind == "box":
        shape = RenderShapeBox([spec.size] * 3, material)
    elif spec.kind == "sphere":
        shape = _low_poly_sphere(spec.size, material) if low_poly else RenderShapeSphere(spec.size, material)
    else:
        shape = RenderShapeCylinder(spec.size, spec.half_height, material)
        shape.local_pose = UPRIGHT
    visual = RenderBodyComponent()
    visual.attach(shape)
    entity = sapien.Entity()
    entity.name = name
    entity.add_component(visual)
    scene.add_entity(entity)
    return entity


def renew_body(entity: sapien.Entity, spec: ObjectSpec) -> None:
    """Gives `entity` a new dynamic rigid body in place of the one it has, if any.

    A used PhysX body keeps hidden state (sleep counters) that moves its next episode by the last bit.
    """
    material = physx.get_default_material()
    if spec.kind == "box":
        shape = physx.PhysxCollisionShapeBox([spec.size] * 3, material)
    elif spec.kind == "sphere":
        shape = physx.PhysxCollisionShapeSphere(spec.size, material)
    else:
        shape = physx.PhysxCollisionShapeCylinder(spec.size, spec.half_height, material)
        shape.local_pose = UPRIGHT
    shape.density = OBJECT_DENSITY
    body = physx.PhysxRigidDynamicComponent()
    body.attach(shape)
    body.angular_damping = 1.0  # spheres come to rest
    old = entity.find_component_by_type(physx.PhysxRigidDynamicComponent)
    if old is not None:
        entity.remove_component(old)
    entity.add_component(body)


def place(rng: np.random.Generator, specs: list[ObjectSpec]) -> list[sapien.Pose]:
    """Poses at rest on the table, not overlapping, in front of the base."""
    poses: list[sapien.Pose] = []
    taken: list[tuple[float, float, float]] = []
    for spec in specs:
        reach = spec.size * (2**0.5 if spec.kind == "box" else 1.0)
        while True:  # MAX_OBJECTS block about half of the area: a free place is found in a few tries
            radius, angle = rng.uniform(*OBJECT_RADIUS_RANGE), rng.uniform(*OBJECT_ANGLE_RANGE)
            x, y = float(radius * np.cos(angle)), float(radius * np.sin(angle))
            if all(np.hypot(x - a, y - b) > reach + r + OBJECT_CLEARANCE for a, b, r in taken):
                break
        taken.append((x, y, reach))
        yaw = rng.uniform(-np.pi, np.pi)
        poses.append(sapien.Pose([x, y, spec.half_height], [float(np.cos(yaw / 2)), 0, 0, float(np.sin(yaw / 2))]))
    return poses


def light(rng: np.random.Generator, randomize: bool) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Direction (3,) the sun shines to, its colour (3,) and the ambient colour (3,)."""
    if not randomize:
        return np.array([-0.4, 0.3, -1.0]), np.full(3, 1.6), np.full(3, 0.35)
    azimuth, slope = rng.uniform(-np.pi, np.pi), rng.uniform(0.1, 0.9)
    direction = np.array([slope * np.cos(azimuth), slope * np.sin(azimuth), -1.0])
    tint = rng.uniform(0.75, 1.0, 3)
    return direction, rng.uniform(0.9, 2.2) * tint, rng.uniform(0.2, 0.5) * rng.uniform(0.85, 1.0, 3)
