"""What GR00T is told: the instruction's tokens, and their place around the pictures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from rl.config import load
from rl.models import gr00t_backend, gr00t_prompt

WORDS = ["[UNK]", "reach", "the", "red", "ball", "Reach", "!"]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """With a tokenizer of seven words beside it."""
    (tmp_path / "config.json").write_text(json.dumps({"model_name": str(tmp_path / "backbone")}))
    tokenizer: Any = Tokenizer(WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_the_instruction_is_read_by_the_tokenizer_beside_the_weights(checkpoint: Path) -> None:
    assert gr00t_prompt.instructed(checkpoint, "Reach the red ball!", formal=True) == (1, 2, 3, 4)
    assert gr00t_prompt.instructed(checkpoint, "Reach the red ball!", formal=False) == (5, 2, 3, 4, 6)


def test_a_tokenizer_in_the_folder_of_the_backbone_is_read_too(checkpoint: Path) -> None:
    (checkpoint / "backbone").mkdir()
    (checkpoint / "tokenizer.json").rename(checkpoint / "backbone" / "tokenizer.json")
    assert gr00t_prompt.instructed(checkpoint, "red ball", formal=True) == (3, 4)


def test_one_in_the_cache_of_the_hub_is_read_and_nothing_is_fetched(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkpoint / "config.json").write_text(json.dumps({"model_name": "maker/backbone"}))
    kept = (checkpoint / "tokenizer.json").rename(checkpoint / "kept.json")
    asked = []

    def cached(repository: str, name: str) -> str:
        asked.append((repository, name))
        return str(kept)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", cached)
    assert gr00t_prompt.instructed(checkpoint, "red", formal=True) == (3,)
    assert asked == [("maker/backbone", "tokenizer.json")]


def test_without_a_tokenizer_an_instruction_is_refused_with_the_file_that_is_missing(checkpoint: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    (checkpoint / "config.json").write_text("{}")
    said = r"needs .*tokenizer\.json, which released checkpoints do not hold: copy.*\(nvidia/Cosmos-Reason2-2B\)"
    with pytest.raises(ValueError, match=said):
        gr00t_prompt.instructed(checkpoint, "reach", formal=True)


def test_a_damaged_tokenizer_and_an_instruction_without_words_are_refused(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match=r"gr00t\.instruction '\?!' has no words"):
        gr00t_prompt.instructed(checkpoint, "?!", formal=True)
    (checkpoint / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged"):
        gr00t_prompt.instructed(checkpoint, "reach", formal=True)


@pytest.mark.parametrize(
    ("kwargs", "formal"), [({}, True), ({"formalize_language": False}, False), ({"formalize_language": True}, True)]
)
def test_the_processor_says_whether_instructions_lose_capitals_and_punctuation(
    kwargs: dict[str, bool], formal: bool, tmp_path: Path
) -> None:
    assert gr00t_prompt.is_formal(tmp_path)
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_kwargs": kwargs}))
    assert gr00t_prompt.is_formal(tmp_path) is formal


def test_a_released_backbone_is_told_in_its_chat_and_by_default_to_perform_the_task() -> None:
    """Ids of the public vocabulary: <|im_start|> user newline, pictures, perform the task, <|im_end|> newline."""
    prompt = gr00t_prompt.of_backbone(151_936, (151_652, 151_653), None, formal=True)
    assert prompt.ids([2, 1], 151_655, torch.device("cpu")).tolist() == [
        151_644, 872, 198,
        151_652, 151_655, 151_655, 151_653,
        151_652, 151_655, 151_653,
        28_488, 279, 3383,
        151_645, 198,
    ]  # fmt: skip
    assert prompt.text(2) == 12
    assert gr00t_prompt.of_backbone(151_936, (0, 1), (7, 8), formal=True).words == (7, 8)
    assert gr00t_prompt.of_backbone(151_936, (0, 1), None, formal=False).words == (46_951, 279, 3383, 13)


def test_a_stub_of_full_size_has_the_prompt_of_a_released_model() -> None:
    with torch.device("meta"):
        assert gr00t_backend.stub("n1.7").prompt == gr00t_prompt.qwen()


def test_the_tokenizer_of_another_backbone_is_refused() -> None:
    with pytest.raises(ValueError, match=r"tokenizer\.json gives the token 64, the checkpoint's backbone has 64"):
        gr00t_prompt.of_backbone(64, (60, 61), (3, 64), formal=True)


def test_random_weights_take_no_instruction() -> None:
    with pytest.raises(ValueError, match=r"gr00t\.instruction needs gr00t\.checkpoint"):
        load(None, ["gr00t.backend=stub", "gr00t.instruction=reach"])
