"""Every switch changes what it names and nothing else, seen in the pictures."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from rl.config import DomainRandomizationConfig, EnvironmentConfig
from rl.sims import make_simulator

OFF = {"random_appearance": False, "random_background": False, "random_light": False, "cluttered_table": True}


class View(NamedTuple):
    picture: np.ndarray
    names: np.ndarray  # (H, W) entity name of every pixel
    state: np.ndarray
    objects: np.ndarray


def _views(switches: dict[str, bool], episodes: tuple[int, ...] = (0, 1), interval: int = 1) -> list[View]:
    config = EnvironmentConfig(
        domain_randomization=DomainRandomizationConfig(**switches), scene_reset_interval=interval, vlm_size=128
    )
    sim = make_simulator(config, seed=3)
    result = []
    for episode in episodes:
        sim.reset(episode)
        names = sim.entity_names()
        labels = np.vectorize(lambda i, names=names: names.get(int(i), ""))(sim.segmentation("head"))
        result.append(View(sim.render("head"), labels, sim.state(), sim.object_poses()))
    sim.close()
    return result


@pytest.fixture(scope="module")
def plain() -> list[View]:
    return _views(OFF)


def _part(prefix: str) -> Callable[[View], np.ndarray]:
    return lambda v: np.char.startswith(v.names, prefix)


def _change(a: View, b: View, prefix: str) -> float:
    """Mean absolute difference over the pixels that show `prefix` in both."""
    both = _part(prefix)(a) & _part(prefix)(b)
    assert both.any()
    return float(np.abs(a.picture[both].astype(int) - b.picture[both]).mean())


def _same_scene(a: View, b: View) -> None:
    np.testing.assert_array_equal(a.names, b.names)
    np.testing.assert_array_equal(a.state, b.state)
    np.testing.assert_array_equal(a.objects, b.objects)


def test_random_background_changes_table_and_walls_only(plain: list[View]) -> None:
    first, second = _views({**OFF, "random_background": True})
    _same_scene(plain[0], first)
    assert _change(plain[0], first, "table") > 8 and _change(plain[0], first, "wall_") > 8
    assert _change(plain[0], first, "panda_") == 0 and _change(plain[0], first, "object_") == 0
    assert _change(first, second, "table") > 8 and _change(first, second, "wall_") > 8
    # Switched off, two scenes share it.
    assert _change(plain[0], plain[1], "table") == 0 and _change(plain[0], plain[1], "wall_") == 0


def test_random_light_changes_every_surface_and_no_shape(plain: list[View]) -> None:
    first, second = _views({**OFF, "random_light": True})
    _same_scene(plain[0], first)
    for part in ("table", "wall_", "panda_"):
        assert _change(plain[0], first, part) > 2
        assert _change(first, second, part) > 2


def test_random_light_changes_with_the_episode_and_not_only_with_the_scene() -> None:
    first, second = _views({**OFF, "random_light": True}, interval=50)
    assert _change(first, second, "table") > 2


def test_random_appearance_colours_arm_objects_and_table_and_leaves_the_walls(plain: list[View]) -> None:
    first, second = _views({**OFF, "random_appearance": True})
    _same_scene(plain[0], first)
    for part in ("table", "panda_", "object_"):
        assert _change(plain[0], first, part) > 5
    assert _change(plain[0], first, "wall_") == 0
    assert _change(first, second, "table") > 3


def test_cluttered_table_adds_the_objects_and_nothing_else(plain: list[View]) -> None:
    empty = _views({**OFF, "cluttered_table": False})[0]
    assert len(empty.objects) == 0 and not _part("object_")(empty).any()
    assert len(plain[0].objects) == 12
    np.testing.assert_array_equal(empty.state, plain[0].state)
    elsewhere = ~_part("object_")(plain[0])
    np.testing.assert_array_equal(empty.picture[elsewhere], plain[0].picture[elsewhere])


def test_objects_lie_in_front_of_the_base_without_overlap(plain: list[View]) -> None:
    for view in plain:
        xy = view.objects[:, :2]
        assert (xy[:, 0] > 0.1).all() and (np.hypot(*xy.T) < 0.81).all()
        gaps = np.linalg.norm(xy[:, None] - xy[None], axis=-1) + np.eye(len(xy))
        assert gaps.min() > 0.04
    assert np.abs(plain[0].objects - plain[1].objects).max() > 0.1


def _screen_frames(on: bool, episodes: tuple[int, ...] = (0, 0, 1)) -> list[list[View]]:
    """Three frames of each episode, the arm at rest."""
    config = EnvironmentConfig(
        domain_randomization=DomainRandomizationConfig(**OFF, noisy_screen=on), vlm_size=128, num_objects=2
    )
    sim = make_simulator(config, seed=3)
    result = []
    for episode in episodes:
        frames = []
        for step in range(3):
            sim.reset(episode) if step == 0 else sim.step(np.zeros(8))
            names = sim.entity_names()
            labels = np.vectorize(lambda i, names=names: names.get(int(i), ""))(sim.segmentation("head"))
            frames.append(View(sim.render("head"), labels, sim.state(), sim.object_poses()))
        result.append(frames)
    sim.close()
    return result


def test_a_noisy_screen_shows_other_noise_at_every_step_and_nothing_else_moves() -> None:
    (first, again, other), (without, *_) = _screen_frames(True), _screen_frames(False, (0,))
    for a, b in [(first[0], first[1]), (first[1], first[2]), (first[0], other[0])]:
        assert _change(a, b, "noisy_screen") > 30
    assert _part("noisy_screen")(first[0]).mean() > 0.03 and not _part("noisy_screen")(without[0]).any()
    for a, b, plain in zip(first, again, without, strict=True):
        np.testing.assert_array_equal(a.picture, b.picture)  # a function of seed, episode and step
        np.testing.assert_array_equal(a.state, plain.state)
        np.testing.assert_array_equal(a.objects, plain.objects)
        # The shader has no shadows: where the board is not seen the picture is the one without it.
        elsewhere = ~_part("noisy_screen")(a)
        np.testing.assert_array_equal(a.picture[elsewhere], plain.picture[elsewhere])


def test_a_turn_of_the_arm_brings_the_noisy_screen_from_the_edge_of_the_wrist_camera_into_its_middle() -> None:
    config = EnvironmentConfig(domain_randomization=DomainRandomizationConfig(noisy_screen=True))
    sim = make_simulator(config, seed=0)
    shares = []
    for _ in range(25):
        sim.reset(0) if not shares else sim.step(np.eye(8)[0])
        names = sim.entity_names()
        shares.append(np.mean([names.get(int(i), "") == "noisy_screen" for i in sim.segmentation("wrist").ravel()]))
    sim.close()
    assert shares[0] < 0.35 and max(shares) > 0.6
