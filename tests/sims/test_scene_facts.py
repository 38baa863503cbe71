"""What the simulator says about its scene, against pictures and physics."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from rl.config import EnvironmentConfig
from rl.sims import make_simulator
from rl.sims.sapien_tabletop import ACTION_DIM, SapienTabletop
from rl.sims.scene_facts import in_view


@pytest.fixture(scope="module")
def sim() -> Iterator[SapienTabletop]:
    simulator = make_simulator(EnvironmentConfig())
    simulator.watch_contacts = True
    yield simulator
    simulator.close()


def test_a_ball_is_in_view_until_it_has_left_the_pyramid_whole() -> None:
    ahead = np.eye(4)[:3]
    fov, tan = np.pi / 2, 1.0
    points = np.array([[0, 0, 1], [tan - 0.01, 0, 1], [tan + 0.1, 0, 1], [tan + 0.2, 0, 1], [0, -1.2, 1], [0, 0, -0.3]])
    # 0.1 m beside the side plane is 0.0707 m away from it.
    assert in_view(ahead, fov, points, np.full(6, 0.08)).tolist() == [True, True, True, False, False, False]
    moved = np.concatenate([np.eye(3), [[0], [0], [2.0]]], 1)  # the world lies 2 m further ahead
    assert in_view(moved, fov, points, np.full(6, 0.08)).tolist() == [True] * 6


def test_what_the_wrist_camera_draws_is_said_to_be_in_view(sim: SapienTabletop) -> None:
    named = 0
    for episode in range(8):
        sim.reset(episode)
        facts, names = sim.facts(), sim.entity_names()
        drawn = {names[int(i)] for i in np.unique(sim.segmentation("wrist")) if int(i) in names}
        for k in range(len(facts["objects"])):
            if f"object_{k}" in drawn:
                named += 1
                assert facts["in_view"][k]
    assert named >= 8


def test_facts_have_the_numbers_of_state_and_object_poses(sim: SapienTabletop) -> None:
    sim.reset(2)
    facts, state = sim.facts(), sim.state()
    np.testing.assert_array_equal(facts["wrist_pose"][:3], state[15:18])
    np.testing.assert_allclose(np.abs(facts["wrist_pose"][3:]), np.abs(state[18:]), atol=1e-7)
    np.testing.assert_array_equal(facts["objects"], sim.object_poses()[:, :3])
    assert not facts["touched"].any() and facts["touched"].shape == (12,)


def test_touched_objects_are_those_that_move_by_the_arm_and_resting_ones_are_not(sim: SapienTabletop) -> None:
    sim.reset(3)
    for _ in range(5):
        sim.step(np.zeros(ACTION_DIM))
    assert not sim.facts()["touched"].any()  # the table touches them, the arm does not
    placed = sim.facts()["objects"]
    rng, before = np.random.default_rng(0), np.zeros(12, bool)
    for _ in range(60):
        action = np.zeros(ACTION_DIM)
        action[:7] = rng.uniform(-1, 1, 7)
        action[1] += 0.4
        sim.step(np.clip(action, -1, 1))
        touched = sim.facts()["touched"]
        assert (touched | ~before).all()  # never forgotten within the episode
        before = touched
    far = np.linalg.norm(sim.facts()["objects"] - placed, axis=1)
    assert touched.any() and far[touched].max() > 0.05
    assert (far[~touched] < 0.05).sum() >= 6  # others may be pushed by pushed ones
    sim.reset(3)
    assert not sim.facts()["touched"].any()


def test_contacts_are_not_watched_unless_asked_for() -> None:
    sim = make_simulator(dataclasses.replace(EnvironmentConfig(), num_objects=3))
    sim.reset(0)
    for _ in range(20):
        sim.step(np.append([0.0, 1.0], np.zeros(6)))  # down onto the table
    assert not sim.facts()["touched"].any()
    sim.close()
