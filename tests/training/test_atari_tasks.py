"""Games behind the vector interface, as the block `atari` says; a fake one stands for those of ale_py."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import gymnasium as gym
import pytest
import torch

from rl.config import AtariConfig, load
from rl.envs import registry
from rl.envs.registry import TaskOptions, make_vector_env
from rl.training import policies
from tests.helpers.atari_game import FakeAtari
from tests.training import policy_runs


@pytest.fixture
def game() -> Iterator[str]:
    """Id of a game that needs no ale_py."""

    def make(render_mode: str | None = None, frameskip: int = 4) -> FakeAtari:
        one = FakeAtari(life=20)
        one._frameskip = frameskip
        return one

    gym.register("ALE/Walk-v5", make, disable_env_checker=True)
    yield "ALE/Walk-v5"
    del gym.registry["ALE/Walk-v5"]


def test_a_game_is_shown_as_the_block_atari_says(game: str) -> None:
    env = make_vector_env(game, 2)
    assert env.observation_space.shape == (4, 84, 84) and env.observation_space.dtype == "uint8"
    env.close()
    env = make_vector_env(game, 2, options=TaskOptions(atari=AtariConfig(screen_size=40, frame_stack=2)))
    assert env.reset(0).shape == (2, 2, 40, 40) and registry.shows_pictures(game)
    env.close()


def test_lives_are_episodes_and_rewards_signs_in_training_only(game: str) -> None:
    """Three lives of 20 frames; RIGHT pays 5 a frame, FIRE, the first step of a game (frames 1 to 4), takes 3."""
    cfg = load(None, [f"rl.task={game}", "atari.noop_max=0"], "rl")
    found = {}
    for training in (True, False):
        env = policies.make_env(cfg, "rl", 1, torch.device("cpu"), 0, training=training)
        env.reset(0)
        steps = [env.step(torch.tensor([2])) for _ in range(5)]
        found[training] = [s.reward.item() for s in steps], [bool(s.terminated) for s in steps]
        env.close()
    # With frames 17 to 20 the first life is lost: an end, or FIRE in the same step.
    assert found[True] == ([1, 1, 1, 1, 1], [False, False, False, True, False])
    assert found[False] == ([20, 20, 20, 20 - 12, 20], [False] * 5)


def test_a_game_without_its_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for task in ("ALE/Nothing-v5", "NothingNoFrameskip-v4"):
        with pytest.raises(ValueError, match=rf"{task} is an Atari game .* -m pip install -r requirements/atari.txt"):
            registry.check_task(task)


def test_published_ppo_trains_on_a_game(game: str, tmp_path: Path) -> None:
    small = ["ppo.num_envs=2", "ppo.n_steps=8", "ppo.minibatch_size=0", "ppo.network.cnn_width=16"]
    small += ["ppo.network.hidden=[]", "atari.screen_size=36", "rl.eval_every=9"]
    small += ["rl.eval_episodes=2", "rl.final_episodes=2"]
    chosen = ("--task", game, "rl.preset=ppo37_atari", "--max_iterations", "2")
    assert policy_runs.rl("PPO", tmp_path / "run", *chosen, *small) == 0
    found = policy_runs.result(tmp_path / "run")
    assert (found["task"], found["env_steps"], found["episodes"]) == (game, 32, 2)
