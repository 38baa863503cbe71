"""Presets are data: the published settings, by the table they come from."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl import config as C
from rl.algorithms.diffusion import DiffusionPolicy
from rl.algorithms.sac import MAX_EDGE_MASS, MIN_SPREAD, SAC
from rl.config import ActorReduce, AlphaOn, CriticHead, LogStdMode, NetworkNorm, SACConfig, TargetReduce, Warmup
from rl.envs.arm_expert import expert_actions
from rl.envs.arm_reach import HORIZON, ArmReach

SPACE = gym.spaces.Box(-1, 1, (21,), np.float32)


def preset(name: str) -> C.Config:
    return C.load(C.CONFIG_DIR / "algo" / f"{name}.yaml")


def test_sac_is_the_default_and_that_of_stable_baselines3() -> None:
    sac = preset("sac").sac
    assert sac == SACConfig()
    assert (sac.actor_lr, sac.buffer_size, sac.batch_size, sac.tau, sac.gamma) == (3e-4, 1_000_000, 256, 0.005, 0.99)
    assert (sac.learning_starts, sac.updates_per_step, sac.network.critic_hidden) == (100, 1, [256, 256])


@pytest.mark.parametrize(
    ("name", "envs", "gamma", "tau", "updates", "delay", "ratio", "atoms"),
    [("fastsac_loco", 4096, 0.97, 0.125, 8, 4, 0.0, 101), ("fastsac_wbt", 8192, 0.99, 0.05, 4, 2, 0.5, 501)],
)
def test_fastsac_presets_are_the_published_settings(
    name: str, envs: int, gamma: float, tau: float, updates: int, delay: int, ratio: float, atoms: int
) -> None:
    sac = preset(name).sac
    net = sac.network
    assert (sac.num_envs, sac.gamma, sac.tau) == (envs, gamma, tau)
    assert (sac.updates_per_step, sac.policy_delay, sac.target_entropy_ratio) == (updates, delay, ratio)
    assert (sac.buffer_size, sac.learning_starts, sac.batch_size) == (1024 * envs, 10 * envs, 8192)
    assert (net.critic_head, net.num_atoms, net.v_min, net.v_max) == (CriticHead.c51, atoms, -20.0, 20.0)
    assert (net.actor_hidden, net.critic_hidden) == ([512, 256, 128], [768, 384, 192])
    assert (net.norm, net.activation, net.zero_init_heads) == (NetworkNorm.layernorm, "silu", True)
    assert (net.log_std_mode, net.log_std_min, net.log_std_max) == (LogStdMode.tanh, -5.0, 0.0)
    assert (sac.beta1, sac.beta2, sac.weight_decay, sac.actor_lr) == (0.9, 0.95, 1e-3, 3e-4)
    assert (sac.target_reduce, sac.actor_reduce) == (TargetReduce.own, ActorReduce.mean)
    assert (sac.alpha_init, sac.alpha_on, sac.warmup) == (1e-3, AlphaOn.next, Warmup.policy)
    assert sac.obs_norm and sac.obs_norm_eps == 1e-2 and sac.amp and sac.compile and sac.max_grad_norm == 0.0


@pytest.mark.parametrize("name", ["sac", "fastsac", "fastsac_loco", "fastsac_wbt", "fastsac_reach", "sac_reach"])
def test_every_sac_preset_can_be_built(name: str) -> None:
    cfg = preset(name).sac
    cfg.compile = False
    assert SAC(cfg, SPACE, 7).networks.actor.head.out_features == 14


def test_the_atoms_of_the_reach_preset_hold_the_returns_of_reaching_and_tell_them_apart() -> None:
    """From a random policy, which is what learning begins with, to the expert, which is where it ends."""
    sac = preset("fastsac_reach").sac
    net = sac.network
    spacing = (net.v_max - net.v_min) / (net.num_atoms - 1)
    env, g = ArmReach(200, random_phase=False), torch.Generator().manual_seed(0)
    for policy in (lambda obs: torch.rand(200, 7, generator=g) * 2 - 1, expert_actions):
        obs, rewards = env.reset(3), []
        for _ in range(HORIZON):
            step = env.step(policy(obs))
            obs, rewards = step.observation, [*rewards, step.reward * sac.reward_scale]
        returns, seen = torch.zeros(200), []
        for reward in reversed(rewards):
            returns = reward + sac.gamma * returns
            seen.append(returns)
        values = torch.cat(seen[30:])  # those of which the discount has forgotten the end
        outside = (values < net.v_min) | (values > net.v_max)  # a few of a random arm that points away from the target
        assert float(outside.float().mean()) < MAX_EDGE_MASS / 2
        assert float(values.std()) > MIN_SPREAD * spacing


def test_the_diffusion_preset_is_a_transformer_of_four_blocks_of_128_and_ten_steps() -> None:
    cfg = preset("dit").diffusion
    policy = DiffusionPolicy(cfg, SPACE, 7)
    assert (len(policy.networks.actor.blocks), policy.networks.actor.width, cfg.denoising_steps) == (4, 128, 10)
    assert cfg.learning_starts == 64 and cfg.report_episodes == 10
    assert preset("dit").arm.save_every_episodes == preset("dit").rl.save_every_episodes == 10
