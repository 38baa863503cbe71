"""More processes change the speed, not the result: DDP, FSDP2 and DeepSpeed against one process at the same global
batch."""

import contextlib
import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rl.training.checkpoint import open_checkpoint
from tests.helpers.ranks import REPO, run_ranks
from tests.resilience import scale_cases
from tests.training.teacher_runs import flags as teacher_flags
from tests.training.teacher_runs import make_tokenizer


@pytest.mark.slow
def test_a_split_run_draws_saves_and_is_continued_by_one_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.resilience.split_run", str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["split"]["types"] == ["Tensor"] and found["split"]["pictures"] == ["episode_4.mp4", "episode_4.png"]
    assert found["split"]["adapter"] == found["copied"]["adapter"]
    assert found["split"]["sum"] == pytest.approx(found["copied"]["sum"], rel=1e-6)
    assert found["split"]["losses"] == pytest.approx(found["copied"]["losses"], rel=1e-4)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    place = tmp_path_factory.mktemp("scale")
    make_tokenizer(place / "debug.safetensors")
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
        ports = [s.getsockname()[1] for s in sockets]
    arguments = {"tokenizer": str(place / "debug.safetensors"), "ports": ports}
    return run_ranks(scale_cases.compare, 2, place, 280, **arguments)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_have_the_losses_of_one_process(ranks: list[dict], kind: str) -> None:
    assert ranks[0][kind] == ranks[1][kind] and len(ranks[0][kind]) == scale_cases.STEPS
    assert ranks[0][kind] == pytest.approx(ranks[0]["alone"], rel=0, abs=1e-6)
    assert ranks[0]["alone"][-1] != ranks[0]["alone"][0]


def test_split_parameters_are_really_split(ranks: list[dict]) -> None:
    assert ranks[0]["split"] > 10 and ranks[0]["plain"]


def test_a_checkpoint_does_not_know_how_many_ranks_wrote_it(ranks: list[dict]) -> None:
    """Parameters and optimizer of 20 steps, taken over by another number of ranks: the next losses are the same."""
    assert ranks[0]["one_to_two"] == pytest.approx(ranks[0]["alone_more"], rel=0, abs=1e-6)
    assert ranks[0]["two_to_one"] == pytest.approx(ranks[0]["fsdp_more"], rel=0, abs=1e-6)


# --- DeepSpeed (optional package) -------------------------------------------------------------------------------------

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed: bash setup.sh deepspeed"
)


@needs_deepspeed
@pytest.mark.parametrize(("stage", "accumulation"), [(2, 1), (3, 2)])
def test_deepspeed_has_the_losses_and_the_checkpoints_of_one_process(
    stage: int, accumulation: int, tmp_path: Path
) -> None:
    make_tokenizer(tmp_path / "debug.safetensors")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = {"tokenizer": str(tmp_path / "debug.safetensors"), "port": port}
    ranks = run_ranks(
        scale_cases.compare_deepspeed, 2, tmp_path, 280, 200, stage=stage, accumulation=accumulation, **arguments
    )
    found = ranks[0]
    assert found["split"] == ranks[1]["split"] and len(found["split"]) == scale_cases.STEPS
    assert found["split"] == pytest.approx(found["alone"], rel=0, abs=1e-6)
    assert found["one_to_two"] == pytest.approx(found["alone_more"], rel=0, abs=1e-6)
    assert found["two_to_one"] == pytest.approx(found["split_more"], rel=0, abs=1e-6)
    assert found["fresh"] and found["again"] == found["split"], "a state from before the first step starts anew"
    assert found["plain"] and found["keys"], "the checkpoint of one process has other entries, shapes or settings"
    assert found["own"] == found["whole"] if stage == 2 else found["own"] < found["whole"] / 100
    for rank in ranks:
        assert "loss or gradient is not finite" in rank["refused"] and rank["untouched"]


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_a_deepspeed_run_is_continued_by_one_process_and_back(stage: int, tmp_path: Path) -> None:
    make_tokenizer(tmp_path / "debug.safetensors")
    file = REPO / "configs" / "accelerate" / f"deepspeed_zero{stage}.yaml"
    run, same = tmp_path / "run", ("training.save_every=4", "training.schedule_episodes=12", "model.lora.mode=on")

    def train(processes: int, episodes: int, *flags: str, place: Path = run) -> None:
        argv = teacher_flags(tmp_path / "debug.safetensors", place, episodes, *same)
        function = ["launch_accelerate", str(file)] if "split" in flags else ["launch"]
        own = [f for f in flags if f != "split"]
        script = f'set -euo pipefail; PYTHON_BIN="{sys.executable}"; source "{REPO}/scripts/launch.sh"; "$@"'
        command = ["bash", "-c", script, "bash", *function, str(processes), "rl.training.train_teacher_rl", *argv, *own]
        done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=280, env=dict(os.environ))
        assert done.returncode == 0, done.stdout + done.stderr

    train(2, 4, place=tmp_path / "copied")
    train(2, 4, "split")
    first = open_checkpoint(run)
    assert {type(v) for v in first.read("model.pt").values()} == {torch.Tensor}
    adapters = [c.adapter_dir for c in (first, open_checkpoint(tmp_path / "copied"))]
    assert None not in adapters
    shapes = [{k: v.shape for k, v in load_file(a / "adapter_model.safetensors").items()} for a in adapters if a]
    assert shapes[0] == shapes[1] and all(0 not in shape for shape in shapes[0].values())
    train(1, 8, "--auto_resume")
    train(2, 12, "split", "--auto_resume")
    assert open_checkpoint(run).step == 12
    losses = [
        [json.loads(line)["teacher/loss"] for line in (place / "episode_metrics.jsonl").read_text().splitlines()]
        for place in (run, tmp_path / "copied")
    ]
    assert losses[0][: len(losses[1])] == pytest.approx(losses[1], rel=1e-4)
    assert len(losses[0]) == 8  # two lines of two ranks, four of one, two of two
