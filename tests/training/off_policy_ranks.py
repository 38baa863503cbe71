"""What two ranks of SAC do together, for test_off_policy_ranks."""

from typing import Any

import torch

from rl.config import Config, SACNetworkConfig
from rl.training.off_policy_phase import OffPolicyPhase
from rl.training.parallel_utils import ParallelContext, parameter_hash
from tests.training.point_env import PointEnv


def config(total_batch: int) -> Config:
    cfg = Config()
    cfg.sac.network = SACNetworkConfig(actor_hidden=[8], critic_hidden=[8])
    cfg.sac.batch_size, cfg.sac.buffer_size, cfg.sac.learning_starts = total_batch, 400, 16
    cfg.sac.obs_norm = True
    cfg.diffusion.batch_size = cfg.diffusion.actor_batch_size = total_batch
    cfg.diffusion.buffer_size, cfg.diffusion.learning_starts = 400, 16
    cfg.diffusion.network.width, cfg.diffusion.network.num_blocks = 16, 1
    cfg.diffusion.train_samples = cfg.diffusion.act_samples = 2
    return cfg


def train(world: ParallelContext) -> dict[str, Any]:
    """A few rounds of SAC and of the diffusion policy; both ranks must end with the same parameters."""
    out: dict[str, Any] = {}
    for name in ("sac", "dit"):
        phase = OffPolicyPhase(config(16), PointEnv(4), world, 400, name=name)
        phase.boundary(0)  # equal at the start
        steps = 0
        for step in range(0, 10 * phase.units_per_iteration, phase.units_per_iteration):
            steps += int(phase.collect(step)["env_steps"])
            if phase.updates_per_iteration:
                phase.update(step)
        out[name] = {
            "hash": parameter_hash(phase.learner.networks), "steps": steps, "units": phase.units_per_iteration,
            "own": phase.replay.sample(4).action.sum().item(),
        }  # fmt: skip
    return out


def gradients(world: ParallelContext) -> dict[str, Any]:
    """One update on this rank's half of a batch that is the same everywhere; parameters after it."""
    torch.manual_seed(0)
    phase = OffPolicyPhase(config(16), PointEnv(4), world, 400)
    from tests.algorithms.test_sac import batch as make_batch

    whole = make_batch(16)
    half = slice(8 * world.rank, 8 * world.rank + 8) if world.world_size == 2 else slice(None)
    noises = iter([torch.randn(16, 2, generator=torch.Generator().manual_seed(s)) for s in (1, 2)])
    learner: Any = phase.learner
    learner._noise = lambda rows: next(noises)[half]
    part = {k: v[half] for k, v in vars(whole).items()}
    part["observation"], part["next_observation"] = part["observation"][:, :4], part["next_observation"][:, :4]
    learner.update(type(whole)(**part))
    return {k: v.flatten().tolist() for k, v in learner.networks.named_parameters()}
