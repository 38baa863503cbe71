"""configs/accelerate and the refusal of files that contradict themselves, the command line or the machine."""

import importlib.util
import os
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.utils import DeepSpeedPlugin

REPO = Path(__file__).resolve().parent.parent.parent
FOLDER = REPO / "configs" / "accelerate"
NODES = {"NNODES": "2", "NODE_RANK": "1", "MASTER_ADDR": "node0"}


@pytest.fixture(scope="module")
def check() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_accelerate", REPO / "scripts" / "check_accelerate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_is_a_file_for_every_way_to_scale() -> None:
    names = {"single", "ddp", "fsdp2", "deepspeed_zero2", "deepspeed_zero3", "multi_node"}
    assert {p.stem for p in FOLDER.glob("*.yaml")} == names
    for path in FOLDER.glob("*.yaml"):
        assert load_config_from_file(str(path)).mixed_precision == "no"


@pytest.mark.parametrize(
    ("name", "given", "env", "expected"),
    [
        ("single", None, {}, ["--num_processes", "1"]),
        ("single", 1, {}, ["--num_processes", "1"]),
        ("ddp", 4, {}, ["--num_processes", "4"]),
        ("fsdp2", 2, {}, ["--num_processes", "2"]),
        ("multi_node", 4, NODES, ["--num_processes", "8", "--num_machines", "2", "--machine_rank", "1",
                                  "--main_process_ip", "node0", "--main_process_port", "29500"]),
        ("ddp", 4, NODES, ["--num_processes", "8", "--num_machines", "2", "--machine_rank", "1",
                           "--main_process_ip", "node0", "--main_process_port", "29500"]),
    ],
)  # fmt: skip
def test_files_and_command_line_together_say_what_is_started(
    check: ModuleType, name: str, given: int | None, env: dict[str, str], expected: list[str]
) -> None:
    assert check.flags(str(FOLDER / f"{name}.yaml"), given, env, 0) == expected


@pytest.mark.parametrize(
    ("changes", "given", "env", "gpus", "message"),
    [
        ({}, None, {}, 0, r"leaves the number of processes open: bash train\.sh PHASE NUM_PROCESSES"),
        ({"num_processes": 4}, 2, {}, 0, r"num_processes 4, the command line asks for 2 .*write -1"),
        (
            {"num_processes": 3, "num_machines": 2, "main_process_ip": "a"},
            None,
            {},
            0,
            "3 cannot be shared by 2 mach",
        ),
        ({"num_processes": 0}, None, {}, 0, "num_processes is 0; write at least 1, or -1"),
        ({"distributed_type": "NO"}, 2, {}, 0, r"NO is one process, not 2; take configs/accelerate/ddp\.yaml"),
        ({"distributed_type": "MEGATRON_LM"}, 2, {}, 0, "MEGATRON_LM; there are NO, MULTI_GPU, FSDP, DEEPSPEED"),
        ({"distributed_type": "DEEPSPEED"}, 2, {}, 0, r"not installed: bash setup\.sh deepspeed, or .*fsdp2\.yaml"),
        ({"num_machines": 3}, 2, NODES, 0, "num_machines 3, NNODES says 2; make them agree"),
        ({"num_machines": 3}, 2, {}, 0, r"NNODES=3, NODE_RANK \(0 to 2\) and MASTER_ADDR"),
        ({}, 3, {}, 2, "3 processes on this machine need as many GPUs; it has 2"),
        ({"no_such_key": 1}, 2, {}, 0, r"is no accelerate configuration: .*no_such_key"),
        ({"compute_environment": "AMAZON_SAGEMAKER"}, 2, {}, 0, "is no accelerate configuration|SageMaker"),
    ],
)
def test_contradictions_are_refused_with_the_remedy(
    check: ModuleType, tmp_path: Path, changes: dict[str, Any], given: int | None, env: dict[str, str], gpus: int,
    message: str, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    file = tmp_path / "file.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load((FOLDER / "ddp.yaml").read_text()) | changes))
    with pytest.raises(ValueError, match=message):
        check.flags(str(file), given, env, gpus)


def test_deepspeed_on_several_machines_is_started_by_the_same_command_on_each(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    for name in ("deepspeed_zero2", "deepspeed_zero3"):
        alone = check.flags(str(FOLDER / f"{name}.yaml"), 2, {}, 0)
        assert alone == ["--num_processes", "2"]
        together = check.flags(str(FOLDER / f"{name}.yaml"), 2, NODES, 0)
        assert together[:2] == ["--num_processes", "4"]
        assert together[-2:] == ["--deepspeed_multinode_launcher", "standard"]


def test_a_file_that_is_no_yaml_is_refused(check: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "file.yaml"
    file.write_text("a: [b")
    with pytest.raises(ValueError, match="is no accelerate configuration"):
        check.flags(str(file), 1, {}, 0)


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed_files_are_what_accelerates_plugin_takes(stage: int, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load_config_from_file(str(FOLDER / f"deepspeed_zero{stage}.yaml")).deepspeed_config
    for key in [k for k in os.environ if k.startswith("ACCELERATE_DEEPSPEED")]:
        monkeypatch.delenv(key)
    plugin = DeepSpeedPlugin(**settings)
    assert plugin.zero_stage == stage and plugin.deepspeed_config["zero_optimization"]["stage"] == stage
