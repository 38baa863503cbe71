"""Phase 3 from the inside: whose rewards the explorer gets, what a rollback leaves behind, what the leash holds."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rl.config import LeashConfig
from rl.data.intrinsic import ReturnScale
from rl.training import cli
from rl.training.adversarial_phase import AdversarialPhase
from rl.training.explorer_player import Leash
from rl.training.parallel_utils import ParallelContext
from rl.training.reward_model import Scores
from rl.training.student_source import find_student
from rl.training.teacher_source import find_teacher
from rl.training.tensor_swap import put, taken
from rl.training.train_adversarial_rl import TEACHER_FLAG, build
from tests.training.adversarial_runs import flags


@pytest.fixture(scope="module")
def begun(
    teacher_with_heads: Path, student_run: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AdversarialPhase]:
    """A game whose first iteration is collected, and nothing trained."""
    settings = (
        "adversarial.held_out.every=1", "adversarial.reward_refresh_every=3", "adversarial.explorer_learning_rate=1e-3",
    )  # fmt: skip
    place = tmp_path_factory.mktemp("game")
    args = cli.parse("adversarial", flags(teacher_with_heads, student_run, place, 4, *settings))
    teacher = find_teacher(args.teacher, args.config, args.arch, TEACHER_FLAG)
    student = find_student(args.student, args.config, args.arch, teacher)
    ctx = ParallelContext.create(args.config.training)
    phase = build(args, ctx, teacher, student)
    phase.collect(0)
    yield phase
    phase.close()
    ctx.close()


@pytest.fixture
def game(begun: AdversarialPhase) -> Iterator[AdversarialPhase]:
    """`begun`, as it was, for every test."""
    parameters = begun.world_model.parameters
    own, scale = taken(parameters), begun.explorer.scale.state_dict()
    yield begun
    put(parameters, own)
    begun.explorer.refresh_rewards()
    begun.explorer.scale.load_state_dict(scale)


def _scores(game: AdversarialPhase) -> Scores:
    """What the explorer's newest episodes are paid for."""
    buffer = game.explorer.buffer
    return game.explorer.rewards.score(buffer, list(range(len(buffer))))


def _same(a: Scores, b: Scores) -> bool:
    return torch.equal(a.nll, b.nll) and torch.equal(a.uncertainty["disagreement"], b.uncertainty["disagreement"])


def _disturb(game: AdversarialPhase) -> None:
    """As if the world model had learned something."""
    g = torch.Generator().manual_seed(0)
    for p in game.world_model.parameters.values():
        p.data += 0.1 * torch.randn(p.shape, generator=g)


def _judged(game: AdversarialPhase, monkeypatch: pytest.MonkeyPatch, loss: float) -> dict[str, float]:
    """The end of an iteration in which no fresh copy is due and every suite has this loss."""
    line = {"held_out_random_loss": loss, "held_out_past_loss": loss}
    monkeypatch.setattr(game.held_out, "evaluate", lambda: dict(line))
    return game._settle()


def _copy_is_of(game: AdversarialPhase, weights: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(v, weights[n]) for n, v in game.explorer.slow.version.items())


def test_rewards_stay_those_of_the_copy_until_it_is_refreshed(game: AdversarialPhase) -> None:
    before = _scores(game)
    assert game.explorer.scale.count > 0
    _disturb(game)
    assert _same(_scores(game), before)
    game.explorer.refresh_rewards()
    buffer = game.explorer.buffer
    present = game.explorer.slow.inner.score(buffer, list(range(len(buffer))))
    assert _same(_scores(game), present) and not _same(present, before)


def test_the_statistics_of_the_reward_start_anew_with_every_copy(game: AdversarialPhase) -> None:
    scale = game.explorer.scale
    game.explorer.refresh_rewards()
    fresh = game.explorer.scale
    assert isinstance(fresh, ReturnScale) and fresh.count == 0 and fresh.names == scale.names
    assert (fresh.gamma, fresh.clip) == (scale.gamma, scale.clip)
    with pytest.raises(ValueError, match="no statistics yet"):
        fresh.std("disagreement")


def test_no_reward_comes_from_weights_that_were_rolled_back(
    game: AdversarialPhase, monkeypatch: pytest.MonkeyPatch
) -> None:
    game.world_model.judge(0.01)  # the present weights are good
    good = taken(game.world_model.parameters)
    _disturb(game)
    game.explorer.refresh_rewards()  # the copy was due before the examination
    assert not _copy_is_of(game, good)
    line = _judged(game, monkeypatch, 99.0)
    assert line["held_out_regressed"] == 1 and _copy_is_of(game, good) and game.explorer.scale.count == 0


def test_an_examination_that_is_passed_leaves_the_copy_alone(
    game: AdversarialPhase, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, count = dict(game.explorer.slow.version), game.explorer.scale.count
    _disturb(game)
    line = _judged(game, monkeypatch, 0.0)
    assert line["held_out_regressed"] == 0 and _copy_is_of(game, before)
    assert game.explorer.scale.count == count > 0


def test_a_tight_leash_keeps_the_explorer_nearer_to_phase_two_than_a_loose_one(game: AdversarialPhase) -> None:
    """The same episodes to begin with, the same draws, the same first weight."""
    explorer, reached = game.explorer, []
    start, optimizer = taken(dict(explorer.model.explorer.named_parameters())), explorer.model.optimizer.state_dict()
    for target in (1e-3, 1e3):
        put(dict(explorer.model.explorer.named_parameters()), start)
        explorer.model.optimizer.load_state_dict(optimizer)
        explorer.leash, explorer.updates = Leash(LeashConfig(target=target, weight=1.0, max_weight=1e4)), 0
        weights = []
        for round_index in range(4):
            explorer.collector.rebuild(round_index)
            explorer.collect(round_index * explorer.episodes_at_once)
            line = explorer.update(0.0)
            weights.append(line["leash_weight"])
        assert weights == ([1.0, 2.0, 4.0, 8.0] if target < 1 else [1.0, 0.5, 0.25, 0.125])
        reached.append(line["kl_to_phase2"])
    tight, loose = reached
    assert 0 < tight < 0.5 * loose, reached
