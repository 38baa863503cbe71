"""An episode is a pure function of (seed, rank, environment index, episode index)."""

import dataclasses
import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil

from rl.config import EnvironmentConfig
from rl.sims import make_simulator
from rl.sims.sapien_tabletop import ACTION_DIM, SapienTabletop


def _play(sim: SapienTabletop, episode: int, steps: int = 30) -> str:
    """Digest of all frames and states of an episode whose arm pushes into the objects."""
    sim.reset(episode)
    rng, digest = np.random.default_rng(episode), hashlib.sha256()
    for _ in range(steps):
        action = rng.uniform(-1, 1, ACTION_DIM)
        action[1] += 0.5
        sim.step(action)
        for array in (sim.render("head"), sim.render("wrist"), sim.state(), sim.object_poses()):
            digest.update(array.tobytes())
    return digest.hexdigest()


def _config(interval: int) -> EnvironmentConfig:
    return dataclasses.replace(EnvironmentConfig(), scene_reset_interval=interval)


def test_reused_rebuilt_and_freshly_made_scenes_give_the_same_episode_to_the_last_bit() -> None:
    reused, rebuilt = make_simulator(_config(50)), make_simulator(_config(50))
    order = [0, 1, 2, 3, 4, 5, 6, 7, 2, 0, 7]
    expected: dict[int, str] = {}
    for episode in order:
        rebuilt.rebuild()
        expected.setdefault(episode, _play(rebuilt, episode))
    assert len(set(expected.values())) == len(expected)
    for episode in order:
        assert _play(reused, episode) == expected[episode], f"episode {episode} depends on what was played before"
    reused.close()
    rebuilt.close()


def test_coming_back_to_an_earlier_scene_gives_the_same_episode() -> None:
    sim = make_simulator(_config(2))
    first = [_play(sim, e, 5) for e in range(6)]
    assert [_play(sim, e, 5) for e in (4, 1, 5)] == [first[4], first[1], first[5]]
    sim.close()


def test_simulators_sharing_a_process_do_not_influence_each_other() -> None:
    alone = make_simulator(_config(50), env_index=1)
    expected = _play(alone, 0, 10)
    alone.close()
    a, b = make_simulator(_config(50), env_index=0), make_simulator(_config(50), env_index=1)
    a.reset(0)
    assert _play(b, 0, 10) == expected
    a.close()
    b.close()


def test_seed_rank_and_environment_index_each_give_another_episode() -> None:
    digests = set()
    for key in ({}, {"seed": 1}, {"rank": 1}, {"env_index": 1}):
        sim = make_simulator(_config(50), **key)
        digests.add(_play(sim, 0, 2))
        sim.close()
    assert len(digests) == 4


def test_another_process_renders_the_same_frames() -> None:
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "from test_determinism import _config, _play, make_simulator\n"
        "print(_play(make_simulator(_config(50)), 4, 10))\n"
    )
    here = Path(__file__).resolve()
    output = subprocess.run(
        [sys.executable, "-c", code, str(here.parent), str(here.parents[2])], capture_output=True, text=True, check=True
    ).stdout
    sim = make_simulator(_config(50))
    assert output.split()[-1] == _play(sim, 4, 10)
    sim.close()


def test_resets_with_and_without_a_rebuild_leave_memory_flat() -> None:
    sim, process, memory = make_simulator(_config(2)), psutil.Process(), []
    for episode in range(90):
        sim.reset(episode)
        sim.step(np.zeros(ACTION_DIM))
        sim.render("head")
        sim.render("wrist")
        memory.append(process.memory_info().rss)
    sim.close()
    # A scene leaked at every rebuild would grow by more than 1.5 MB (its textures alone) per two resets.
    slope = np.polyfit(np.arange(60), memory[30:], 1)[0]
    assert slope < 100_000, f"{slope / 1e3:.0f} kB per reset"
