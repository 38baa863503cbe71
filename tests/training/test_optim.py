"""Optimizer groups, the schedule in our own units, and the step that never uses a bad gradient."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from f1_vla.builders import build_policy
from rl.config import MixedPrecision, TrainingConfig, load_model
from rl.training.errors import NumericalError
from rl.training.optim import guarded_step, setup_optimizer, setup_scheduler
from rl.training.parallel_utils import ParallelContext
from tests.helpers.half_on_cpu import half_group


def _optimizer(lr: float = 1.0) -> torch.optim.AdamW:
    return setup_optimizer(nn.Linear(2, 2), lr, 0.1)


# --- groups ----------------------------------------------------------------------------------------------------------


def test_matrices_decay_vectors_do_not_and_memory_gates_have_their_own_rate() -> None:
    policy = build_policy(load_model("debug_test"))
    optimizer = setup_optimizer(policy, 1e-3, 0.2, memory_lr_scale=10.0)
    groups = {(g["weight_decay"], g["scale"]): {id(p) for p in g["params"]} for g in optimizer.param_groups}
    assert set(groups) == {(0.2, 1.0), (0.0, 1.0), (0.0, 10.0)}
    gates = {id(policy.memory.memory_gate), id(policy.memory.out_proj.weight)}
    for p in policy.parameters():
        key = (0.0, 10.0) if id(p) in gates else (0.2, 1.0) if p.dim() >= 2 else (0.0, 1.0)
        assert (id(p) in groups[key]) == p.requires_grad
    assert sum(len(g) for g in groups.values()) == sum(p.requires_grad for p in policy.parameters())


def test_nothing_to_train_is_an_error() -> None:
    with pytest.raises(ValueError, match="no parameter is trainable; check the freeze block"):
        setup_optimizer(nn.Linear(2, 2).requires_grad_(False), 1e-3, 0.0)


# --- schedule --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("progress", "update", "expected"),
    [
        (0, 0, 1.0 / 4),  # first of four warm-up updates
        (0, 1, 2.0 / 4),
        (0, 3, 1.0),
        (5, 99, 0.55),  # half way between 1 and 0.1
        (2.5, 99, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2),
        (5, 1, 0.55 / 2),
        (10, 99, 0.1),
        (25, 99, 0.1),  # stays at the end
        (-1, 99, 1.0),
    ],
)
def test_cosine_rate_by_hand(progress: float, update: int, expected: float) -> None:
    schedule = setup_scheduler(_optimizer(), "cosine", T_max=10, eta_min=0.1, warmup=4)
    assert schedule.lr_at(progress, update) == pytest.approx(expected)


def test_constant_rate_only_warms_up() -> None:
    schedule = setup_scheduler(_optimizer(), "constant", T_max=10, eta_min=0.0, warmup=2)
    assert [schedule.lr_at(p, u) for p, u in [(0, 0), (1, 1), (9, 5), (50, 50)]] == [0.5, 1.0, 1.0, 1.0]


def test_the_rate_at_an_episode_does_not_depend_on_how_many_processes_shared_the_work() -> None:
    # 24 episodes with one update each: one process takes 24 iterations, four processes take 6 of four episodes.
    schedule = setup_scheduler(_optimizer(), "cosine", T_max=24, eta_min=0.0, warmup=1)
    alone = {episode: schedule.lr_at(episode, update) for update, episode in enumerate(range(24))}
    for update, episode in enumerate(range(0, 24, 4)):
        assert schedule.lr_at(episode, update) == alone[episode]


def test_every_group_gets_the_rate_times_its_scale() -> None:
    policy = build_policy(load_model("debug_test"))
    optimizer = setup_optimizer(policy, 0.5, 0.0, memory_lr_scale=10.0)
    schedule = setup_scheduler(optimizer, "cosine", T_max=8, eta_min=0.0)
    assert schedule.set(4, 0) == pytest.approx(0.25)
    assert sorted(g["lr"] for g in optimizer.param_groups) == pytest.approx([0.25, 0.25, 2.5])


def test_impossible_schedules_are_refused() -> None:
    with pytest.raises(ValueError, match="scheduler_type 'linear'; use cosine or constant"):
        setup_scheduler(_optimizer(), "linear", 10, 0.0)
    with pytest.raises(ValueError, match=r"min_learning_rate 2\.0 lies above training\.learning_rate 1\.0"):
        setup_scheduler(_optimizer(), "cosine", 10, 2.0)


# --- the step --------------------------------------------------------------------------------------------------------


def test_a_step_clips_and_returns_the_norm_before_clipping(world: ParallelContext) -> None:
    p = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([p], lr=1.0)
    loss = (p * torch.tensor([3.0, 4.0])).sum()
    loss.backward()
    assert guarded_step(world, optimizer, [p], loss, 1.0, "step") == pytest.approx(5.0)
    torch.testing.assert_close(p.detach(), torch.tensor([-0.6, -0.8]), atol=1e-5, rtol=0)
    assert p.grad is None


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_a_bad_number_leaves_parameters_and_optimizer_untouched(world: ParallelContext, bad: str) -> None:
    p = nn.Parameter(torch.tensor([1.0, 0.0]))
    optimizer = torch.optim.AdamW([p], lr=0.1)
    # the root has an infinite slope at 0, but a finite value
    loss = p.sum() * float("nan") if bad == "loss" else p.sqrt().sum()
    loss.backward()
    with pytest.raises(NumericalError, match=r"update 7: loss or gradient is not finite .*--auto_resume"):
        guarded_step(world, optimizer, [p], loss, 1.0, "update 7")
    assert p.tolist() == [1.0, 0.0] and not optimizer.state


# --- the step under fp16 ---------------------------------------------------------------------------------------------


@pytest.fixture
def half() -> Iterator[Callable[..., tuple[ParallelContext, Any, nn.Parameter, nn.Parameter]]]:
    """A group, its optimizer and two parameters, of which the second is clipped apart; for a scale of the loss."""
    groups: list[ParallelContext] = []

    def make(scale: float) -> tuple[ParallelContext, Any, nn.Parameter, nn.Parameter]:
        groups.append(half_group(TrainingConfig(device="cpu", mixed_precision=MixedPrecision.bf16), init_scale=scale))
        model = nn.ParameterList([nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))])
        model, optimizer = groups[0].accelerator.prepare(model, torch.optim.SGD(model.parameters(), lr=1.0))
        return groups[0], optimizer, model[0], model[1]

    yield make
    for group in groups:
        group.close()


def test_both_norms_of_a_scaled_loss_are_those_without_its_scale(half) -> None:
    ctx, optimizer, p, q = half(1024.0)
    loss = (p * torch.tensor([3.0, 4.0])).sum() + (q * torch.tensor([0.0, 0.5])).sum()
    ctx.backward(loss)
    assert guarded_step(ctx, optimizer, [p], loss, 1.0, "step", [q]) == pytest.approx(5.0)
    torch.testing.assert_close(p.detach(), torch.tensor([-0.6, -0.8]), atol=1e-5, rtol=0)
    torch.testing.assert_close(q.detach(), torch.tensor([0.0, -0.5]), atol=1e-5, rtol=0)  # below the largest norm


@pytest.mark.parametrize("where", ["first", "apart"])
def test_an_overflow_of_the_scaled_loss_leaves_the_step_out_and_lowers_the_scale(half, where: str) -> None:
    ctx, optimizer, p, q = half(2.0**120)
    large, small = (1e6, 0.0) if where == "first" else (0.0, 1e6)
    for _ in range(2):
        loss = p.sum() * large + q.sum() * small
        ctx.backward(loss)
        before = ctx.precision_state()["scale"]
        assert guarded_step(ctx, optimizer, [p], loss, 1.0, "step", [q]) == 0.0
        assert ctx.precision_state()["scale"] == before / 2
    assert p.tolist() == q.tolist() == [0.0, 0.0]
    assert p.grad is None and q.grad is None


def test_a_gradient_that_is_infinite_at_a_scale_of_one_is_an_error(half) -> None:
    ctx, optimizer, p, q = half(1.0)
    loss = p.sqrt().sum() + q.sum()
    ctx.backward(loss)
    with pytest.raises(NumericalError, match="loss or gradient is not finite"):
        guarded_step(ctx, optimizer, [p], loss, 1.0, "step", [q])
    assert p.tolist() == q.tolist() == [0.0, 0.0]
