"""PPO on two ranks, for test_on_policy_phase."""

from copy import deepcopy
from typing import Any

import torch

from rl.algorithms.ppo import PPO, SingleProcess, make_optimizer
from rl.algorithms.ppo_rollout import Batch
from rl.config import CONFIG_DIR, load
from rl.models.actor_critic import ActorCritic
from rl.training.on_policy_phase import OnPolicyPhase
from rl.training.parallel_utils import ParallelContext, parameter_hash
from tests.helpers.ppo_learner import WalkEnv


def one_update(world: ParallelContext) -> dict[str, Any]:
    """Two iterations of a phase; the second update repeated in one process over the rows of both ranks."""
    small = ["n_steps=8", "network.hidden=[8,8]", "n_epochs=3", "minibatches=contiguous", "minibatch_size=0"]
    cfg = load(CONFIG_DIR / "algo" / "ppo_reach.yaml", [f"ppo.{o}" for o in small])
    env = WalkEnv(4, next_step=True)
    phase = OnPolicyPhase(cfg, env, world, total=1000)
    before = parameter_hash(phase.policy)
    phase.collect(0)
    phase.update(0.0)
    line = phase.collect(64)
    assert phase._batch is not None
    alone = _alone(phase, world)
    phase.update(64.0)
    ours = torch.cat([p.detach().flatten() for p in phase.policy.parameters()])
    return {
        "before": before, "hash": parameter_hash(phase.policy), "norm": parameter_hash(phase.actor.observation_norm),  # type: ignore[arg-type]
        "sent": float(torch.stack(env.sent).sum()), "gap": float((ours - alone).abs().max()), "line": line,
    }  # fmt: skip


def _alone(phase: OnPolicyPhase, world: ParallelContext) -> torch.Tensor:
    """Parameters after one process has trained on the rows of both ranks with the same settings."""
    cfg, policy = phase.cfg.ppo, phase.policy
    copy = ActorCritic(phase.env.observation_space, phase.env.action_space, cfg.network)
    copy.load_state_dict(policy.state_dict())
    optimizer = make_optimizer(cfg, copy.parameters())
    optimizer.load_state_dict(deepcopy(phase.ppo.optimizer.state_dict()))  # else both share the moments
    parts = world.gather_objects(phase._batch)

    def both(name: str) -> Any:
        found = [getattr(p, name) for p in parts]
        if name == "weights":
            found = [torch.ones_like(p.logp) if w is None else w for p, w in zip(parts, found, strict=True)]
        return found[0] if found[0] is None or name == "scale" else torch.cat(found, 1)

    batch = Batch(**{name: both(name) for name in Batch.__dataclass_fields__})
    PPO(cfg, copy, copy, optimizer, SingleProcess(), torch.Generator()).update(batch, 64 / 1000)
    return torch.cat([p.detach().flatten() for p in copy.parameters()])
