"""Control, state and pictures of the tabletop simulator."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from rl.config import DomainRandomizationConfig, EnvironmentConfig, Visuals
from rl.sims import make_simulator
from rl.sims.sapien_tabletop import ACTION_DIM, GRIPPER_RANGE, HOME, STATE_DIM, STATE_NAMES, SapienTabletop


@pytest.fixture(scope="module")
def sim() -> Iterator[SapienTabletop]:
    simulator = make_simulator(EnvironmentConfig())
    yield simulator
    simulator.close()


def _named(sim: SapienTabletop, camera: str) -> dict[str, int]:
    """Entity name -> pixels."""
    names = sim.entity_names()
    ids, counts = np.unique(sim.segmentation(camera), return_counts=True)
    return {names[int(i)]: int(n) for i, n in zip(ids, counts, strict=True) if int(i) in names}


def test_head_camera_sees_arm_table_walls_and_most_objects(sim: SapienTabletop) -> None:
    for episode in (0, 3, 50):
        sim.reset(episode)
        seen = _named(sim, "head")
        assert sum(n for name, n in seen.items() if name.startswith("panda_")) > 150
        assert seen["table"] > 1000
        assert sum(n for name, n in seen.items() if name.startswith("wall_")) > 200
        assert sum(name.startswith("object_") for name in seen) >= 8


def test_wrist_camera_sees_gripper_and_table_and_in_most_episodes_an_object(sim: SapienTabletop) -> None:
    with_object = 0
    for episode in range(12):
        sim.reset(episode)
        seen = _named(sim, "wrist")
        assert seen["panda_leftfinger"] > 5 and seen["panda_rightfinger"] > 5
        assert seen["table"] > 1000
        with_object += any(name.startswith("object_") for name in seen)
    assert with_object >= 7


def test_pictures_are_lit_and_not_flat(sim: SapienTabletop) -> None:
    sim.reset(0)
    for camera in ("head", "wrist"):
        picture = sim.render(camera)
        assert picture.shape == (64, 64, 3) and picture.dtype == np.uint8
        assert 40 < picture.mean() < 220 and picture.std() > 15


def test_next_frames_are_neither_trivial_nor_unpredictable() -> None:
    sim = make_simulator(dataclasses.replace(EnvironmentConfig(), scene_reset_interval=1))
    rng, psnr = np.random.default_rng(0), []
    for episode in range(10):
        sim.reset(episode)
        last = sim.render("wrist").astype(np.float64)
        for _ in range(20):
            sim.step(rng.uniform(-1, 1, ACTION_DIM))
            frame = sim.render("wrist").astype(np.float64)
            psnr.append(10 * np.log10(255**2 / np.mean((frame - last) ** 2)))
            last = frame
    sim.close()
    assert 20 < np.mean(psnr) < 26  # copy-last-frame; 22.7 dB in the study this scene follows


def test_state_has_its_documented_order_and_units(sim: SapienTabletop) -> None:
    assert STATE_DIM == len(STATE_NAMES) == 22
    sim.reset(0)
    state = dict(zip(STATE_NAMES, sim.state().tolist(), strict=True))
    joints = np.array([state[f"joint_position_{i}"] for i in range(1, 8)])
    assert np.abs(joints - HOME).max() <= 0.15 + 1e-6
    assert all(state[f"joint_velocity_{i}"] == 0.0 for i in range(1, 8))
    assert GRIPPER_RANGE[0] <= state["gripper_opening"] <= GRIPPER_RANGE[1]
    quaternion = np.array([state[f"ee_quaternion_{a}"] for a in "wxyz"])
    assert abs(np.linalg.norm(quaternion) - 1) < 1e-5 and quaternion[0] >= 0


def test_end_effector_pose_agrees_with_forward_kinematics_from_the_data_sheet(sim: SapienTabletop) -> None:
    # Modified Denavit-Hartenberg parameters of the Panda (a, d, alpha); flange 0.107 m, tool centre 0.1034 m.
    table = [(0, 0.333, 0), (0, 0, -np.pi / 2), (0, 0.316, np.pi / 2), (0.0825, 0, np.pi / 2)]
    table += [(-0.0825, 0.384, -np.pi / 2), (0, 0, np.pi / 2), (0.088, 0, np.pi / 2)]
    sim.reset(5)
    state = sim.state().astype(np.float64)
    pose = np.eye(4)
    for q, (a, d, alpha) in zip(state[:7], table, strict=True):
        c, s, ca, sa = np.cos(q), np.sin(q), np.cos(alpha), np.sin(alpha)
        pose = pose @ np.array(
            [[c, -s, 0, a], [s * ca, c * ca, -sa, -d * sa], [s * sa, c * sa, ca, d * ca], [0, 0, 0, 1]]
        )
    pose = pose @ np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0.107 + 0.1034], [0, 0, 0, 1.0]])
    np.testing.assert_allclose(state[15:18], pose[:3, 3], atol=2e-4)
    # The tool's z axis does not depend on the hand's turn about it.
    w, x, y, z = state[18:]
    np.testing.assert_allclose(
        [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)], pose[:3, 2], atol=1e-3
    )


def test_a_command_is_reached_in_radians_after_the_drives_settle(sim: SapienTabletop) -> None:
    sim.reset(1)
    before = sim.state()
    action = np.zeros(ACTION_DIM)
    action[0], action[3], action[7] = 1.0, 0.5, -0.25
    sim.step(action)
    partly = sim.state()[0] - before[0]
    assert 0.02 < partly < 0.09  # the drives lag
    for _ in range(40):
        sim.step(np.zeros(ACTION_DIM))
    moved = sim.state() - before
    assert moved[0] == pytest.approx(0.1, abs=5e-3) and moved[3] == pytest.approx(0.05, abs=5e-3)


def test_gripper_travels_between_closed_and_four_centimetres(sim: SapienTabletop) -> None:
    sim.reset(1)
    opening = []
    for sign in (1.0, -1.0):
        for _ in range(30):
            executed = sim.step(np.append(np.zeros(7), sign))
        assert executed[7] == 0.0  # at its limit nothing is executed
        opening.append(sim.state()[14])
    assert opening[0] == pytest.approx(0.04, abs=2e-3) and opening[1] == pytest.approx(0.0, abs=2e-3)


def test_executed_action_is_clipped_to_the_unit_range_and_to_the_joint_limits(sim: SapienTabletop) -> None:
    sim.reset(2)
    executed = sim.step(np.full(ACTION_DIM, 7.0))
    assert executed.dtype == np.float32 and executed[:7].max() <= 1.0
    assert executed[0] == pytest.approx(1.0)
    start, total = float(sim.state()[0]), 0.0
    for _ in range(60):
        executed = sim.step(np.append(1.0, np.zeros(7)))
        total += float(executed[0]) * 0.1
    assert executed[0] == 0.0
    assert sim.state()[0] <= 2.8973 + 1e-3  # joint 1 of the Panda's data sheet
    assert total < 2.8973 - start + 0.1


def test_arm_pushes_objects_and_resting_ones_stay(sim: SapienTabletop) -> None:
    sim.reset(3)
    placed = sim.object_poses()
    for _ in range(5):
        sim.step(np.zeros(ACTION_DIM))
    assert np.abs(sim.object_poses()[:, :3] - placed[:, :3]).max() < 1e-3
    down = np.zeros(ACTION_DIM)
    rng = np.random.default_rng(0)
    for _ in range(60):
        down[:7] = rng.uniform(-1, 1, 7)
        down[1] += 0.4
        sim.step(down)
    moved = np.linalg.norm(sim.object_poses()[:, :3] - placed[:, :3], axis=1)
    assert moved.max() > 0.05  # something was pushed
    assert moved.min() < 1e-3  # what was not touched stays


@pytest.mark.parametrize("bad", [np.full(8, np.nan), np.full(8, np.inf), np.zeros(7), np.zeros((1, 8))])
def test_bad_actions_are_refused_and_change_nothing(sim: SapienTabletop, bad: np.ndarray) -> None:
    sim.reset(0)
    before = sim.state()
    with pytest.raises(ValueError, match="action"):
        sim.step(bad)
    np.testing.assert_array_equal(sim.state(), before)


@pytest.mark.parametrize(("vlm", "wm"), [(64, 256), (100, 72), (224, 64)])
def test_any_render_size_shows_the_same_view(vlm: int, wm: int) -> None:
    config = dataclasses.replace(EnvironmentConfig(), vlm_size=vlm, wm_size=wm)
    sim, small = make_simulator(config), make_simulator(EnvironmentConfig())
    sim.reset(0)
    small.reset(0)
    assert sim.render("head").shape == (vlm, vlm, 3)
    assert sim.render("wrist").shape == (max(vlm, wm),) * 2 + (3,)
    for camera in ("head", "wrist"):
        mean = sim.render(camera).mean((0, 1))
        np.testing.assert_allclose(mean, small.render(camera).mean((0, 1)), atol=4.0)
    sim.close()
    small.close()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"simulator": "gazebo"}, "sapien_tabletop"),
        ({"control_mode": "torque"}, "delta_qpos"),
        ({"embodiment": ["aloha"]}, "franka-panda"),
        ({"num_objects": -1}, "num_objects"),
        ({"num_objects": 25}, "num_objects"),
        ({"gripper_scale": 0.0}, "gripper_scale"),
        ({"physics_timestep": -0.01}, "physics_timestep"),
    ],
)
def test_unusable_configurations_are_refused_by_key(change: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make_simulator(dataclasses.replace(EnvironmentConfig(), **change))


@pytest.mark.parametrize("key", [{"seed": -1}, {"rank": -1}, {"env_index": 2**32}, {"seed": 0.5}])
def test_seeds_outside_one_word_are_refused(key: dict) -> None:
    with pytest.raises(ValueError, match="integer"):
        make_simulator(EnvironmentConfig(), **key)


def test_the_fullest_table_still_finds_places() -> None:
    sim = make_simulator(dataclasses.replace(EnvironmentConfig(), num_objects=24, scene_reset_interval=1))
    for episode in range(20):
        sim.reset(episode)
    assert sim.object_poses().shape == (24, 7)
    sim.close()


def test_full_meshes_show_the_same_scene_as_low_poly_ones() -> None:
    shown = []
    for visuals in (Visuals.low, Visuals.full):
        sim = make_simulator(dataclasses.replace(EnvironmentConfig(), visuals=visuals))
        sim.reset(0)
        names = sim.entity_names()
        ids = sim.segmentation("head")
        shown.append(np.isin(ids, [i for i, n in names.items() if n.startswith("panda_")]))
        sim.close()
    overlap = (shown[0] & shown[1]).sum() / (shown[0] | shown[1]).sum()
    assert overlap > 0.85


def test_a_table_without_clutter_has_no_objects() -> None:
    config = EnvironmentConfig(domain_randomization=DomainRandomizationConfig(cluttered_table=False))
    sim = make_simulator(config)
    sim.reset(0)
    assert sim.object_poses().shape == (0, 7)
    sim.step(np.zeros(ACTION_DIM))
    sim.close()
