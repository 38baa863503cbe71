"""What a launcher may ask for: FSDP2 for the first phase, nothing that could not be saved. Losses: test_scale.py."""

import os

import pytest

from rl.config import MixedPrecision, TrainingConfig
from rl.training import sharding
from rl.training.parallel_utils import ParallelContext


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, r"DeepSpeed.*cannot save; take configs/accelerate/fsdp2\.yaml"),
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "1"}, "FSDP version 1; set fsdp_version: 2"),
        ({"ACCELERATE_USE_FSDP": "true"}, "FSDP version 1; set fsdp_version: 2"),
        (
            {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_TRANSFORMER_CLS_TO_WRAP": "Layer"},
            "wraps Layer.*set fsdp_auto_wrap_policy: NO_WRAP",
        ),
        ({"ACCELERATE_MIXED_PRECISION": "bf16"}, "says mixed_precision bf16, training.mixed_precision is no; give"),
    ],
)
def test_what_cannot_be_done_is_refused(env: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ValueError, match=message):
        ParallelContext.create(TrainingConfig(device="cpu"))


def test_accelerate_itself_is_not_told_of_sharding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    assert sharding.take_request() and "ACCELERATE_USE_FSDP" not in os.environ
    assert not sharding.take_request()


def test_an_accelerate_file_may_say_the_same_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    context = ParallelContext.create(TrainingConfig(device="cpu", mixed_precision=MixedPrecision.bf16))
    assert not context.sharded
    context.close()
