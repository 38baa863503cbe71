"""The real Isaac Lab on a CPU, in this process: one simulator for all tests of this file."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("isaaclab", reason="needs Isaac Lab: bash setup.sh isaaclab, then bash tests/run.sh isaaclab")

from rl.config import IsaacLabConfig
from rl.envs import registry
from rl.envs.registry import TaskOptions
from rl.sims import isaaclab_launch
from rl.sims.isaaclab import IsaacLabEnv

TASK = "Isaac-Cartpole-Direct"
ENVS = 8


@pytest.fixture(scope="module")
def env() -> Iterator[IsaacLabEnv]:
    made = registry.make_vector_env(TASK, ENVS, "cpu", seed=0, options=TaskOptions(random_phase=False))
    assert isinstance(made, IsaacLabEnv)
    yield made
    made.close()


def played(env: IsaacLabEnv, count: int, seed: int = 3, push: float | None = None) -> list[torch.Tensor]:
    """Observations of `count` steps."""
    env.reset(seed)
    g = torch.Generator().manual_seed(0)
    seen = []
    for _ in range(count):
        actions = torch.rand(ENVS, 1, generator=g) * 2 - 1 if push is None else torch.full((ENVS, 1), push)
        observation = env.step(actions).observation
        assert isinstance(observation, torch.Tensor)
        seen.append(observation)
    return seen


def test_its_spaces_are_ours(env: IsaacLabEnv) -> None:
    assert env.observation_space.shape == (4,)
    assert env.action_space.low.tolist() == [-1.0]  # type: ignore[attr-defined]
    assert (env.num_envs, env.max_episode_steps) == (ENVS, 300)
    assert env.step_seconds == pytest.approx(1 / 60)


def test_the_same_seed_gives_the_same_episodes(env: IsaacLabEnv) -> None:
    first, second = played(env, 20), played(env, 20)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], played(env, 1, seed=4)[0])


def test_a_failure_shows_the_cart_beyond_its_bound_and_the_next_episode_inside(env: IsaacLabEnv) -> None:
    env.reset(0)
    ends = 0
    for _ in range(150):
        step = env.step(torch.ones(ENVS, 1))
        assert isinstance(step.next_observation, torch.Tensor)
        assert isinstance(step.observation, torch.Tensor)
        assert (step.next_observation[step.terminated, 0].abs() > 3.0).all()
        assert (step.observation[step.terminated, 0].abs() <= 3.0).all()
        rest = ~(step.terminated | step.truncated)
        assert torch.equal(step.next_observation[rest], step.observation[rest])
        ends += int(step.terminated.sum())
    assert ends >= ENVS


def test_time_cuts_after_300_steps_and_is_no_failure(env: IsaacLabEnv) -> None:
    env.reset(1)
    for t in range(1, 301):
        step = env.step(torch.zeros(ENVS, 1))
        if t < 300:
            assert not step.truncated.any()
    alive = ~step.terminated
    assert step.truncated[alive].all()
    assert not (step.truncated & step.terminated).any()


def test_training_begins_episodes_anywhere_and_evaluation_at_the_beginning(env: IsaacLabEnv) -> None:
    training = IsaacLabEnv(env.env, 1.0, True, seed=0)
    training.reset(0)
    assert len(env.env.episode_length_buf.unique()) > 3
    training.evaluating().reset(0)
    assert not env.env.episode_length_buf.any()


def test_pictures_show_the_robot_and_change_when_it_moves(env: IsaacLabEnv) -> None:
    from rl.sims.isaaclab_picture import Picture

    env.reset(0)
    picture = Picture(env.env, 96)
    first = picture.render()
    assert first.shape == (96, 96, 3)
    assert len(torch.from_numpy(first).flatten(0, 1).unique(dim=0)) > 5
    for _ in range(10):
        env.step(torch.ones(ENVS, 1))
    assert (first != picture.render()).any()


@pytest.mark.parametrize(
    ("task", "settings", "complaint"),
    [
        ("Isaac-Cartpole-Dierct", {}, "did you mean Isaac-Cartpole-Direct"),
        (TASK, {"physics": "newton_mjwrap"}, "isaaclab.physics=newton_mjwrap"),
        (TASK, {"physics": "isaacsim_physx"}, "needs the full simulator"),
        ("IsaacContrib-Factory-PegInsert-Direct", {}, "needs the full simulator"),  # has no other physics
        ("Isaac-Pendulum-MARL-Direct", {}, "no task for one policy"),
    ],
)
def test_what_cannot_be_run_is_refused(task: str, settings: dict[str, str], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        isaaclab_launch.configured(task, 4, torch.device("cpu"), 0, IsaacLabConfig(**settings))


def test_a_robot_that_is_not_there_is_refused_by_its_file(tmp_path: Path) -> None:
    """In a process of its own: Isaac Lab holds one simulation a process."""
    argv = ["--task", "Isaac-Velocity-Rough-AnymalD", "--num_envs", "2", "--device", "cpu", "--max_iterations", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "rl.training.train_rl", *argv, "--output_dir", str(tmp_path / "run")],
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 4
    complaint = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(complaint) == 1 and "anymal_d.usd" in complaint[0] and "isaaclab.asset_root" in complaint[0]
