"""Instruction text to token ids: bytes for small models, PaliGemma's tokenizer for the published one."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import AutoTokenizer

from f1_vla.config import F1Config


class TextTokenizer(Protocol):
    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Instructions -> ids int64 (B, Lt) padded with 0 on the right (or cut), validity bool (B, Lt)."""
        ...

    def count(self, text: str) -> int:
        """Tokens of one instruction before padding or cutting."""
        ...


def _pad(rows: list[list[int]], length: int) -> tuple[Tensor, Tensor]:
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    valid = torch.zeros(len(rows), length, dtype=torch.bool)
    for i, row in enumerate(rows):
        n = min(len(row), length)
        ids[i, :n] = torch.tensor(row[:n], dtype=torch.int64)
        valid[i, :n] = True
    return ids, valid


def _with_newline(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"


class ByteTokenizer:
    """UTF-8 bytes shifted by `OFFSET` (0 pads, 1 and 2 stay free as in PaliGemma); ends in a newline."""

    OFFSET = 3

    def __init__(self, length: int, vocab_size: int) -> None:
        if vocab_size < 256 + self.OFFSET:
            raise ValueError(f"trunk.text_vocab_size {vocab_size}: the byte tokenizer needs {256 + self.OFFSET}")
        self.length = length

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        return _pad([self._ids(t) for t in texts], self.length)

    def count(self, text: str) -> int:
        return len(self._ids(text))

    def _ids(self, text: str) -> list[int]:
        return [b + self.OFFSET for b in _with_newline(text).encode()]


class PretrainedTokenizer:
    """A tokenizer directory in transformers' format."""

    def __init__(self, directory: str, length: int, vocab_size: int) -> None:
        if not Path(directory).is_dir():
            raise ValueError(
                f"text_tokenizer '{directory}' is not a directory; "
                "write 'bytes' or the directory of PaliGemma's tokenizer"
            )
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError) as e:
            raise ValueError(
                f"text_tokenizer '{directory}' holds no readable tokenizer ({str(e).splitlines()[0]}); it needs "
                "tokenizer.json and tokenizer_config.json of PaliGemma"
            ) from e
        if len(self.tokenizer) > vocab_size:
            raise ValueError(f"text_tokenizer has {len(self.tokenizer)} tokens, trunk.text_vocab_size is {vocab_size}")
        self.length = length

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        return _pad([self._ids(t) for t in texts], self.length)

    def count(self, text: str) -> int:
        return len(self._ids(text))

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer(_with_newline(text))["input_ids"]


def build_text_tokenizer(name: str, length: int, vocab_size: int) -> TextTokenizer:
    """`bytes` or a directory. ValueError when the vocabulary does not fit the model's embedding."""
    return ByteTokenizer(length, vocab_size) if name == "bytes" else PretrainedTokenizer(name, length, vocab_size)


def encode_instruction(cfg: F1Config, text: str) -> tuple[Tensor, Tensor]:
    """Ids int64 (1, Lt) and validity bool (1, Lt) of one instruction.

    ValueError when it has more tokens than the model takes, where calling the tokenizer would cut it.
    """
    length = cfg.tokenizer_max_length
    tokenizer = build_text_tokenizer(cfg.text_tokenizer, length, cfg.trunk.text_vocab_size)
    needed = tokenizer.count(text)
    if needed > length:
        raise ValueError(
            f"the instruction {text!r} has {needed} tokens, tokenizer_max_length is {length}; shorten "
            f"environment.instruction or set arch.tokenizer_max_length={needed}"
        )
    return tokenizer([text])
