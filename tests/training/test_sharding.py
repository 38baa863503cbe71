"""What a launcher may ask for: FSDP2 and DeepSpeed for the first phase. Losses and checkpoints: test_scale.py."""

import importlib.util
import os

import pytest

from rl.config import MixedPrecision, TrainingConfig
from rl.training import sharding
from rl.training.parallel_utils import ParallelContext
from rl.training.sharding import Split

DEEPSPEED = {"ACCELERATE_USE_DEEPSPEED": "true"}


@pytest.mark.parametrize(
    ("env", "message"),
    [
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


def test_deepspeed_that_is_not_installed_is_refused_with_the_command_that_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed: bash setup\.sh deepspeed, or take .*fsdp2\.yaml"):
        ParallelContext.create(TrainingConfig(device="cpu"))


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "1"}, "zero_stage 1; there are 2 and 3"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "offload_optimizer_device cpu, which is not avail"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE": "nvme"}, "offload_param_device nvme, which is not available"),
        ({"ACCELERATE_DEEPSPEED_ZERO3_INIT": "true"}, "zero3_init_flag true, which is not available here; leave it"),
        ({"ACCELERATE_DEEPSPEED_CONFIG_FILE": "a.json"}, "deepspeed_config_file a.json, which is not available"),
        ({"ACCELERATE_GRADIENT_CLIPPING": "0.5"}, "gradient_clipping 0.5, training.max_grad_norm is 1.0; leave grad"),
        ({"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4"}, "steps 4, training.gradient_accumulation_steps is 1; leave"),
    ],
)
def test_settings_of_deepspeed_that_would_be_ignored_are_refused(
    env: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in (DEEPSPEED | env).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match=message):
        sharding.take_request(TrainingConfig(max_grad_norm=1.0))


def test_deepspeed_in_fp16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    with pytest.raises(ValueError, match="fp16; DeepSpeed is for bf16 and no here"):
        sharding.take_request(TrainingConfig(mixed_precision=MixedPrecision.fp16))


@pytest.mark.parametrize(
    ("env", "split"),
    [
        ({"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}, Split.fsdp),
        (DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "2"}, Split.zero2),
        (DEEPSPEED | {"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3", "ACCELERATE_GRADIENT_CLIPPING": "1.0"}, Split.zero3),
    ],
)
def test_accelerate_itself_is_not_told_of_sharding(
    env: dict[str, str], split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in env.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert sharding.take_request(TrainingConfig()) is split
    told = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_GRADIENT_CLIPPING")
    assert not [name for name in told if name in os.environ]
    assert sharding.take_request(TrainingConfig()) is Split.nothing


def test_an_accelerate_file_may_say_the_same_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    context = ParallelContext.create(TrainingConfig(device="cpu", mixed_precision=MixedPrecision.bf16))
    assert not context.sharded
    context.close()
