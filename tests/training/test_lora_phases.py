"""All three phases with adapters: which of them moves, and that the base below never does."""

from pathlib import Path

import pytest
import torch

from rl.training import train_adversarial_rl, train_student_rl, train_teacher_rl
from tests.training import adversarial_runs, student_runs, teacher_runs
from tests.training.run_here import run_here

LORA = "model.lora.mode=on"
QUIET = (LORA, "training.video_save_every=0", "training.sample_save_every=0", "logging.tensorboard=false")
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Path:
    """teacher: two episodes. student: one update. game: an iteration of warm-up, in which the world model alone trains,
    and one of both. Read only."""

    def make(place: Path) -> None:
        teacher, student, game = place / "teacher", place / "student", place / "game"
        argv = [*student_runs.teacher_flags(tokenizer_path, teacher), LORA]
        assert run_here(train_teacher_rl.main, argv) == 0
        assert run_here(train_student_rl.main, student_runs.flags(teacher, student, 2, *QUIET), "student") == 0
        argv = adversarial_runs.flags(teacher, student, game, 2, *QUIET, "training.save_every=1")
        assert run_here(train_adversarial_rl.main, argv, "adversarial") == 0

    return teacher_runs.once(tmp_path_factory, "lora_phases", make)


def _state(run: Path, number: int) -> State:
    """Names as if no explorer and no adapter wrapped an entry."""
    state = torch.load(run / f"checkpoint-{number}" / "model.pt", weights_only=True)
    return {k.removeprefix("policy.").replace(".base_layer.", "."): v for k, v in state.items()}


def _moved(before: State, after: State) -> set[str]:
    return {k for k in before.keys() & after.keys() if not torch.equal(before[k], after[k])}


def _adapters(names: set[str], role: str) -> set[str]:
    return {k for k in names if ".lora_" in k and f".{role}." in k}


def _rest(names: set[str]) -> set[str]:
    """Parts of the policy with something in `names` that is no adapter."""
    return {k.split(".")[0] for k in names if ".lora_" not in k}


def test_the_student_trains_its_own_adapter_and_leaves_that_of_the_teacher(runs: Path) -> None:
    teacher, student = _state(runs / "teacher", 2), _state(runs / "student", 2)
    world_model, explorer = _adapters(set(student), "world_model"), _adapters(set(student), "explorer")
    assert world_model == _adapters(set(teacher), "world_model") and not _adapters(set(teacher), "explorer")
    assert {k.split(".")[1] for k in world_model} == {"und", "gen"} and {k.split(".")[1] for k in explorer} == {"act"}
    assert all(student[k].any() for k in explorer if ".lora_B." in k)  # zero until the first step
    assert any(teacher[k].any() for k in world_model if ".lora_B." in k)
    moved = _moved(teacher, student)
    assert _rest(moved) == {"flow"} and not _adapters(moved, "world_model")
    assert (runs / "student" / "checkpoint-2" / "peft_adapter" / "adapter_model.safetensors").is_file()


def test_in_the_game_each_player_moves_its_own_adapter(runs: Path) -> None:
    student, warm, both = _state(runs / "student", 2), _state(runs / "game", 1), _state(runs / "game", 2)
    assert student.keys() == warm.keys() == both.keys()
    first, second = _moved(student, warm), _moved(warm, both)
    assert _adapters(first, "world_model") and not _adapters(first, "explorer")
    assert not {"flow", "value"} & _rest(first)
    assert _adapters(second, "world_model") and _adapters(second, "explorer")
    assert {"flow", "value", "world_model", "memory"} <= _rest(second)
    assert not {"trunk", "vision", "text_embedding", "tokenizer"} & _rest(first | second)
