"""Block-causal mask: one int32 block id and one validity bit per token.

Letters: B batch (1 broadcasts), Lq queries, Lk keys.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class BlockMask:
    """Query i sees key j if and only if block[j] <= block[i] and key j is valid.

    q_block, k_block: int32 (B or 1, Lq / Lk), non-decreasing along the sequence.
    q_valid, k_valid: bool (B or 1, Lq / Lk). Rows of invalid queries come out of `attention` as zeros.
    """

    q_block: Tensor
    k_block: Tensor
    q_valid: Tensor
    k_valid: Tensor
    _cache: dict[object, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("q_block", "k_block"):
            t = getattr(self, name)
            if t.dtype != torch.int32 or t.ndim != 2:
                raise ValueError(f"BlockMask.{name} must be int32 (B, L), got {t.dtype} {tuple(t.shape)}")
        for name, ids in (("q_valid", self.q_block), ("k_valid", self.k_block)):
            t = getattr(self, name)
            if t.dtype != torch.bool or t.ndim != 2 or t.shape[1] != ids.shape[1]:
                raise ValueError(f"BlockMask.{name} must be bool (B, {ids.shape[1]}), got {t.dtype} {tuple(t.shape)}")

    @classmethod
    def square(cls, block: Tensor, valid: Tensor) -> "BlockMask":
        """Self-attention: the same tokens are queries and keys. block, valid: (B or 1, L)."""
        return cls(block, block, valid, valid)

    @property
    def shape(self) -> tuple[int, int]:
        """(Lq, Lk)"""
        return self.q_block.shape[1], self.k_block.shape[1]

    def visible(self) -> Tensor:
        """Dense bool (B, Lq, Lk): what each query may attend to; all False in rows of invalid queries. Cached."""
        if "visible" not in self._cache:
            seen = self.k_block[:, None, :] <= self.q_block[:, :, None]
            self._cache["visible"] = seen & self.k_valid[:, None, :] & self.q_valid[:, :, None]
        return self._cache["visible"]

    def bias(self, dtype: torch.dtype) -> Tensor:
        """Additive form (B, Lq, Lk): 0 where visible, else a large finite negative number (no NaN in empty rows)."""
        if dtype not in self._cache:
            seen = self.visible()
            low = torch.finfo(dtype).min / 4
            self._cache[dtype] = torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, low)
        return self._cache[dtype]

    def row_alive(self, dtype: torch.dtype) -> Tensor:
        """(B, Lq) in `dtype`: 1 where the query sees at least one key, else 0."""
        key = ("alive", dtype)
        if key not in self._cache:
            self._cache[key] = self.visible().any(-1).to(dtype)
        return self._cache[key]
