"""Block-causal mask: one int32 block id and one validity bit a token.

Ids never fall along the sequence, so what a query sees is a prefix of the keys minus the invalid ones: one key end a
query (`kv_end`) and one bit a key are the whole mask, and no backend but the naive ones ever makes it dense.

Letters: B batch (1 broadcasts), Lq queries, Lk keys.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Facts(NamedTuple):
    """What backends ask about the values of a mask."""

    keys_valid: bool  # no key is padded
    alive: bool  # every query is valid and sees a key
    full: bool  # every query sees every key
    one_row: bool  # the ids of all rows of the batch are the same


def _check_ids(named: dict[str, Tensor]) -> None:
    """ValueError: wrong dtype or shape, or ids that fall (one wait for the device)."""
    for name, ids in named.items():
        if ids.dtype != torch.int32 or ids.ndim != 2:
            raise ValueError(f"BlockMask.{name} must be int32 (B, L), got {ids.dtype} {tuple(ids.shape)}")
    on_gpu = any(t.is_cuda for t in named.values())
    if torch.compiler.is_compiling() or (on_gpu and torch.cuda.is_current_stream_capturing()):
        return  # reading values would break the graph; the uncompiled warm-up has checked them
    found = torch.stack([(ids[:, 1:] < ids[:, :-1]).any() for ids in named.values()]).tolist()
    for (name, ids), falls in zip(named.items(), found, strict=True):
        if falls:
            b, i = (ids[:, 1:] < ids[:, :-1]).nonzero()[0].tolist()
            raise ValueError(
                f"BlockMask.{name} must not fall along the sequence, but falls from {int(ids[b, i])} to "
                f"{int(ids[b, i + 1])} at token {i + 1} of row {b}; sort the tokens by block id, or use the "
                "constructors prefix_lm, next_scale or suffix"
            )


@dataclass(frozen=True)
class BlockMask:
    """Query i sees key j if and only if k_block[j] <= q_block[i] and both are valid.

    q_block, k_block: int32 (B or 1, Lq / Lk), non-decreasing along the sequence.
    q_valid, k_valid: bool (B or 1, Lq / Lk). Rows of invalid queries come out of `attention` as zeros.
    Build once a batch and hand the same object to every layer: everything derived is computed once and kept.
    ValueError for other dtypes or shapes and for ids that fall (one look at the values; skipped inside torch.compile
    and CUDA graph capture).
    """

    q_block: Tensor
    k_block: Tensor
    q_valid: Tensor
    k_valid: Tensor
    _cache: dict[object, object] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        places = {t.device for t in (self.q_block, self.k_block, self.q_valid, self.k_valid)}
        if len(places) > 1:
            raise ValueError(f"BlockMask: parts lie on {', '.join(sorted(map(str, places)))}; move them to one device")
        same = self.k_block is self.q_block
        _check_ids({"q_block": self.q_block} | ({} if same else {"k_block": self.k_block}))
        for name, ids in (("q_valid", self.q_block), ("k_valid", self.k_block)):
            t = getattr(self, name)
            if t.dtype != torch.bool or t.ndim != 2 or t.shape[1] != ids.shape[1]:
                raise ValueError(f"BlockMask.{name} must be bool (B, {ids.shape[1]}), got {t.dtype} {tuple(t.shape)}")
        sizes = {t.shape[0] for t in (self.q_block, self.k_block, self.q_valid, self.k_valid)} - {1}
        if len(sizes) > 1:
            raise ValueError(f"BlockMask: batch sizes {sorted(sizes)} differ; use one, or 1 to share a row")

    # ---- constructors: token layouts of the model -------------------------------------------------------------------

    @classmethod
    def square(cls, block: Tensor, valid: Tensor) -> "BlockMask":
        """Self-attention: the same tokens are queries and keys. block, valid: (B or 1, L)."""
        return cls(block, block, valid, valid)

    @classmethod
    def from_lengths(
        cls, lengths: Sequence[int], valid: Tensor | None = None, device: torch.device | str = "cpu"
    ) -> "BlockMask":
        """Self-attention over consecutive blocks of these lengths; valid (B or 1, L), default all."""
        block = _ids(lengths, 0, device)
        return cls.square(block, torch.ones_like(block, dtype=torch.bool) if valid is None else valid)

    @classmethod
    def prefix_lm(
        cls, prefix: int, causal: int, valid: Tensor | None = None, device: torch.device | str = "cpu"
    ) -> "BlockMask":
        """`prefix` tokens that see each other, then `causal` tokens that see the prefix and what came before them."""
        if causal < 0:
            raise ValueError(f"the number of causal tokens must not be negative, got {causal}")
        return cls.from_lengths([prefix] + [1] * causal, valid, device)

    @classmethod
    def next_scale(
        cls,
        prefix: int,
        scales: Sequence[int],
        tail: Sequence[int] = (),
        valid: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> "BlockMask":
        """`prefix` tokens, one block of s * s tokens for every s in `scales`, then blocks of the lengths in `tail`."""
        if any(s < 1 for s in scales):
            raise ValueError(f"scales must be at least 1, got {list(scales)}")
        return cls.from_lengths([prefix, *(s * s for s in scales), *tail], valid, device)

    @classmethod
    def suffix(
        cls, cached_block: Tensor, cached_valid: Tensor, lengths: Sequence[int], valid: Tensor | None = None
    ) -> "BlockMask":
        """New tokens in blocks of `lengths` (queries) on top of cached tokens, whose keys they all see.

        cached_block int32 (1, Lc), cached_valid bool (B, Lc); valid bool (B or 1, sum of lengths), default all.
        """
        first = int(cached_block.max()) + 1 if cached_block.numel() else 0
        block = _ids(lengths, first, cached_block.device)
        if valid is None:
            valid = torch.ones_like(block, dtype=torch.bool)
        B = max(cached_valid.shape[0], valid.shape[0])
        k_valid = torch.cat([cached_valid.expand(B, -1), valid.expand(B, -1)], 1)
        k_block = torch.cat([cached_block, block.expand(cached_block.shape[0], -1)], 1)
        return cls(block, k_block, valid, k_valid)

    # ---- what follows from the ids, computed once -------------------------------------------------------------------

    @property
    def shape(self) -> tuple[int, int]:
        """(Lq, Lk)"""
        return self.q_block.shape[1], self.k_block.shape[1]

    @property
    def device(self) -> torch.device:
        return self.q_block.device

    @property
    def batch(self) -> int:
        """B, or 1 when every row is shared."""
        return max(t.shape[0] for t in (self.q_block, self.k_block, self.q_valid, self.k_valid))

    def cached(self, key: object, make: Callable[[], T]) -> T:
        """`make()` the first time, the kept result afterwards."""
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]  # type: ignore[return-value]

    def visible(self) -> Tensor:
        """Dense bool (B, Lq, Lk): what each query may attend to; all False in rows of invalid queries."""

        def make() -> Tensor:
            seen = self.k_block[:, None, :] <= self.q_block[:, :, None]
            return seen & self.k_valid[:, None, :] & self.q_valid[:, :, None]

        return self.cached("visible", make)

    def bias(self, dtype: torch.dtype) -> Tensor:
        """Additive form (B, Lq, Lk): 0 where visible, else a large finite negative number (no NaN in empty rows)."""
        return self.cached(("bias", dtype), lambda: additive(self.visible(), dtype))

    def kv_end(self) -> Tensor:
        """int32 (B or 1, Lq): how many leading keys have an id at or below the query's."""

        def make() -> Tensor:
            n = max(self.q_block.shape[0], self.k_block.shape[0])
            ids = (self.k_block.expand(n, -1).contiguous(), self.q_block.expand(n, -1).contiguous())
            return torch.searchsorted(*ids, right=True).to(torch.int32)

        return self.cached("kv_end", make)

    def alive(self) -> Tensor:
        """bool (B or 1, Lq): the query is valid and sees at least one valid key."""

        def make() -> Tensor:
            seen = torch.nn.functional.pad(self.k_valid.to(torch.int32).cumsum(1), (1, 0))
            n = max(seen.shape[0], self.kv_end().shape[0])
            return (seen.expand(n, -1).gather(1, self.kv_end().long().expand(n, -1)) > 0) & self.q_valid

        return self.cached("alive", make)

    def row_alive(self, dtype: torch.dtype) -> Tensor:
        """(B or 1, Lq) in `dtype`: 1 where the query sees at least one key, else 0."""
        return self.cached(("alive", dtype), lambda: self.alive().to(dtype))

    def facts(self) -> Facts:
        """Waits for the device the first time, once for all of them."""

        def make() -> Facts:
            end, keys = self.kv_end(), self.k_valid.all()
            full = keys & (end == self.k_block.shape[1]).all() & self.q_valid.all()
            return Facts(*torch.stack([keys, self.alive().all(), full, (end == end[:1]).all()]).tolist())

        return self.cached("facts", make)

    def all_keys_valid(self) -> bool:
        """Whether no key is padded."""
        return self.facts().keys_valid

    @property
    def layout(self) -> str:
        """ "full" when every query sees every key, else "blocks"."""
        return "full" if self.facts().full else "blocks"

    def visible_pairs(self, batch: int) -> int:
        """Number of visible (query, key) pairs of a batch of this size: the useful work is 4 D H times this."""

        def make() -> int:
            seen = torch.nn.functional.pad(self.k_valid.long().cumsum(1), (1, 0))
            n = max(seen.shape[0], self.kv_end().shape[0], self.q_valid.shape[0])
            counts = seen.expand(n, -1).gather(1, self.kv_end().long().expand(n, -1)) * self.q_valid
            return int(counts.sum()) * (batch // n)

        return self.cached(("pairs", batch), make)


def additive(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where True, a quarter of the lowest finite number where False (sums of a few stay finite)."""
    low = torch.finfo(dtype).min / 4
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill_(~seen, low)


def _ids(lengths: Sequence[int], first: int, device: torch.device | str) -> Tensor:
    if any(n < 0 for n in lengths):
        raise ValueError(f"block lengths must not be negative, got {list(lengths)}")
    n = torch.tensor(list(lengths), dtype=torch.int64)
    ids = torch.arange(first, first + len(n), dtype=torch.int32)
    return torch.repeat_interleave(ids, n)[None].to(device)
