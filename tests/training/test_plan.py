"""What `train.sh plan` says, against the model itself."""

import json
from pathlib import Path

import pytest
import torch

from f1_vla.builders import build_policy
from rl import config as rl_config
from rl.config import LoraMode, MixedPrecision
from rl.training import plan as planning
from rl.training.model_setup import freeze_for_world_model, inject_adapter
from tests.helpers.autograd_memory import kept_bytes


def configs(preset: str = "debug_test", **training):
    cfg = rl_config.load(overrides=["training.batch_size=2", "training.bptt_length=2"])
    for name, value in training.items():
        setattr(cfg.training, name, value)
    return cfg, rl_config.load_model(preset)


@pytest.mark.parametrize("lora", [False, True])
def test_parameters_and_bytes_are_those_of_the_model_that_would_train(lora: bool) -> None:
    cfg, arch = configs()
    cfg.model.lora.mode = LoraMode.on if lora else LoraMode.off
    policy = build_policy(arch)
    freeze_for_world_model(policy, cfg.teacher.freeze, lora)
    if lora:
        inject_adapter(policy, cfg, planning.Role.world_model)
    trained = [p for p in policy.parameters() if p.requires_grad]
    plan = planning.make_plan(cfg, arch, 1, "reference")
    assert plan.parameters == sum(p.numel() for p in policy.parameters())
    assert plan.trainable == sum(p.numel() for p in trained)
    everything = [*policy.parameters(), *policy.buffers()]
    assert plan.bytes_by_part["weights"] == sum(t.numel() * t.element_size() for t in everything)
    assert plan.bytes_by_part["gradients"] == 4 * plan.trainable
    assert plan.bytes_by_part["optimizer (AdamW)"] == 8 * plan.trainable
    assert plan.bytes_by_part["gradient buckets (DDP)"] == 0
    assert planning.make_plan(cfg, arch, 2, "reference").bytes_by_part["gradient buckets (DDP)"] == 4 * plan.trainable


@pytest.mark.parametrize("preset", ["tiny", "debug_test"])
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("backend", ["matmul", "sdpa"])
def test_estimated_activations_are_close_to_what_autograd_keeps(preset: str, recompute: bool, backend: str) -> None:
    cfg, arch = configs(preset)
    arch.trunk.gradient_checkpointing, arch.trunk.attention_backend = recompute, backend
    policy = build_policy(arch)
    freeze_for_world_model(policy, cfg.teacher.freeze, lora=False)
    batch, h = planning.random_batch(cfg, arch, torch.device("cpu")), policy.initial_memory_state(2)
    measured = kept_bytes(policy, lambda: policy(batch, mode="world_model_window", initial_memory_state=h))
    estimate = planning.activation_bytes(cfg, arch, backend)
    if recompute:  # the layer that is computed again is not there yet
        arch.trunk.gradient_checkpointing = False
        layers = planning.activation_bytes(cfg, arch, backend)
        assert measured < estimate < 0.6 * layers
    else:
        assert 0.8 < estimate / measured < 1.25


def test_full_size_model_is_planned_without_allocating_it(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr(planning, "probe", lambda *_: pytest.fail("probed"))
    monkeypatch.setattr(planning, "free_bytes", lambda device: 8_000_000_000)
    argv = ["--phase", "teacher", "--model_config", "f1_base", "--num_processes", "8", "--mixed_precision", "bf16"]
    argv += ["model.checkpoint_path=released", "--device", "cpu", "--json", str(tmp_path / "plan.json")]
    with pytest.raises(SystemExit) as stop:
        planning.cli.run_main("plan", planning.main, argv)
    out = capsys.readouterr().out
    assert stop.value.code == 0
    assert "not probed, it needs about" in out and "all 8 processes" in out and "und expert" in out
    numbers = json.loads((tmp_path / "plan.json").read_text())
    # The list of published entries counts 3.66 B parameters without unused heads and second names; memory and
    # conditioning are ours. The base is held in bfloat16, adapters and heads train in float32.
    assert numbers["parameters"] > 3.6e9 and numbers["trainable"] < 0.05 * numbers["parameters"]
    assert numbers["bytes_by_part"]["weights"] < 2.3 * numbers["parameters"]
    assert numbers["seconds_per_update"] is None
    # 4.6e14 operations: a good part of a second even at the rate of the fastest GPU, less than a month on a slow core.
    assert 0.1 < numbers["seconds_at_least"] < 3e6 and "at least" in out
    # Adapters, heads, memory and their optimizer; the published base is named by its hash.
    sizes = numbers["checkpoint_bytes"]
    assert all(0 < sizes[phase] < 0.2 * numbers["bytes_by_part"]["weights"] for phase in ("phase 1", "phase 2"))


def test_small_model_is_probed(capsys) -> None:
    argv = ["--model_config", "debug_test", "--device", "cpu", "training.batch_size=1", "training.bptt_length=1"]
    with pytest.raises(SystemExit) as stop:
        planning.cli.run_main("plan", planning.main, argv)
    assert stop.value.code == 0
    line = [x for x in capsys.readouterr().out.splitlines() if x.startswith("time of an update")]
    assert len(line) == 1 and line[0].endswith("s, probed")


def test_half_precision_halves_what_the_layers_keep() -> None:
    cfg, arch = configs("tiny")
    full = planning.activation_bytes(cfg, arch, "reference")
    cfg.training.mixed_precision = MixedPrecision.bf16
    assert 0.5 < planning.activation_bytes(cfg, arch, "reference") / full < 0.8


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--phase", "student"], "plan knows the phase teacher"),
        (["--num_processes", "0"], "--num_processes is '0'"),
        (["--num_processes", "two"], "--num_processes is 'two'"),
    ],
)
def test_what_cannot_be_planned_is_refused(argv: list[str], message: str, capsys) -> None:
    with pytest.raises(SystemExit) as stop:
        planning.cli.run_main("plan", planning.main, argv)
    assert stop.value.code == 4 and message in capsys.readouterr().err
