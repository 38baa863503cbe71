"""Instruction text to token ids: bytes for small models, PaliGemma's tokenizer for the published one."""

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from transformers import AutoTokenizer


class TextTokenizer(Protocol):
    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Instructions -> ids int64 (B, Lt) padded with 0 on the right (or cut), validity bool (B, Lt)."""
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
        return _pad([[b + self.OFFSET for b in _with_newline(t).encode()] for t in texts], self.length)


class PretrainedTokenizer:
    """A tokenizer directory in transformers' format."""

    def __init__(self, directory: str, length: int, vocab_size: int) -> None:
        if not Path(directory).is_dir():
            raise ValueError(
                f"text_tokenizer '{directory}' is not a directory; "
                "write 'bytes' or the directory of PaliGemma's tokenizer"
            )
        self.tokenizer = AutoTokenizer.from_pretrained(directory)
        if len(self.tokenizer) > vocab_size:
            raise ValueError(f"text_tokenizer has {len(self.tokenizer)} tokens, trunk.text_vocab_size is {vocab_size}")
        self.length = length

    def __call__(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        return _pad([self.tokenizer(_with_newline(t))["input_ids"] for t in texts], self.length)


def build_text_tokenizer(name: str, length: int, vocab_size: int) -> TextTokenizer:
    """`bytes` or a directory. ValueError when the vocabulary does not fit the model's embedding."""
    return ByteTokenizer(length, vocab_size) if name == "bytes" else PretrainedTokenizer(name, length, vocab_size)
