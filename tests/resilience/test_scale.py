"""More processes change the speed, not the result: DDP and FSDP2 against one process at the same global batch."""

import contextlib
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.ranks import REPO, run_ranks
from tests.resilience import scale_cases
from tests.training.teacher_runs import make_tokenizer


@pytest.mark.slow
def test_a_split_run_draws_saves_and_is_continued_by_one_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.resilience.split_run", str(tmp_path)]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["split"]["types"] == ["Tensor"] and found["split"]["pictures"] == ["episode_4.mp4", "episode_4.png"]
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
