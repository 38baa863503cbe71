"""The rollout of the on-policy learners: T rows of E environments on the device, and the minibatches made of it.

PPO of `rl.algorithms` and that of the explorer fill and read this one storage, each under its own names; ends of
episodes, values behind a cut by time, advantages and the order of minibatches are the same code for both.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor

from rl.config import Minibatches, TimeoutBootstrap
from rl.data.returns import gae, next_values
from rl.types import TensorTree

Index = tuple[Tensor, Tensor]  # rows and environments, int64 (n,) each


def tree_index(tree: TensorTree, index: Tensor, dim: int = 0) -> TensorTree:
    """Rows of every tensor of an observation."""
    if isinstance(tree, Tensor):
        return tree.index_select(dim, index)
    return {k: v.index_select(dim, index) for k, v in tree.items()}


def tree_flat(tree: TensorTree) -> TensorTree:
    """(T, E, ...) -> (T * E, ...) of every tensor, without a copy."""
    return tree.flatten(0, 1) if isinstance(tree, Tensor) else {k: v.flatten(0, 1) for k, v in tree.items()}


def tree_cat(trees: Sequence[TensorTree]) -> TensorTree:
    """One after the other along the first dim; trees of one kind."""
    parts = [{"": tree} if isinstance(tree, Tensor) else tree for tree in trees]
    joined = {k: torch.cat([part[k] for part in parts]) for k in parts[0]}
    return joined[""] if isinstance(trees[0], Tensor) else joined


class RolloutStorage:
    """Rows are added one at a time under names; `storage["name"]` is (T, E, ...). The first row allocates.

    Four names have a meaning here, those `advantages` reads: reward (float), terminated, truncated and valid (bool).
    They come with the rows, or afterwards through `complete`.
    """

    _cuts: list[tuple[int, Tensor, dict[str, TensorTree]]]

    def __init__(self, n_steps: int, num_envs: int, device: torch.device) -> None:
        self.n_steps, self.num_envs, self.device = n_steps, num_envs, device
        self.free()

    @property
    def full(self) -> bool:
        return self.length == self.n_steps

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (*self.rows.values(), *(self._observation or {}).values()))

    # --- filling ---------------------------------------------------------------------------------------------------

    def free(self) -> None:
        """Gives the memory back; the next row allocates anew."""
        self.rows: dict[str, Tensor] = {}
        self._observation: dict[str, Tensor] | None = None
        self._single = True
        self.begin()

    def begin(self, row: int = 0) -> None:
        """Rows are overwritten from `row` on."""
        self.length = row
        self._cuts = [cut for cut in self._cuts if cut[0] < row] if row else []

    def add(self, observation: TensorTree, **row: Tensor) -> None:
        """Copies one row (E, ...) of each; the same names every time."""
        named = {"": observation} if isinstance(observation, Tensor) else observation
        if self._observation is None:
            self._single = isinstance(observation, Tensor)
            self._observation = {k: self._allocate(v) for k, v in named.items()}
            self.rows = {k: self._allocate(v) for k, v in row.items()}
            self._names = row.keys()
        assert row.keys() == self._names and named.keys() == self._observation.keys() and not self.full
        for k, v in named.items():
            self._observation[k][self.length].copy_(v)
        for k, v in row.items():
            self.rows[k][self.length].copy_(v)
        self.length += 1

    def cut(self, environments: Tensor, **final: TensorTree) -> None:
        """Time ends the episodes of these environments (int64, (n,)) with the row added last.

        `final` is what to remember of the states they end in, (n, ...) each: their values, or what values are computed
        from later. The same names every time.
        """
        self._cuts.append((self.length - 1, environments, final))

    def complete(self, **columns: Tensor) -> None:
        """Whole columns (T, E, ...) that are known only now that the rollout is full; they are kept, not copied."""
        assert self.full and all(c.shape[:2] == (self.n_steps, self.num_envs) for c in columns.values())
        self.rows |= columns

    # --- reading ---------------------------------------------------------------------------------------------------

    @property
    def observation(self) -> TensorTree:
        """(T, E, ...)"""
        assert self._observation is not None
        return self._observation[""] if self._single else self._observation

    def __getitem__(self, name: str) -> Tensor:
        return self.rows[name]

    @property
    def weights(self) -> Tensor | None:
        """float32 (T, E), 0 where a row is no transition; None: every row is one. Waits for the device."""
        valid = self["valid"]
        return None if bool(valid.all()) else valid.float()

    @property
    def cut_index(self) -> Index:
        """Where time cut episodes, in the order in which it did."""
        nothing = [torch.empty(0, dtype=torch.long, device=self.device)]
        rows = [torch.full_like(environments, row) for row, environments, _ in self._cuts]
        return torch.cat(rows or nothing), torch.cat([c[1] for c in self._cuts] or nothing)

    def cut_states(self) -> dict[str, TensorTree]:
        """What `cut` remembered, (n, ...) each in the order of `cut_index`; nothing when no episode was cut."""
        names = self._cuts[0][2] if self._cuts else ()
        return {k: tree_cat([final[k] for _, _, final in self._cuts]) for k in names}

    def advantages(
        self, values: Tensor, last_values: Tensor, cut_values: Tensor, gamma: float, lam: float,
        timeout_bootstrap: TimeoutBootstrap = TimeoutBootstrap.final_obs,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Advantages and returns (T, E) of the full rollout; see `rl.data.returns.gae`.

        values (T, E); last_values (E,): after the last row; cut_values (n,): of the states of `cut_index`.
        """
        assert self.full
        after = next_values(values, last_values, self.cut_index, cut_values)
        return gae(
            self["reward"], values, after, self["terminated"], self["truncated"], self["valid"], gamma, lam,
            timeout_bootstrap,
        )  # fmt: skip

    def _allocate(self, example: Tensor) -> Tensor:
        return torch.empty(self.n_steps, *example.shape, dtype=example.dtype, device=self.device)


# --- minibatches -----------------------------------------------------------------------------------------------------


def stretches(n_steps: int, num_envs: int, length: int) -> Tensor:
    """Where every `length` rows of an environment lie in the flat rollout (T * E), in time order: int64 (n, length).

    They follow each other in time and within that by environment; `length` divides `n_steps`.
    """
    rows = torch.arange(n_steps * num_envs).view(n_steps // length, length, num_envs)
    return rows.transpose(1, 2).reshape(-1, length)


def fixed_sizes(rows: int, size: int, drop_last: bool) -> list[int]:
    """Sizes of minibatches of `size` rows; rows that do not fill one are left out, or make a smaller one.

    Raises ValueError when no minibatch would be left.
    """
    if size < 1 or (drop_last and rows < size):
        raise ValueError(f"{rows} rows give no minibatch of {size}; lower ppo.num_minibatches or take more steps")
    rest = rows % size
    return [size] * (rows // size) + ([rest] if rest and not drop_last else [])


def even_sizes(rows: int, count: int) -> list[int]:
    """Sizes of `count` minibatches that differ by at most one row, the larger ones first."""
    return [rows // count + (i < rows % count) for i in range(count)]


def minibatch_indices(
    kind: Minibatches, rows: int, sizes: Sequence[int], epochs: int, generator: Generator
) -> Iterator[list[Tensor]]:
    """Index vectors of the minibatches of each epoch, on the generator's device; `rows` counts rows, or whatever is
    drawn whole: environments, episodes.

    The same list object is yielded again where epochs repeat a partition, so that callers may keep what they gathered.
    """
    batches: list[Tensor] | None = None
    device = generator.device
    for _ in range(epochs):
        if batches is None or kind in (Minibatches.shuffled, Minibatches.by_environment):
            if kind is Minibatches.contiguous:
                order = torch.arange(rows, device=device)
            else:
                order = torch.randperm(rows, generator=generator, device=device)
            batches = list(order[: sum(sizes)].split(list(sizes)))
        yield batches
