"""The teacher on two ranks: one model, different episodes, resume bit for bit."""

import json
from pathlib import Path

import pytest
import torch

from rl.training.checkpoint import open_checkpoint
from tests.helpers.ranks import run_ranks
from tests.training import two_rank_cases
from tests.training.teacher_runs import flags, once, parameters_equal, run_process_stopped_after


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Path:
    def make(directory: Path) -> None:
        alone = flags(
            tokenizer_path, directory / "interrupted_alone", 4, "training.schedule_episodes=4", "training.save_every=2"
        )
        code, output = run_process_stopped_after(3, alone)  # episode 2 has collected, one of its two updates is done
        assert code == 75, output
        arguments = {"tokenizer": str(tokenizer_path), "place": str(directory)}
        run_ranks(two_rank_cases.straight_and_resumed, 2, directory, 150, **arguments)

    return once(tmp_path_factory, "two_ranks", make)


@pytest.fixture(scope="module")
def ranks(place: Path) -> list[dict]:
    return [json.loads((place / f"result_rank{r}.json").read_text()) for r in range(2)]


def _lines(run: Path) -> list[dict]:
    lines = [json.loads(line) for line in (run / "episode_metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith("_per_s")} for line in lines]


def test_both_ranks_end_well_with_equal_parameters(ranks: list[dict], place: Path) -> None:
    assert [r["codes"] for r in ranks] == [[0, 0, 0, 0]] * 2
    for mine, other in zip(ranks[0]["runs"], ranks[1]["runs"], strict=True):
        assert mine["hash"] == other["hash"]
    assert ranks[0]["runs"][0]["hash"] != ranks[0]["runs"][1]["hash"]  # four episodes are not two


def test_episodes_are_counted_over_ranks_and_every_rank_has_its_own(ranks: list[dict], place: Path) -> None:
    straight = [r["runs"][0] for r in ranks]
    assert [s["indices"] for s in straight] == [[0, 2], [1, 3]]
    assert len({f for s in straight for f in s["actions"]}) == 4
    assert straight[0]["frames"] != straight[1]["frames"]
    assert [line["episode"] for line in _lines(place / "straight")] == [2, 4]
    assert [line["env_steps"] for line in _lines(place / "straight")] == [16, 32]
    assert [s["updates"] for s in straight] == [4, 4]


def test_a_resume_at_two_ranks_equals_the_straight_run(place: Path, ranks: list[dict]) -> None:
    for step in (2, 4):
        assert parameters_equal(place / "straight" / f"checkpoint-{step}", place / "resumed" / f"checkpoint-{step}")
    assert _lines(place / "straight") == _lines(place / "resumed")
    for r in ranks:
        assert r["runs"][0] == r["runs"][2]


def test_a_checkpoint_holds_the_state_of_both_ranks(place: Path) -> None:
    saved = open_checkpoint(place / "straight")
    states = saved.read("training_state.pt")["per_rank"]
    assert len(states) == 2 and not torch.equal(states[0]["generator"], states[1]["generator"])
    for rank in range(2):
        assert [e["index"] for e in saved.read(f"buffer_rank{rank}.pt")["episodes"]] == [rank, rank + 2]
    assert len(list((place / "straight" / "logs").iterdir())) == 2


def test_two_ranks_drop_the_rest_of_an_iteration_that_one_process_began(place: Path, ranks: list[dict]) -> None:
    run = place / "interrupted_alone"
    # One process: episodes 1 and 2 with three updates; two ranks: episodes 3 and 4 with two updates.
    assert [line["episode"] for line in _lines(run)] == [1, 4]
    assert [r["runs"][3]["updates"] for r in ranks] == [5, 5]
    assert ranks[0]["runs"][3]["hash"] == ranks[1]["runs"][3]["hash"]
    assert "what was left of the interrupted iteration is dropped" in _logs(run)


def _logs(run: Path) -> str:
    return "".join(p.read_text() for p in (run / "logs").iterdir())
