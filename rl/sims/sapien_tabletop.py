"""Franka Panda at a table in SAPIEN (PhysX on CPU), with a head and a wrist camera. Task: random_exploration.

An episode is a pure function of (seed, rank, environment index, episode index) and the configuration. Episodes that
share a scene (`episode // scene_reset_interval`) reuse its actors: they are moved, not rebuilt.
"""

import numpy as np
import numpy.typing as npt
import sapien

from rl.config import EnvironmentConfig, Visuals
from rl.sims import rendering, scene_facts, tabletop_scene
from rl.sims.noisy_screen import NoisyScreen
from rl.sims.panda_robot import GRIPPER_RANGE, NUM_JOINTS, load_panda
from rl.sims.seeding import Purpose, StreamKey, stream
from rl.sims.textures import srgb_to_linear

FloatArray = npt.NDArray[np.float32]
UInt8Array = npt.NDArray[np.uint8]

ACTION_DIM = NUM_JOINTS + 1
# Order of `state()`.
STATE_NAMES = (
    *(f"joint_position_{i}" for i in range(1, 8)),  # rad
    *(f"joint_velocity_{i}" for i in range(1, 8)),  # rad/s
    "gripper_opening",  # m of travel per finger, 0 (closed) to 0.04
    *(f"ee_position_{a}" for a in "xyz"),  # m, robot base frame
    *(f"ee_quaternion_{a}" for a in "wxyz"),  # w >= 0
)
STATE_DIM = len(STATE_NAMES)
HOME = np.array([0.0, np.pi / 8, 0.0, -5 * np.pi / 8, 0.0, 3 * np.pi / 4, np.pi / 4])  # rad
HOME_NOISE = 0.15  # rad
CAMERAS = ("head", "wrist")
HEAD_EYE, HEAD_TARGET, HEAD_FOV = (1.35, 0.55, 0.95), (0.35, 0.0, 0.15), 1.0
WRIST_POSE, WRIST_FOV = sapien.Pose([0.07, 0, -0.02], [0.7071, 0, -0.7071, 0]), 1.3  # on panda_hand, along its z
ARM_WHITE_MEAN = 0.5  # parts of the arm brighter than this take the random colour


class SapienTabletop:
    """Scene, robot control, state and pictures; no observation history, no reward (see `rl.f1_rl_env`)."""

    action_dim = ACTION_DIM
    state_dim = STATE_DIM

    def __init__(
        self, config: EnvironmentConfig, seed: int = 0, rank: int = 0, env_index: int = 0, gpu: int | None = None
    ) -> None:
        """`gpu`: CUDA ordinal to draw on, None for the software renderer. Raises ValueError when nothing can draw,
        for values of `config` it cannot have and for negative seeds."""
        _check(config)
        self.config = config
        self.key = StreamKey(seed, rank, env_index).check()
        self.device = rendering.shared_device(gpu)
        software = rendering.is_software(self.device)
        self._low_poly = config.visuals == Visuals.low or (config.visuals == Visuals.auto and software)
        self._scene_index: int | None = None
        self.episode_index: int | None = None
        self.watch_contacts = False  # True: `facts` knows what was touched

    # --- episodes ---

    def reset(self, episode_index: int) -> None:
        """Puts episode `episode_index` on stage, rebuilding the scene only when the episode belongs to another one."""
        if episode_index < 0:
            raise ValueError(f"episode index is {episode_index}; it must be at least 0")
        scene_index = episode_index // self.config.scene_reset_interval
        if scene_index != self._scene_index:
            self._build(scene_index)
        self.episode_index = episode_index
        self._touched = np.zeros(len(self._objects), np.bool_)
        self._renew_physics()
        self._move_actors()
        self._set_light()
        self._noise = stream(self.key, episode_index, Purpose.screen)
        self._draw()

    def set_seed(self, seed: int) -> None:
        """Other episodes from the next reset on. Raises ValueError unless 0 <= seed < 2 ** 32."""
        key = self.key._replace(seed=seed).check()
        if key != self.key:
            self._release()
            self.key = key

    def rebuild(self) -> None:
        """Forgets the scene; the next reset builds it anew. Called at checkpoints, so that a resumed run is equal."""
        self._release()

    def close(self) -> None:
        """Releases scene, textures and cameras; a later reset builds them again."""
        self._release()

    def _release(self) -> None:
        if self._scene_index is not None:
            self._scene.clear()
            del self._scene, self._robot, self._objects, self._cameras, self._sun, self._specs
            del self._joints, self._fingers, self._ee, self._entities, self._screen
        self._scene_index = None

    def _build(self, scene_index: int) -> None:
        self._release()
        dr = self.config.domain_randomization
        self._scene = sapien.Scene([sapien.physx.PhysxCpuSystem(), sapien.render.RenderSystem(self.device)])
        appearance = stream(self.key, scene_index, Purpose.appearance)
        tint = appearance.uniform(0.7, 1.2, 3) if dr.random_appearance else np.ones(3)
        background = stream(self.key, scene_index, Purpose.background)
        tabletop_scene.add_room(
            self._scene, *tabletop_scene.background_textures(background, dr.random_background, tint)
        )
        self._robot = self._load_robot(appearance.uniform(0.2, 0.95, 3) if dr.random_appearance else None)
        count = self.config.num_objects if dr.cluttered_table else 0
        self._specs = tabletop_scene.object_specs(
            stream(self.key, scene_index, Purpose.objects), appearance if dr.random_appearance else None, count
        )
        self._objects = [
            tabletop_scene.add_object(self._scene, f"object_{i}", spec, self._low_poly)
            for i, spec in enumerate(self._specs)
        ]
        self._screen = NoisyScreen(self._scene) if dr.noisy_screen else None
        self._sun = self._scene.add_directional_light([0, 0, -1], [1, 1, 1])
        self._cameras = self._add_cameras()
        self._entities = self._scene.entities
        self._scene_index = scene_index

    def _renew_physics(self) -> None:
        """Moves all actors, in a fixed order, into an empty PhysX world that shares the render system (0.4 ms).

        A used world keeps contact caches and free lists that change the next episode by the last bit, and would make
        an episode depend on the ones before it.
        """
        physics = sapien.physx.PhysxCpuSystem()
        physics.timestep = self.config.physics_timestep
        renewed = sapien.Scene([physics, self._scene.render_system])
        for entity in self._entities:
            entity.remove_from_scene()
        for entity, spec in zip(self._objects, self._specs, strict=True):
            tabletop_scene.renew_body(entity, spec)
        for entity in self._entities:
            renewed.add_entity(entity)
        self._scene = renewed

    def _load_robot(self, color: npt.NDArray[np.float64] | None) -> sapien.physx.PhysxArticulation:
        """Panda with base at the origin, no gravity, position drives; `color` (3,) sRGB replaces its white."""
        robot = load_panda(self._scene, self._low_poly)
        self._joints = robot.active_joints[:NUM_JOINTS]
        self._fingers = robot.active_joints[NUM_JOINTS:]
        self._limits = np.concatenate([j.get_limits() for j in self._joints]).astype(np.float64)
        self._ee = robot.find_link_by_name("panda_hand_tcp")
        if color is not None:
            _paint(robot, srgb_to_linear(color))
        return robot

    def _add_cameras(self) -> dict[str, sapien.render.RenderCameraComponent]:
        head_size, wrist_size = self.config.vlm_size, max(self.config.vlm_size, self.config.wm_size)
        head = self._scene.add_camera("head", head_size, head_size, HEAD_FOV, 0.05, 10.0)
        head.local_pose = rendering.look_at(HEAD_EYE, HEAD_TARGET)
        hand = self._robot.find_link_by_name("panda_hand").entity
        wrist = self._scene.add_mounted_camera("wrist", hand, WRIST_POSE, wrist_size, wrist_size, WRIST_FOV, 0.01, 10.0)
        return {"head": head, "wrist": wrist}

    def _move_actors(self) -> None:
        assert self.episode_index is not None
        arm = stream(self.key, self.episode_index, Purpose.arm)
        qpos = HOME + arm.uniform(-HOME_NOISE, HOME_NOISE, NUM_JOINTS)
        opening = arm.uniform(*GRIPPER_RANGE)
        self._target = np.append(np.clip(qpos, self._limits[:, 0], self._limits[:, 1]), opening)
        self._robot.set_qpos(np.append(self._target, opening).astype(np.float32))
        self._robot.set_qvel(np.zeros(NUM_JOINTS + 2, np.float32))
        self._drive()
        poses = tabletop_scene.place(stream(self.key, self.episode_index, Purpose.placement), self._specs)
        for entity, pose in zip(self._objects, poses, strict=True):
            entity.pose = pose

    def _set_light(self) -> None:
        assert self.episode_index is not None
        rng = stream(self.key, self.episode_index, Purpose.light)
        direction, color, ambient = tabletop_scene.light(rng, self.config.domain_randomization.random_light)
        self._sun.pose = sapien.Pose([0, 0, 0], sapien.math.shortest_rotation([1, 0, 0], direction))
        self._sun.color = color
        self._scene.ambient_light = ambient

    # --- control ---

    def step(self, action: npt.ArrayLike) -> FloatArray:
        """Moves the targets by `action` (8,) in [-1, 1] (7 joints, gripper) and simulates one control step.

        Returns the executed action (8,) after clipping to [-1, 1], joint limits and gripper range, in the same units.
        Raises ValueError for a wrong shape and for non-finite numbers.
        """
        action = np.asarray(action, np.float64)
        if action.shape != (ACTION_DIM,):
            raise ValueError(f"action has shape {action.shape}; sapien_tabletop takes ({ACTION_DIM},)")
        if not np.isfinite(action).all():
            raise ValueError(f"action is not finite: {action}")
        scale = np.append(np.full(NUM_JOINTS, self.config.action_scale), self.config.gripper_scale)
        low = np.append(self._limits[:, 0], GRIPPER_RANGE[0])
        high = np.append(self._limits[:, 1], GRIPPER_RANGE[1])
        target = np.clip(self._target + np.clip(action, -1.0, 1.0) * scale, low, high)
        executed = (target - self._target) / scale
        self._target = target
        self._drive()
        for _ in range(self.config.physics_steps):
            self._scene.step()
            if self.watch_contacts:
                self._touched |= scene_facts.touched_by_robot(self._scene.get_contacts(), self._objects)
        self._draw()
        return executed.astype(np.float32)

    def _draw(self) -> None:
        """Brings the scene to the renderer, with the next picture of a noisy screen."""
        if self._screen is not None:
            self._screen.refresh(self._noise)
        self._scene.update_render()

    def _drive(self) -> None:
        for joint, target in zip(self._joints, self._target[:NUM_JOINTS], strict=True):
            joint.set_drive_target(float(target))
        for finger in self._fingers:
            finger.set_drive_target(float(self._target[NUM_JOINTS]))

    # --- observation ---

    def state(self) -> FloatArray:
        """(22,) float32 in the order and units of STATE_NAMES."""
        qpos, qvel = self._robot.qpos, self._robot.qvel
        pose = self._ee.entity_pose
        q = pose.q if pose.q[0] >= 0 else -pose.q
        opening = (qpos[NUM_JOINTS] + qpos[NUM_JOINTS + 1]) / 2
        return np.concatenate([qpos[:NUM_JOINTS], qvel[:NUM_JOINTS], [opening], pose.p, q]).astype(np.float32)

    def render(self, camera: str) -> UInt8Array:
        """(size, size, 3) uint8: head at `vlm_size`, wrist at the larger of `vlm_size` and `wm_size`."""
        return rendering.picture(self._cameras[camera])

    def object_poses(self) -> FloatArray:
        """Privileged: (num_objects, 7) float32, position (m) and quaternion wxyz in the robot base frame."""
        rows = [np.concatenate([e.pose.p, e.pose.q]) for e in self._objects]
        return np.asarray(rows, np.float32).reshape(len(rows), 7)

    def facts(self) -> dict[str, npt.NDArray[np.generic]]:
        """Privileged: `wrist_pose` (7,) of the tool, position (m) and quaternion wxyz; `objects` (K, 3) positions (m);
        `touched` (K,) by the robot since the episode began, with `watch_contacts`; `in_view` (K,) of the wrist camera,
        by direction."""
        pose, camera = self._ee.entity_pose, self._cameras["wrist"]
        objects = self.object_poses()[:, :3]
        reach = np.array([np.hypot(s.size, s.half_height) for s in self._specs])
        return {
            "wrist_pose": np.concatenate([pose.p, pose.q]).astype(np.float32),
            "objects": objects,
            "touched": self._touched.copy(),
            "in_view": scene_facts.in_view(camera.get_extrinsic_matrix(), WRIST_FOV, objects, reach),
        }

    def segmentation(self, camera: str) -> npt.NDArray[np.int32]:
        """Privileged: (size, size) int32 entity ids, names in `entity_names()`; draws once more."""
        return rendering.segmentation(self._cameras[camera])

    def entity_names(self) -> dict[int, str]:
        """Entity id -> name: `table`, `wall_*`, `object_*`, `panda_*`."""
        return {e.per_scene_id: e.name for e in self._scene.entities}


def _check(config: EnvironmentConfig) -> None:
    if config.control_mode != "delta_qpos":
        raise ValueError(f"environment.control_mode '{config.control_mode}': sapien_tabletop offers delta_qpos")
    if config.embodiment != ["franka-panda"]:
        raise ValueError(f"environment.embodiment {config.embodiment}: sapien_tabletop offers [franka-panda]")
    if not 0 <= config.num_objects <= tabletop_scene.MAX_OBJECTS:
        raise ValueError(
            f"environment.num_objects is {config.num_objects}; it must lie between 0 and {tabletop_scene.MAX_OBJECTS}"
        )
    for name in ("action_scale", "gripper_scale", "physics_timestep", "physics_steps", "scene_reset_interval"):
        if getattr(config, name) <= 0:
            raise ValueError(f"environment.{name} is {getattr(config, name)}; it must be positive")


def _paint(robot: sapien.physx.PhysxArticulation, linear_color: npt.NDArray[np.floating]) -> None:
    for link in robot.links:
        body = link.entity.find_component_by_type(sapien.render.RenderBodyComponent)
        if body is None:
            continue
        for shape in body.render_shapes:
            for part in shape.parts:
                if np.mean(part.material.base_color[:3]) > ARM_WHITE_MEAN:
                    part.material.base_color = [*linear_color, 1.0]
