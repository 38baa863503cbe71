"""A rollout on the device: T rows of E environments, allocated once, and the minibatches made of it."""

from collections.abc import Iterator

import torch
from torch import Generator, Tensor

from rl.config import Minibatches
from rl.types import TensorTree


def tree_index(tree: TensorTree, index: Tensor, dim: int = 0) -> TensorTree:
    """Rows of every tensor of an observation."""
    if isinstance(tree, Tensor):
        return tree.index_select(dim, index)
    return {k: v.index_select(dim, index) for k, v in tree.items()}


def tree_flat(tree: TensorTree) -> TensorTree:
    """(T, E, ...) -> (T * E, ...) of every tensor, without a copy."""
    return tree.flatten(0, 1) if isinstance(tree, Tensor) else {k: v.flatten(0, 1) for k, v in tree.items()}


class RolloutStorage:
    """Rows are added one at a time under names; `storage["name"]` is (T, E, ...). The first row allocates."""

    def __init__(self, n_steps: int, num_envs: int, device: torch.device) -> None:
        self.n_steps, self.num_envs, self.device = n_steps, num_envs, device
        self.rows: dict[str, Tensor] = {}
        self._observation: dict[str, Tensor] | None = None
        self._single = True
        self.length = 0

    @property
    def full(self) -> bool:
        return self.length == self.n_steps

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.rows.values(), *(self._observation or {}).values()))

    def begin(self) -> None:
        """Rows are overwritten from the first on."""
        self.length = 0

    def add(self, observation: TensorTree, **row: Tensor) -> None:
        """Copies one row (E, ...) of each; the same names every time."""
        named = {"": observation} if isinstance(observation, Tensor) else observation
        if self._observation is None:
            self._single = isinstance(observation, Tensor)
            self._observation = {k: self._allocate(v) for k, v in named.items()}
            self.rows = {k: self._allocate(v) for k, v in row.items()}
        assert row.keys() == self.rows.keys() and named.keys() == self._observation.keys() and not self.full
        for k, v in named.items():
            self._observation[k][self.length].copy_(v)
        for k, v in row.items():
            self.rows[k][self.length].copy_(v)
        self.length += 1

    @property
    def observation(self) -> TensorTree:
        """(T, E, ...)"""
        assert self._observation is not None
        return self._observation[""] if self._single else self._observation

    def __getitem__(self, name: str) -> Tensor:
        return self.rows[name]

    def _allocate(self, example: Tensor) -> Tensor:
        return torch.empty(self.n_steps, *example.shape, dtype=example.dtype, device=self.device)


def minibatch_indices(
    kind: Minibatches, rows: int, size: int, epochs: int, generator: Generator, drop_last: bool
) -> Iterator[list[Tensor]]:
    """Index vectors of the minibatches of each epoch; `rows` counts rows, or environments for by_environment.

    The same list object is yielded again where epochs repeat a partition, so that callers may keep what they gathered.
    `drop_last` leaves out rows that do not fill a minibatch. Raises ValueError when no minibatch would be left.
    """
    if size < 1 or (drop_last and rows < size):
        raise ValueError(f"{rows} rows give no minibatch of {size}; lower ppo.num_minibatches or take more steps")
    batches: list[Tensor] | None = None
    for _ in range(epochs):
        if batches is None or kind in (Minibatches.shuffled, Minibatches.by_environment):
            device = generator.device
            whole = kind is Minibatches.contiguous or size >= rows  # one whole batch needs no order
            order = (
                torch.arange(rows, device=device) if whole else torch.randperm(rows, generator=generator, device=device)
            )
            batches = [b for b in order.split(size) if not drop_last or len(b) == size]
        yield batches
