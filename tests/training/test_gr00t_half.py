"""GR00T held in float16 and trained by a scaled loss: gradients, overflows, stages, resuming. On a CPU.

The command itself refuses fp16 on a CPU; Accelerate, torch's scaler and autocast run there all the same.
`bash tests/run.sh gr00t` runs the same tests on LeRobot's N1.7, reduced in size, in its own environment.
"""

import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rl.algorithms.ppo_rollout import Batch
from rl.config import Config, load, load_model
from rl.training import gr00t_training
from rl.training.checkpoint import CheckpointManager
from rl.training.errors import NumericalError
from rl.training.loop import Loop
from rl.training.on_policy_phase import OnPolicyPhase
from rl.training.parallel_utils import ParallelContext
from rl.training.preemption import StopFlag
from rl.training.run_dir import ResumeMode, RunDir
from tests.helpers.half_on_cpu import half_group
from tests.training.point_env import PointEnv

BACKEND = os.environ.get("GR00T_BACKEND", "stub")
STEPS = 4  # of the optimizer in an update: two epochs of two minibatches
Made = Callable[..., OnPolicyPhase]


def config(*overrides: str) -> Config:
    small = [f"gr00t.backend={BACKEND}", "ppo.num_envs=4", "ppo.n_steps=4", "ppo.n_epochs=2", "ppo.minibatch_size=8",
             "training.device=cpu", "training.num_threads=1", "gr00t.stages=[projector,dit]",
             "gr00t.unfreeze_at=[0,0.5]"]  # fmt: skip
    return load(None, [*small, *overrides])


@pytest.fixture
def half() -> Iterator[Made]:
    """A phase in float16, and its group, for some of GradScaler's arguments."""
    groups: list[ParallelContext] = []

    def make(total: int = 4, overrides: tuple[str, ...] = (), **scaler: Any) -> OnPolicyPhase:
        for group in groups:
            group.close()
        cfg = config("gr00t.dtype=float16", "training.mixed_precision=bf16", *overrides)
        groups[:] = [half_group(cfg.training, **scaler)]
        return OnPolicyPhase(cfg, PointEnv(4), groups[0], total, unit="iteration")

    yield make
    for group in groups:
        group.close()


def scale(p: OnPolicyPhase) -> float:
    found: float = p.ctx.precision_state()["scale"]
    return found


def trained(p: OnPolicyPhase) -> list[Tensor]:
    return [x.detach().clone() for x in p.policy.parameters() if x.requires_grad]


def test_gradients_of_a_scaled_loss_are_those_of_float32(half: Made) -> None:
    """An update's numbers against those in float32; without unscaling the norm would be 65,536 times as large."""
    p = half()
    q = OnPolicyPhase(config(), PointEnv(4), p.ctx, 4, unit="iteration")  # in one process and float32: by itself
    assert {x.dtype for x in p.policy.parameters()} == {torch.float16, torch.float32}
    assert {x.dtype for x in p.policy.parameters() if x.requires_grad} == {torch.float32}
    lines = []
    for each in (p, q):
        before = trained(each)
        each.collect(0)
        lines.append(each.update(1.0))
        assert all(not torch.equal(a, b) for a, b in zip(before, trained(each), strict=True) if a.numel() > 100)
    found, expected = lines
    assert scale(p) == 65536
    assert found["skipped_steps"] == 0 and "skipped_steps" not in expected
    assert found["optimizer_steps"] == expected["optimizer_steps"] == STEPS
    for name in ("grad_norm", "value_loss", "entropy"):
        assert found[name] == pytest.approx(expected[name], rel=0.02)


def test_steps_whose_scale_is_too_large_change_nothing_until_it_has_fallen(half: Made) -> None:
    p = half(init_scale=2.0**100, backoff_factor=2.0**-24)
    before = trained(p)
    p.collect(0)
    line = p.update(1.0)
    assert (line["skipped_steps"], line["optimizer_steps"], line["grad_norm"]) == (STEPS, 0, 0)
    assert math.isfinite(line["policy_loss"]) and line["approx_kl"] == pytest.approx(0, abs=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(before, trained(p), strict=True))
    assert scale(p) == 2.0**4
    p.collect(1)
    line = p.update(1.5)
    assert (line["skipped_steps"], line["optimizer_steps"]) == (0, STEPS)
    assert 0 < line["grad_norm"] < 1e4
    assert all(torch.isfinite(x).all() for x in trained(p))
    assert not all(torch.equal(a, b) for a, b in zip(before, trained(p), strict=True))
    step = p.ppo.optimizer.state[p.policy.actor_parameters()[0]]["step"]
    assert int(step) == STEPS  # moments know nothing of the steps left out


def test_a_gradient_that_no_scale_makes_finite_ends_the_run(half: Made) -> None:
    """After two updates of 4 steps the scale has fallen from 256 to 1, and what is infinite there is so by itself."""
    p = half(init_scale=256.0)
    p.policy.actor_parameters()[0].register_hook(lambda gradient: gradient + math.inf)
    for i in range(2):
        p.collect(i)
        assert p.update(1.0)["skipped_steps"] == STEPS
    assert scale(p) == 1
    p.collect(2)
    before = trained(p)
    with pytest.raises(NumericalError, match="parameters are as before it"):
        p.update(1.0)
    assert all(torch.equal(a, b) for a, b in zip(before, trained(p), strict=True))


def test_a_loss_that_is_not_finite_ends_the_run_at_any_scale(half: Made) -> None:
    p = half()
    p.collect(0)
    batch: Any = p._batch
    batch.returns[0, 0] = math.nan
    with pytest.raises(NumericalError, match="parameters are as before it"):
        p.update(1.0)


def test_a_stage_begins_with_fresh_likelihoods_and_without_moments(half: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    p = half(overrides=("gr00t.lora_rank=2", "gr00t.warmup_updates=4"))
    assert p.stages is not None
    seen: list[Tensor] = []
    update = p.ppo.update

    def watched(batch: Batch, share: float) -> dict[str, float]:
        seen.append(batch.logp.clone())
        return update(batch, share)

    monkeypatch.setattr(p.ppo, "update", watched)
    groups = []
    for i in range(4):
        p.collect(i)
        batch: Any = p._batch
        right = gr00t_training.recomputed(p.policy, batch, 16).logp
        if i == 1:
            batch.logp += 1.0  # as of another network
        p.update(i + 1)
        assert torch.allclose(seen[i], right, atol=gr00t_training.LOGP_TOLERANCE["float16"])
        groups.append([(len(g["params"]), g["lr_scale"]) for g in p.ppo.optimizer.param_groups])
    assert [len(g) for g in groups] == [2, 3, 3, 3]
    assert [g[-1][1] for g in groups[1:]] == [0.25, 0.5, 0.75]
    newest, first = (p.ppo.optimizer.param_groups[i]["params"] for i in (2, 0))
    names = {id(x): n for n, x in p.policy.named_parameters()}
    assert newest and all(".lora_" in names[id(x)] and x.dtype is torch.float32 for x in newest)
    assert {int(p.ppo.optimizer.state[x]["step"]) for x in newest} == {3 * STEPS}
    assert {int(p.ppo.optimizer.state[x]["step"]) for x in first} == {4 * STEPS}


def test_a_resumed_run_has_the_scale_and_goes_on_as_the_straight_one(half: Made, tmp_path: Path) -> None:
    """The scale doubles every three steps here, so a fresh one would be another."""

    def run(name: str, iterations: int) -> OnPolicyPhase:
        p = half(overrides=("training.save_every=1",), init_scale=64.0, growth_interval=3)
        with RunDir.open(tmp_path / name, "teacher", p.cfg, load_model("debug_test"), p.ctx, ResumeMode.auto) as place:
            manager = CheckpointManager(place.path, 10, p.ctx)
            loop = Loop(p, p.cfg.training, iterations, p.ctx, place, manager, StopFlag(), False)
            saved = manager.load(place.resume_from) if place.resuming else None
            if saved is not None:
                loop.restore(saved)
            loop.run()
        return p

    whole = run("whole", 4)
    assert run("cut", 3).stages.state_dict()["stage"] == 2  # type: ignore[union-attr]
    cut = run("cut", 4)
    assert scale(whole) == scale(cut) == 64.0 * 2 ** (4 * STEPS // 3)
    assert whole.ctx is not cut.ctx
    assert all(torch.equal(a, b) for a, b in zip(whole.policy.parameters(), cut.policy.parameters(), strict=True))
