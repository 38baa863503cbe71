"""The supervisor under what trainers really use: the SAPIEN scene of the F1 phases, simulated and seen arms."""

import os
import signal
from typing import Any

import numpy as np
import pytest
import torch

from rl.config import Config, Isolation, SupervisionConfig
from rl.envs.registry import TaskOptions, make_vector_env
from rl.envs.vector import VectorEnv
from rl.training.collector import SUBSTITUTE, EpisodeCollector, RandomActions
from rl.types import EpisodeRecord
from rl.vec_env import failures

STEPS, ENVS = 4, 2
LIMITS = SupervisionConfig(max_failures=9)


def collector(isolation: Isolation) -> EpisodeCollector:
    cfg = Config()
    cfg.training.num_envs, cfg.training.steps_per_episode = ENVS, STEPS
    cfg.environment.num_objects, cfg.environment.isolation, cfg.environment.supervision = 2, isolation, LIMITS
    return EpisodeCollector(cfg, "student", 0, "cpu", 2, 1, 3, scene_facts=True)


class Murderer:
    """Random actions that kill environment 1 at step 2 of an episode, a given number of times."""

    def __init__(self, of: EpisodeCollector, times: dict[int, int]) -> None:
        self.of, self.times = of, times
        self.act = RandomActions(3, 0, of.action_mask, ENVS)

    def __call__(self, observations: dict[str, Any], episode: int, step: int) -> np.ndarray:
        if step == 2 and self.times.get(episode, 0) > 0:
            self.times[episode] -= 1
            os.kill(self.of.envs.workers.pids[1], signal.SIGKILL)  # type: ignore[attr-defined]
        return self.act(observations, episode, step)


def same(a: EpisodeRecord, b: EpisodeRecord) -> bool:
    names = ("head", "wrist", "wrist_vlm", "states", "actions", "env_index", "episode_index")
    assert a.scene is not None and b.scene is not None
    scenes = [np.array_equal(x, y) for x, y in zip(vars(a.scene).values(), vars(b.scene).values(), strict=True)]
    return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names) and all(scenes)


def test_a_killed_simulator_changes_no_episode_and_one_that_dies_of_its_episode_gets_another() -> None:
    """Episode 1 is lost once: it is played again and nothing of the data differs. Episode 2 is lost twice."""
    inline, apart = collector(Isolation.sync), collector(Isolation.process)
    act, kill = RandomActions(3, 0, inline.action_mask, ENVS), Murderer(apart, {1: 1, 2: 2})
    expected, found = inline.collect_steps(4 * ENVS * STEPS, act), apart.collect_steps(4 * ENVS * STEPS, kill)
    assert [(r.env_index, r.episode_index) for r in expected] == [(e, n) for n in range(4) for e in range(ENVS)]
    differing = [i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if not same(a, b)]
    assert differing == [2 * ENVS + 1]  # episode 2 of environment 1
    substitute = found[differing[0]]
    assert substitute.episode_index == 2 + SUBSTITUTE and not np.array_equal(substitute.wrist, expected[5].wrist)
    assert failures(apart.envs) == 3 and failures(inline.envs) is None
    apart.rebuild(1)  # as at a checkpoint
    again = apart.collect_steps(ENVS * STEPS, act)
    assert all(same(a, b) for a, b in zip(expected[ENVS : 2 * ENVS], again, strict=True))
    apart.close()


def rollout(env: VectorEnv, steps: int, kill: dict[int, int]) -> list[Any]:
    """`kill`: step -> environment whose process is killed before it."""
    env.reset(3)
    generator, found = torch.Generator().manual_seed(1), []
    for t in range(steps):
        if t in kill:
            os.kill(workers(env).pids[kill[t]], signal.SIGKILL)
        found.append(env.step(torch.rand(env.num_envs, 7, generator=generator) * 2 - 1))
    return found


def workers(env: Any) -> Any:
    return env._physics._workers if hasattr(env, "_physics") else env._scene._workers


def both(task: str, **options: Any) -> tuple[VectorEnv, VectorEnv]:
    inline = make_vector_env(task, 3, options=TaskOptions(**options))
    return inline, make_vector_env(task, 3, options=TaskOptions(processes=LIMITS, **options))


def test_a_lost_arm_begins_its_episode_again_and_the_others_do_not_notice() -> None:
    inline, apart = both("ArmReachPhysics-v1")
    expected, found = rollout(inline, 6, {}), rollout(apart, 6, {3: 1})
    for t, (a, b) in enumerate(zip(expected, found, strict=True)):
        assert b.lost.tolist() == [False, t == 3, False] and torch.equal(b.valid, ~b.lost)
        rows = [0, 2] if t >= 3 else [0, 1, 2]
        for name in ("observation", "next_observation", "reward", "truncated"):
            assert torch.equal(getattr(a, name)[rows], getattr(b, name)[rows]), (name, t)
    assert found[3].truncated[1] and not found[3].terminated[1]
    home = inline.reset(3)[1, :7]  # type: ignore[index]
    assert torch.equal(found[3].observation[1, :7], home) and not torch.equal(found[4].observation[1, :7], home)
    first = apart.reset(3)  # new worlds in the processes that there are
    assert torch.equal(first, inline.reset(3))  # type: ignore[arg-type]
    inline.close()
    apart.close()


@pytest.mark.slow
def test_pictures_of_a_lost_scene_are_drawn_again() -> None:
    inline, apart = both("VisionArmReach-v1", image_size=36, frame_stack=2)
    for a, b in zip(rollout(inline, 3, {}), rollout(apart, 3, {1: 0}), strict=True):
        assert torch.equal(a.observation["pixels"], b.observation["pixels"])
        assert torch.equal(a.observation["state"], b.observation["state"]) and bool(b.valid.all())
    saved = apart.state_dict()
    restored = inline.load_state_dict(saved)
    assert torch.equal(restored["pixels"], saved["stack"].flatten(1, 2))  # type: ignore[index]
    assert apart._scene.losses == 1  # type: ignore[attr-defined]
    inline.close()
    apart.close()


def test_the_kinematic_arm_has_no_simulator_to_isolate() -> None:
    env = make_vector_env("ArmReach-v1", 2, options=TaskOptions(processes=LIMITS))
    env.reset(0)
    assert env.step(torch.zeros(2, 7)).lost is None


@pytest.mark.parametrize("key", ["step_timeout_s=0", "start_timeout_s=-1", "max_failures=-1", "window=0"])
def test_impossible_limits_are_refused(key: str) -> None:
    from rl import config

    with pytest.raises(ValueError, match=rf"environment\.supervision\.{key.split('=')[0]} is"):
        config.load(None, [f"environment.supervision.{key}"])
