"""What a run of the explorer promises before its first step: acting and training are the same policy."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from f1_vla.flow_likelihood import Chain
from rl.models.explorer import Explorer, Prefix
from rl.training import train_adversarial_rl, train_student_rl
from rl.training.adversarial_phase import AdversarialPhase
from rl.training.parallel_utils import parameter_hash
from rl.training.student_phase import StudentPhase
from tests.training import adversarial_runs, student_runs
from tests.training.run_here import run_here

QUIET = ("training.video_save_every=0", "training.sample_save_every=0")


def _acting_is_off(monkeypatch: pytest.MonkeyPatch) -> None:
    act = Explorer.act

    def off(self: Explorer, prefix: Prefix, generators: Sequence[torch.Generator]) -> tuple[Chain, Tensor, Tensor]:
        chain, log_prob, value = act(self, prefix, generators)
        return chain, log_prob + 0.01, value

    monkeypatch.setattr(Explorer, "act", off)


def _training_drifts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every forward says a little more than the one before."""
    forward, calls = Explorer.forward, []

    def drifting(self: Explorer, prefix: Prefix, chain: Chain) -> dict[str, Tensor]:
        calls.append(0)
        out = forward(self, prefix, chain)
        return out | {"log_prob": out["log_prob"] + 2e-5 * len(calls)}

    monkeypatch.setattr(Explorer, "forward", drifting)


BROKEN = [
    (_acting_is_off, "error: log-probs when acting and in the training forward differ by 1.0"),
    (_training_drifts, "error: the first ratio of an update differs from 1 by "),
]


@pytest.mark.parametrize(("broken", "message"), BROKEN)
def test_a_student_whose_log_probs_do_not_agree_ends_before_its_first_step(
    teacher_with_heads: Path, tmp_path: Path, broken, message: str, capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    hashes, collect, close = [], StudentPhase.collect, StudentPhase.close

    def collected(self: StudentPhase, step: int) -> dict[str, float]:
        hashes.append(parameter_hash(self.model.explorer))
        return collect(self, step)

    def closed(self: StudentPhase) -> None:
        hashes.append(parameter_hash(self.model.explorer))
        close(self)

    monkeypatch.setattr(StudentPhase, "collect", collected)
    monkeypatch.setattr(StudentPhase, "close", closed)
    broken(monkeypatch)
    argv = student_runs.flags(teacher_with_heads, tmp_path / "run", 2, *QUIET)
    assert run_here(train_student_rl.main, argv, "student") == 4
    assert message in capfd.readouterr().err
    assert len(hashes) == 2 and hashes[0] == hashes[1]
    assert not list((tmp_path / "run").glob("checkpoint-*"))


@pytest.mark.parametrize(("broken", "message"), BROKEN)
def test_a_game_is_refused_before_its_warm_up(
    teacher_with_heads: Path, student_run: Path, tmp_path: Path, broken, message: str, capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In the first iteration, in which the world model alone would train."""
    updates, close = [], AdversarialPhase.close

    def closed(self: AdversarialPhase) -> None:
        updates.append((self.iteration, self.world_model.updates, self.explorer.updates))
        close(self)

    monkeypatch.setattr(AdversarialPhase, "close", closed)
    broken(monkeypatch)
    argv = adversarial_runs.flags(teacher_with_heads, student_run, tmp_path / "run", 3, *QUIET)
    assert run_here(train_adversarial_rl.main, argv, "adversarial") == 4
    assert message in capfd.readouterr().err
    assert updates == [(0, 0, 0)] and not list((tmp_path / "run").glob("checkpoint-*"))
