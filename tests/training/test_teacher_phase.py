"""Parts of a teacher update that a whole run does not show: masks of the views, accumulation, refusals."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rl.config import load, load_model
from rl.data.episode_buffer import WindowIndex
from rl.training import teacher_phase
from rl.training.model_setup import build_world_model
from rl.training.parallel_utils import ParallelContext
from rl.training.teacher_phase import TeacherPhase
from rl.types import EpisodeRecord

Build = Callable[..., TeacherPhase]


@pytest.fixture
def build(tokenizer_path: Path) -> Iterator[Build]:
    """A phase with an empty buffer; keyword arguments are settings of `training` and `teacher`."""
    made: list[tuple[TeacherPhase, ParallelContext]] = []

    def make(overrides: list[str], arch: list[str] | None = None) -> TeacherPhase:
        config = load(
            overrides=[
                f"model.tokenizer_path={tokenizer_path}", "model.config_file=debug_test", "training.device=cpu",
                "training.num_threads=1", "training.steps_per_episode=6", "training.bptt_length=3",
                "training.batch_size=2", "teacher.burn_in=1", "environment.num_objects=1", *overrides,
            ]
        )  # fmt: skip
        ctx = ParallelContext.create(config.training)
        architecture = load_model("debug_test", ["world_model.mask_sample_prob=0.0", *(arch or [])])
        model = build_world_model(config, architecture, config.teacher.freeze, ctx)
        made.append((TeacherPhase(config, model, ctx), ctx))
        return made[-1][0]

    yield make
    for phase, ctx in made:
        phase.close()
        ctx.close()


def test_the_share_of_episodes_that_face_the_screen_reaches_the_actions(build: Build) -> None:
    phase = build(["teacher.screen_share=0.5", "environment.domain_randomization.noisy_screen=true"])
    first = [phase.act({}, episode, 0)[0] for episode in (0, 1)]
    assert len(first[0].nonzero()[0]) > 2 and first[1].nonzero()[0].tolist() == [0]  # random; towards the screen


def _batches(phase: TeacherPhase, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every batch that the phase makes from now on."""
    seen: list[Any] = []
    make = phase.data.batch

    def recorded(*args: Any) -> Any:
        seen.append(make(*args))
        return seen[-1]

    monkeypatch.setattr(phase.data, "batch", recorded)
    return seen


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_dropped_views_hide_the_head_and_dropped_actions_the_current_slot(
    build: Build, monkeypatch: pytest.MonkeyPatch, probability: float
) -> None:
    phase = build([f"teacher.view_dropout={probability}", f"teacher.action_dropout={1 - probability}"])
    batches = _batches(phase, monkeypatch)
    phase.collect(0)
    unseen = batches.pop()  # measured with everything in view
    assert unseen.camera_mask.all() and unseen.action_known.all()
    phase.update(0.0)
    (batch,) = batches
    head, wrist = batch.camera_mask.unbind(-1)
    assert (head == (probability == 0.0)).all() and wrist.all()
    assert batch.action_known[..., :-1].all() and (batch.action_known[..., -1] == (probability == 1.0)).all()


def test_dropout_rates_are_the_configured_ones(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    phase = build(["teacher.view_dropout=0.5", "teacher.action_dropout=0.3", "training.batch_size=500"])
    batches = _batches(phase, monkeypatch)
    phase.collect(0)
    with torch.no_grad():
        phase._forward(phase._sample())
    batch = batches[-1]
    assert (batch.camera_mask[:, :1, 0] == batch.camera_mask[:, :, 0]).all()  # one view for a whole window
    assert abs(float(batch.camera_mask[:, 0, 0].float().mean()) - 0.5) < 0.1
    assert abs(float((~batch.action_known[..., -1]).float().mean()) - 0.3) < 0.05


def test_two_micro_batches_of_one_give_the_gradient_of_one_batch_of_two(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = ["teacher.view_dropout=0", "teacher.action_dropout=0"]
    rows = [(0, 1), (0, 2)]
    found: list[tuple[float, list[torch.Tensor]]] = []

    def keep(ctx: Any, optimizer: Any, parameters: list[torch.nn.Parameter], loss: Any, *rest: Any) -> float:
        found[-1][1].extend(p.grad.clone() for p in parameters)
        optimizer.zero_grad()
        return 0.0

    monkeypatch.setattr(teacher_phase, "guarded_step", keep)
    for settings, groups in [
        (["training.batch_size=2"], [rows]),
        (["training.batch_size=1", "training.gradient_accumulation_steps=2"], [[rows[0]], [rows[1]]]),
    ]:
        phase = build([*quiet, *settings])
        pending = list(groups)

        def sample(pending: list = pending) -> WindowIndex:
            episodes, starts = zip(*pending.pop(0), strict=True)
            return WindowIndex(list(episodes), [s - 1 for s in starts], 4, 1)

        monkeypatch.setattr(phase, "_sample", sample)
        phase.collect(0)
        found.append((0.0, []))
        line = phase.update(0.0)
        found[-1] = (line["loss"], found[-1][1])
        phase.ctx.close()
    (loss_a, whole), (loss_b, parts) = found
    assert loss_a == pytest.approx(loss_b, abs=1e-5) and len(whole) == len(parts) > 0
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_stored_memory_states_are_those_of_the_pass_over_the_unseen_episode(build: Build) -> None:
    phase = build([])
    phase.collect(0)
    windows = phase.buffer.gather(WindowIndex([0], [0], 6, 0))
    batch = phase.data.batch(windows, torch.ones(1, dtype=torch.bool))
    policy = phase.model.policy.eval()
    h = policy.initial_memory_state(1)
    for t in range(6):
        stored = phase.buffer.episodes[0].memory_TMH[t].float()
        torch.testing.assert_close(stored, h[:, 0], atol=2e-3, rtol=0)  # half precision
        h = policy(batch.window(t, t + 1), mode="memory_only", initial_memory_state=h)["memory_state"].detach()


def test_one_step_windows_need_no_memory_gradient_and_no_burn_in(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    phase = build(["training.sequential_training=false"])
    batches = _batches(phase, monkeypatch)
    phase.collect(0)
    phase.update(0.0)
    assert (batches[-1].size, batches[-1].steps) == (2 * 3, 1)  # as many steps as two windows of three


def test_the_state_statistics_are_those_of_all_episodes_so_far(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    phase = build([])
    records: list[EpisodeRecord] = []
    collect = phase.collector.collect_steps
    monkeypatch.setattr(phase.collector, "collect_steps", lambda *a: [records.append(r) or r for r in collect(*a)])
    phase.collect(0)
    phase.collect(1)
    states = torch.cat([torch.from_numpy(r.states) for r in records]).double()
    assert len(states) == 2 * 7
    torch.testing.assert_close(phase.states.mean, states.mean(0), atol=1e-6, rtol=0)
    real = phase.states.mask
    torch.testing.assert_close(
        phase.states.std[real], states.std(0, unbiased=False).clamp_min(1e-3)[real], atol=1e-6, rtol=0
    )


def test_a_buffer_smaller_than_one_round_of_episodes_is_refused(build: Build) -> None:
    with pytest.raises(ValueError, match=r"teacher\.buffer_episodes is 1; .* need at least 2"):
        build(["teacher.buffer_episodes=1", "training.num_envs=2"])
