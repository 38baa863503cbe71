"""The preset rsl_rl against rsl_rl itself: the same rollouts give the same returns, losses and parameters."""

from typing import Any

import pytest
import torch
from rsl_rl import algorithms as rsl_rl
from rsl_rl.models import MLPModel
from rsl_rl.storage import RolloutStorage
from tensordict import TensorDict
from torch import Tensor, nn

from rl.types import VectorStep
from tests.helpers.ppo_learner import Learner, WalkEnv, preset

E = 8


def linears(module: nn.Module) -> list[nn.Linear]:
    return [m for m in module.modules() if isinstance(m, nn.Linear)]


class Peer:
    """rsl_rl's PPO with the weights of ours; sees the steps that ours recorded."""

    def __init__(self, learner: Learner, normalize: bool) -> None:
        cfg, policy = learner.ppo.cfg, learner.policy
        obs = self.observations(torch.zeros(E, 3))
        groups = {"actor": ["policy"], "critic": ["policy"]}
        hidden = {"hidden_dims": list(cfg.network.hidden), "activation": "elu", "obs_normalization": normalize}
        normal = {
            "class_name": "rsl_rl.modules.distribution:GaussianDistribution",
            "init_std": 1.0,
            "std_type": "scalar",
        }
        self.actor = MLPModel(obs, groups, "actor", 2, distribution_cfg=normal, **hidden)
        self.critic = MLPModel(obs, groups, "critic", 1, **hidden)
        ours = (
            [*linears(policy.actor_body), policy.actor_head],
            [*linears(policy.critic_body or policy), policy.critic_head],
        )
        for theirs, own in zip((self.actor, self.critic), ours, strict=True):
            for a, b in zip(linears(theirs), own, strict=True):
                a.load_state_dict(b.state_dict())
        self.algorithm = rsl_rl.PPO(
            self.actor, self.critic, RolloutStorage("rl", E, cfg.n_steps, obs, (2,)),
            num_learning_epochs=cfg.n_epochs, num_mini_batches=cfg.num_minibatches, entropy_coef=cfg.entropy_coef,
            learning_rate=cfg.learning_rate,
        )  # fmt: skip

    @staticmethod
    def observations(x: Tensor) -> TensorDict:
        return TensorDict({"policy": x}, batch_size=[E])

    @torch.no_grad()
    def replay(self, rows: list[tuple[Tensor, Tensor, VectorStep]], gamma: float) -> None:
        """What its runner does with each step, with our actions."""
        for x, actions, step in rows:
            self.algorithm.act(self.observations(x))
            t = self.algorithm.transition
            t.actions, t.actions_log_prob = actions, self.actor.get_output_log_prob(actions)
            self.algorithm.process_env_step(
                self.observations(step.observation), step.reward, (step.terminated | step.truncated).long(),  # type: ignore[arg-type]
                {"time_outs": step.truncated},
            )  # fmt: skip
        self.algorithm.compute_returns(self.observations(rows[-1][2].observation))  # type: ignore[arg-type]

    def parameters(self) -> list[Tensor]:
        """In the order of ours."""
        std = [p for n, p in self.actor.named_parameters() if n.startswith("distribution")]
        order = [*std, *(p for m in linears(self.actor) for p in m.parameters())]
        return [*order, *(p for m in linears(self.critic) for p in m.parameters())]


def our_parameters(learner: Learner) -> list[Tensor]:
    p = learner.policy
    assert p.critic_body is not None
    parts = [p.distribution, p.actor_body, p.actor_head, p.critic_body, p.critic_head]
    return [q for part in parts for q in part.parameters()]


@pytest.mark.parametrize("normalize", [False, True])
def test_three_iterations_equal_rsl_rl(normalize: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    norm = "frozen" if normalize else "none"
    cfg = preset("rsl_rl", "n_steps=12", "network.hidden=[16,16]", f"observation_norm={norm}")
    learner = Learner.make(cfg, WalkEnv(E))
    peer = Peer(learner, normalize)
    for iteration in range(3):
        rows = []
        while not learner.actor.storage.full:
            x = learner.env.x
            sent = learner.actor.act(learner.ppo.parallel.autocast())
            step = learner.env.step(sent)
            rows.append((x, sent, step))
            learner.actor.record(step)
        assert any(bool(r[2].terminated.any()) for r in rows) and any(bool(r[2].truncated.any()) for r in rows)
        batch = learner.actor.finish(learner.ppo.parallel.total, learner.ppo.parallel.autocast())
        peer.replay(rows, cfg.gamma)
        theirs = peer.algorithm.storage
        close = {"rtol": 1e-4, "atol": 1e-5}
        torch.testing.assert_close(batch.returns, theirs.returns[..., 0], **close)
        torch.testing.assert_close(batch.advantages, theirs.advantages[..., 0], **close)
        torch.testing.assert_close(batch.logp, theirs.actions_log_prob[..., 0], **close)
        torch.testing.assert_close(batch.values, theirs.values[..., 0], **close)

        order = torch.randperm(
            E * cfg.n_steps, generator=torch.Generator().set_state(learner.ppo.generator.get_state())
        )
        found = learner.ppo.update(batch, 0.0)
        learner.actor.end_update(learner.ppo.parallel.total)
        with monkeypatch.context() as patch:
            patch.setattr(torch, "randperm", lambda *a, order=order, **k: order)
            expected: dict[str, Any] = peer.algorithm.update()
        assert found["value_loss"] == pytest.approx(expected["value"], rel=1e-4)
        assert found["policy_loss"] == pytest.approx(expected["surrogate"], rel=1e-3, abs=1e-5)
        assert found["entropy"] == pytest.approx(expected["entropy"], rel=1e-5)
        assert found["learning_rate"] == pytest.approx(peer.algorithm.learning_rate), iteration
        for own, other in zip(our_parameters(learner), peer.parameters(), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-3, atol=2e-5)
    assert found["learning_rate"] != cfg.learning_rate  # the schedule moved
