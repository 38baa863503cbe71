"""Returns, lengths and successes of finished episodes, gathered without waiting for the device at every step.

Letters: E environments.
"""

from collections import deque
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rl.types import VectorStep


class EpisodeStatistics:
    """`add` every vector step, `flush` when the numbers are wanted. Rows that are not valid do not count."""

    def __init__(self, num_envs: int, window: int = 100) -> None:
        """window: how many of the newest episodes the means are over."""
        self.returns: deque[float] = deque(maxlen=window)
        self.lengths: deque[float] = deque(maxlen=window)
        self.successes: deque[float] = deque(maxlen=window)
        self.episodes = 0  # finished since the run began
        self._lost: list[Tensor] = []  # environments lost in each step since `losses` was asked
        self._return = np.zeros(num_envs, np.float32)
        self._length = np.zeros(num_envs, np.float32)
        # Of each step since `flush`: reward, terminated, truncated, valid, success. Kept as they are (environments hand
        # out fresh tensors), because a dozen small operations a step are as long as acting.
        self._pending: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]] = []

    def add(self, step: VectorStep) -> None:
        self._pending.append((step.reward, step.terminated, step.truncated, step.valid, step.infos.get("success")))
        if step.lost is not None:
            self._lost.append(step.lost.sum())

    def losses(self) -> dict[str, float]:
        """Metrics: environments lost since the last call; nothing where none can be."""
        if not self._lost:
            return {}
        count = int(torch.stack(self._lost).sum())
        self._lost = []
        return {"environment_failures": float(count)}

    def begin(self) -> None:
        """All environments were reset: unfinished episodes are forgotten. Call `flush` first."""
        assert not self._pending
        self._return[:] = self._length[:] = 0

    def flush(self) -> int:
        """Takes in what `add` has gathered; returns how many transitions that were."""
        if not self._pending:
            return 0
        rewards, terminated, truncated, valid, successes = zip(*self._pending, strict=True)
        success = [torch.full_like(rewards[0], torch.nan) if s is None else s.float() for s in successes]
        flags = [torch.stack(f).float() for f in (terminated, truncated, valid)]
        rows = torch.stack([torch.stack(rewards), *flags, torch.stack(success)], 1).cpu().numpy()  # (steps, 5, E)
        self._pending = []
        for reward, *ends, real, success_E in rows:
            counts = real > 0
            self._return += np.where(counts, reward, np.float32(0))
            self._length += counts
            ended = (ends[0] + ends[1] > 0) & counts
            for e in ended.nonzero()[0]:
                self.returns.append(float(self._return[e]))
                self.lengths.append(float(self._length[e]))
                self.successes.append(float(success_E[e]))
                self.episodes += 1
            begun = ended | ~counts  # the episode of a row that is no transition is dropped
            self._return[begun] = self._length[begun] = 0
        return int(rows[:, 3].sum())

    def means(self) -> dict[str, float]:
        """return, length and success over the window; NaN before the first episode and where success is not told."""
        named = {"return": self.returns, "length": self.lengths, "success": self.successes}
        return {name: sum(v) / len(v) if v else float("nan") for name, v in named.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain data; call `flush` first."""
        assert not self._pending
        return {
            "recent": [list(self.returns), list(self.lengths), list(self.successes)], "episodes": self.episodes,
            "return": torch.tensor(self._return), "length": torch.tensor(self._length),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for own, saved in zip((self.returns, self.lengths, self.successes), state["recent"], strict=True):
            own.clear()
            own.extend(saved)
        self.episodes = state["episodes"]
        self._return[:], self._length[:] = state["return"].numpy(), state["length"].numpy()
