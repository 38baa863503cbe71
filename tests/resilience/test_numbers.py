"""Rows 7 and 8: losses that jump, memory that runs out. Numbers that are not finite: test_two_ranks.py."""

import logging
from pathlib import Path

import pytest
import torch

from rl.config import NumbersConfig, OnSpike
from rl.training.checkpoint import open_checkpoint
from rl.training.errors import NumericalError
from rl.training.loss_spikes import SpikeWatch
from rl.training.on_policy_phase import OnPolicyPhase
from tests.training import policy_runs

# --- spikes -----------------------------------------------------------------------------------------------------------


def lines(values: list[float]) -> list[tuple[int, dict[str, float]]]:
    return [(i, {"toy/loss": v, "toy/accuracy": -v}) for i, v in enumerate(values)]


def test_a_loss_that_stays_high_is_reported_once_and_a_single_jump_is_not(caplog: pytest.LogCaptureFixture) -> None:
    watch = SpikeWatch(NumbersConfig(spike_window=20, spike_factor=2.0, spike_patience=3))
    with caplog.at_level(logging.WARNING):
        for step, line in lines([1.0] * 12 + [9.0, 9.0, 1.1, 9.0] + [1.0] * 5):
            watch.add(step, line)
        assert caplog.text == ""
        for step, line in lines([9.0] * 3):
            watch.add(100 + step, line)
    told = "LOSS SPIKE: toy/loss was above 2.0 times its usual 1 in 3 lines of metrics in a row (9 at 102)"
    assert caplog.text.count(told) == 1
    for step, line in lines([9.0] * 50):  # the new level
        watch.add(200 + step, line)
    assert caplog.text.count("LOSS SPIKE") == 1


def test_nothing_is_judged_before_there_is_a_usual_and_nan_is_left_to_others() -> None:
    watch = SpikeWatch(NumbersConfig(spike_factor=1.5, spike_patience=1, on_spike=OnSpike.stop))
    for step, line in lines([1.0, 100.0, 1.0, 100.0, float("nan"), 1.0] + [1.0] * 4 + [100.0]):
        watch.add(step, line)
    # ten finite values now, seven of them 1: the usual is known
    with pytest.raises(NumericalError, match=r"toy/loss was above 1\.5 times its usual 1 in 1 lines .*\(100 at 11\)"):
        watch.add(11, {"toy/loss": 100.0})


def test_a_spike_ends_the_run_where_that_is_asked_for() -> None:
    watch = SpikeWatch(NumbersConfig(spike_factor=2.0, spike_patience=2, on_spike=OnSpike.stop))
    for step, line in lines([1.0] * 20 + [5.0]):
        watch.add(step, line)
    with pytest.raises(NumericalError, match=r"toy/loss .*--resume and a lower learning rate, or set numbers.on_spike"):
        watch.add(21, {"toy/loss": 5.0})


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: 9 bytes"),
        MemoryError(),
    ],
    ids=["gpu", "cpu", "python"],
)
def test_memory_that_runs_out_names_what_to_lower_and_keeps_the_checkpoint(
    error: Exception, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    update, count = OnPolicyPhase.update, [0]

    def second_fails(phase: OnPolicyPhase, progress: float) -> dict[str, float]:
        count[0] += 1
        if count[0] == 2:
            raise error
        return update(phase, progress)

    monkeypatch.setattr(OnPolicyPhase, "update", second_fails)
    code = policy_runs.arm("PPO", tmp_path / "run", "--steps", "512", "arm.save_every=128", "arm.log_every=128")
    printed = capfd.readouterr().err
    assert code == 1 and "out of memory" in printed and "training.gradient_accumulation_steps" in printed
    assert "Traceback" not in printed
    assert open_checkpoint(tmp_path / "run").step == 128  # its write was in flight
