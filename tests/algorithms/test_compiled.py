"""CUDA graphs: refused where they cannot be, and equal to eager mode where they can."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl.algorithms.ppo import PPO, SingleProcess, make_optimizer
from rl.algorithms.ppo_rollout import RolloutActor
from rl.algorithms.sac import SAC
from rl.config import CompileMode, SACConfig, SACNetworkConfig
from rl.data.replay import ReplayBatch
from rl.envs.arm_reach import ArmReach
from rl.models.actor_critic import ActorCritic
from tests.helpers.ppo_learner import Learner, WalkEnv, preset

SPACE = gym.spaces.Box(-np.inf, np.inf, (5,), np.float32)
GRAPHS = ("compile=true", "compile_mode=cuda_graphs")
on_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def sac(device: str, **changes: object) -> SAC:
    torch.manual_seed(0)
    cfg = SACConfig(network=SACNetworkConfig(actor_hidden=[16, 16], critic_hidden=[16, 16]), **changes)  # type: ignore[arg-type]
    return SAC(cfg, SPACE, 2, device=device, generator=torch.Generator(device).manual_seed(0))


def test_cuda_graphs_without_a_gpu_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ppo\.compile_mode=cuda_graphs needs a GPU, this is a cpu run; use kernels"):
        Learner.make(preset("rsl_rl", *GRAPHS), WalkEnv(4))
    with pytest.raises(ValueError, match=r"sac\.compile_mode=cuda_graphs needs a GPU"):
        sac("cpu", compile=True, compile_mode=CompileMode.cuda_graphs)


def test_the_mode_counts_only_where_something_is_compiled() -> None:
    assert Learner.make(preset("rsl_rl", "compile_mode=cuda_graphs"), WalkEnv(4)).ppo._loss is not None
    assert sac("cpu", compile_mode=CompileMode.cuda_graphs)._losses[0] is not None


@pytest.mark.gpu
@on_gpu
def test_fifty_sac_updates_by_cuda_graphs_are_those_of_eager_mode() -> None:
    eager = sac("cuda", policy_delay=2)
    graphs = sac("cuda", policy_delay=2, compile=True, compile_mode=CompileMode.cuda_graphs)
    for i in range(50):
        g = torch.Generator("cuda").manual_seed(i)
        x, y, r, d = (torch.randn(32, n, generator=g, device="cuda") for n in (5, 5, 1, 2))
        batch = ReplayBatch(x, d.tanh(), r[:, 0], torch.full_like(r[:, 0], 0.99), y)
        a, b = eager.update(batch), graphs.update(batch)
        assert {k: v.item() for k, v in b.items()} == pytest.approx(
            {k: v.item() for k, v in a.items()}, rel=1e-2, abs=1e-3
        )
    ours, theirs = (s.networks.state_dict() for s in (eager, graphs))
    for k in ours:
        torch.testing.assert_close(ours[k], theirs[k], atol=1e-3, rtol=1e-2, msg=k)


@pytest.mark.gpu
@on_gpu
def test_five_ppo_updates_by_cuda_graphs_are_those_of_eager_mode() -> None:
    trained = []
    for settings in ((), GRAPHS):
        torch.manual_seed(0)
        cfg, env = preset("rsl_rl", "n_steps=16", *settings), ArmReach(64, "cuda", seed=0)
        policy = ActorCritic(env.observation_space, env.action_space, cfg.network).cuda()
        g, one = torch.Generator("cuda").manual_seed(0), SingleProcess()
        actor = RolloutActor(cfg, policy, env.observation_space, env.action_space, 64, env.device, g)
        ppo = PPO(cfg, policy, policy, make_optimizer(cfg, policy.parameters()), one, g)
        actor.start(env.reset())
        for _ in range(5):
            while not actor.storage.full:
                actor.record(env.step(actor.act(one.autocast())))
            ppo.update(actor.finish(one.total, one.autocast()), 0.0)
            actor.end_update(one.total)
        trained.append(torch.cat([p.detach().flatten() for p in policy.parameters()]))
    torch.testing.assert_close(trained[0], trained[1], atol=5e-3, rtol=5e-2)
