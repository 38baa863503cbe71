"""Details 14 to 22 of PPO (Huang et al. 2022): Atari games and pictures.

14 to 20 are switches of the block `atari`, and 21 those of `ppo.network`; each test shows both sides. Inherent: that
pictures are gray (18; their size is a setting) and that pixels are scaled (22).
"""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rl.config import AtariConfig, Encoder, PPONetworkConfig
from rl.envs.atari import EpisodicLife, FireReset, atari_env
from rl.models.actor_critic import ActorCritic
from rl.models.cnn import NatureCNN
from tests.helpers.atari_game import FakeAtari
from tests.helpers.ppo_learner import assert_orthogonal


def test_detail_14_a_reset_is_followed_by_up_to_30_no_ops() -> None:
    counts = set()
    for seed in range(30):
        game = FakeAtari(life=1000, fire=False)
        atari_env(game, AtariConfig()).reset(seed=seed)
        assert set(game.actions) == {"NOOP"}
        counts.add(len(game.actions))
    assert min(counts) >= 1 and max(counts) <= 30 and len(counts) > 10
    game = FakeAtari(fire=False)
    atari_env(game, AtariConfig(noop_max=0)).reset()
    assert game.actions == []


def test_detail_15_an_action_is_repeated_4_times_and_the_last_two_frames_are_maxed() -> None:
    game = FakeAtari(life=10**6, fire=False)
    env = atari_env(game, AtariConfig(noop_max=0, clip_rewards=False))
    env.reset()
    observation, reward, *_ = env.step(1)
    assert game.actions == ["RIGHT"] * 4 and reward == 20
    assert observation[-1].max() == 4  # frames 3 and 4
    game.frame = 196
    assert env.step(1)[0][-1].max() == 199  # frames 199 and 200 show 199 and 0
    every = FakeAtari(life=10**6, fire=False)
    env = atari_env(every, AtariConfig(noop_max=0, frame_skip=1, clip_rewards=False))
    env.reset()
    assert env.step(1)[1] == 5 and every.actions == ["RIGHT"]


def test_detail_16_a_lost_life_ends_the_episode_and_the_game_goes_on() -> None:
    game = FakeAtari(life=6)
    env = EpisodicLife(game)
    env.reset()
    ends = []
    for _ in range(13):
        if env.step(0)[2]:
            ends.append(game.frame)
            env.reset()
    assert ends == [6, 12] and game.games == 1  # two lives of one game
    while game.lives > 0:
        env.step(0)
    env.reset()
    assert game.games == 2
    whole = atari_env(FakeAtari(life=8, fire=False), AtariConfig(noop_max=0, episodic_life=False))
    whole.reset()
    assert [bool(whole.step(0)[2]) for _ in range(6)] == [False] * 5 + [True]  # three lives of two steps


def test_detail_17_fire_is_pressed_after_a_reset_where_the_game_has_it() -> None:
    game = FakeAtari()
    FireReset(game).reset()
    assert game.actions == ["FIRE"]
    waiting, none = FakeAtari(), FakeAtari(fire=False)
    atari_env(waiting, AtariConfig(noop_max=0)).reset()
    atari_env(none, AtariConfig(noop_max=0)).reset()
    assert "FIRE" in waiting.actions and none.actions == []
    off = FakeAtari()
    atari_env(off, AtariConfig(noop_max=0, fire=False)).reset()
    assert off.actions == []


def test_fire_is_pressed_after_a_lost_life_when_the_episode_goes_on() -> None:
    game = FakeAtari(life=4)
    env = FireReset(game)
    env.reset()
    rewards = [env.step(0)[1] for _ in range(3)]  # the life ends with the third frame after the one of FIRE
    assert game.actions == ["FIRE", "NOOP", "NOOP", "NOOP", "FIRE"] and rewards == [0, 0, -3]


def test_detail_18_pictures_are_gray_and_84_px() -> None:
    space = atari_env(FakeAtari(), AtariConfig(frame_stack=1)).observation_space
    assert space.shape == (1, 84, 84) and space.dtype == np.uint8
    assert atari_env(FakeAtari(), AtariConfig(screen_size=42)).observation_space.shape == (4, 42, 42)


def test_detail_19_only_the_sign_of_the_reward_counts() -> None:
    env = atari_env(FakeAtari(life=10**6), AtariConfig(noop_max=0))
    env.reset()
    assert [env.step(a)[1] for a in (0, 1, 2)] == [0, -1, 1]
    points = atari_env(FakeAtari(life=10**6), AtariConfig(noop_max=0, clip_rewards=False))
    points.reset()
    assert [points.step(a)[1] for a in (0, 1, 2)] == [0, -12, 20]


def test_detail_20_four_frames_are_stacked() -> None:
    env = atari_env(FakeAtari(life=10**6, fire=False), AtariConfig(noop_max=0))
    env.reset()
    for _ in range(4):
        observation = env.step(0)[0]
    assert observation.shape == (4, 84, 84) and observation.max((1, 2)).tolist() == [4, 8, 12, 16]
    single = atari_env(FakeAtari(life=10**6, fire=False), AtariConfig(noop_max=0, frame_stack=1))
    single.reset()
    single.step(0)
    assert single.step(0)[0].max((1, 2)).tolist() == [8]


def test_detail_21_actor_and_critic_share_the_nature_cnn() -> None:
    space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    policy = ActorCritic(space, gym.spaces.Discrete(3), PPONetworkConfig(hidden=[]))
    convolutions = [m for m in policy.modules() if isinstance(m, nn.Conv2d)]
    assert [(c.out_channels, c.kernel_size[0], c.stride[0]) for c in convolutions] == [
        (32, 8, 4),
        (64, 4, 2),
        (64, 3, 1),
    ]
    assert policy.encoder.width == 512 and policy.actor_head.in_features == policy.critic_head.in_features == 512
    assert_orthogonal(convolutions[0].weight, math.sqrt(2))
    policy.value(torch.zeros(2, 4, 84, 84, dtype=torch.uint8)).sum().backward()
    assert all(c.weight.grad is not None for c in convolutions)
    none = ActorCritic(space, gym.spaces.Discrete(3), PPONetworkConfig(hidden=[], encoder=Encoder.none))
    assert none.encoder.width == 4 * 84 * 84 and not any(isinstance(m, nn.Conv2d) for m in none.modules())


def test_detail_22_pixels_are_scaled_to_0_1() -> None:
    cnn = NatureCNN((4, 84, 84), 8)
    seen: list[Tensor] = []
    cnn.convolutions.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    cnn(torch.full((1, 4, 84, 84), 255, dtype=torch.uint8))
    cnn(torch.full((1, 4, 84, 84), 51, dtype=torch.uint8))
    assert [(x.dtype, x.unique().item()) for x in seen] == [(torch.float32, 1.0), (torch.float32, pytest.approx(0.2))]
