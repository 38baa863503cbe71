"""What GR00T is told and how its pictures lie among the words, as LeRobot's processor for N1.7 lays them out.

    <|im_start|>user\\n  <|vision_start|> picture <|vision_end|> ...  instruction  <|im_end|>\\n

Positions are counted picture by picture: without words between them two pictures would be one.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# Of the Qwen vocabulary, which every released backbone has: <|im_start|> 151644, user 872, newline 198, ...
QWEN_VOCABULARY = 151_936
QWEN_BEGIN, QWEN_END, QWEN_VISION = (151_644, 872, 198), (151_645, 198), (151_652, 151_653)
# LeRobot's words where no instruction is given: "perform the task", or "Perform the task." as it is.
UNTOLD = {True: (28_488, 279, 3383), False: (46_951, 279, 3383, 13)}
TOKENIZER = "tokenizer.json"


@dataclass(frozen=True)
class Prompt:
    """Token ids. `begin` and `end` stand before the pictures and after the words, `vision` around each picture."""

    words: tuple[int, ...] = (2, 3, 4, 5)  # any: random weights know none
    vision: tuple[int, int] = (60, 61)
    begin: tuple[int, ...] = ()
    end: tuple[int, ...] = ()

    def ids(self, pictures: list[int], image_token: int, device: torch.device) -> Tensor:
        """int64 (L,) for pictures of so many tokens each."""
        opening, closing = self.vision
        seen = [i for count in pictures for i in (opening, *[image_token] * count, closing)]
        return torch.tensor([*self.begin, *seen, *self.words, *self.end], device=device)

    def text(self, pictures: int) -> int:
        """Tokens that are no picture's."""
        return len(self.begin) + 2 * pictures + len(self.words) + len(self.end)


RANDOM = Prompt()


def qwen(words: tuple[int, ...] = UNTOLD[True], vision: tuple[int, int] = QWEN_VISION) -> Prompt:
    return Prompt(words, vision, QWEN_BEGIN, QWEN_END)


def of_backbone(vocabulary: int, vision: tuple[int, int], words: tuple[int, ...] | None, *, formal: bool) -> Prompt:
    """`words` (None: LeRobot's own) for a backbone of so many tokens; one that has not Qwen's is a reduced one and
    knows no chat. Raises ValueError for words that it does not have."""
    if words and max(words) >= vocabulary:
        raise ValueError(
            f"gr00t.instruction: {TOKENIZER} gives the token {max(words)}, the checkpoint's backbone has {vocabulary}; "
            "copy the one of that backbone"
        )
    if vocabulary == QWEN_VOCABULARY:
        return qwen(words or UNTOLD[formal], vision)
    return Prompt(words or RANDOM.words, vision)


def instructed(checkpoint: Path, instruction: str, *, formal: bool) -> tuple[int, ...]:
    """Ids of the instruction. `formal`: in small letters and without punctuation.

    Raises ValueError for one without words, and where the tokenizer is not on this machine or is damaged.
    """
    text = instruction
    if formal:
        text = "".join(c for c in text.lower() if c.isalnum() or c.isspace() or c == "_")
    if not text.strip():
        raise ValueError(f"gr00t.instruction {instruction!r} has no words; write what the robot shall do")
    path = _tokenizer(checkpoint)
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as e:  # the library raises no other
        raise ValueError(f"{path} is damaged ({e}); copy it again") from e
    words = tuple(tokenizer.encode(text, add_special_tokens=False).ids)
    if not words:
        raise ValueError(f"{path} has no tokens for gr00t.instruction {instruction!r}; copy the one of the backbone")
    return words


def is_formal(checkpoint: Path) -> bool:
    """Whether N1.7's processor_config.json wants instructions in small letters without punctuation; LeRobot's default
    is that it does."""
    path = checkpoint / "processor_config.json"
    found: Any = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    for key in ("processor_kwargs", "formalize_language"):
        found = found.get(key) if isinstance(found, dict) else None
    return found is not False


def _tokenizer(checkpoint: Path) -> Path:
    """tokenizer.json beside the weights, else of their backbone in the cache of the hub; nothing is fetched."""
    if (checkpoint / TOKENIZER).is_file():
        return checkpoint / TOKENIZER
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    config: Any = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    backbone = str(config.get("model_name", "nvidia/Cosmos-Reason2-2B"))
    try:
        found = try_to_load_from_cache(backbone, TOKENIZER)
    except HFValidationError:  # a folder, not a name on the hub
        found = Path(backbone) / TOKENIZER
    if isinstance(found, (str, Path)) and Path(found).is_file():
        return Path(found)
    raise ValueError(
        f"gr00t.instruction needs {checkpoint / TOKENIZER}, which released checkpoints do not hold: copy the one of "
        f"their backbone ({backbone}) there, or leave the instruction out ('perform the task')"
    )
