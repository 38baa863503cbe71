"""Returns, lengths and successes of finished episodes, gathered without waiting for the device at every step.

Letters: E environments.
"""

from collections import deque
from typing import Any

import torch
from torch import Tensor

from rl.types import VectorStep


class EpisodeStatistics:
    """`add` every vector step, `flush` when the numbers are wanted. Rows that are not valid do not count."""

    def __init__(self, num_envs: int, device: torch.device | str, window: int = 100) -> None:
        """window: how many of the newest episodes the means are over."""
        self.returns: deque[float] = deque(maxlen=window)
        self.lengths: deque[float] = deque(maxlen=window)
        self.successes: deque[float] = deque(maxlen=window)
        self.episodes = 0  # finished since the run began
        self._lost: list[Tensor] = []  # environments lost in each step since `losses` was asked
        self._return = torch.zeros(num_envs, device=device)
        self._length = torch.zeros(num_envs, device=device)
        self._pending: list[Tensor] = []  # (5, E): ended, return, length, success, valid

    def add(self, step: VectorStep) -> None:
        valid = step.valid
        self._return = self._return + torch.where(valid, step.reward, 0.0)
        self._length = self._length + valid
        ended = (step.terminated | step.truncated) & valid
        success = step.infos["success"].float() if "success" in step.infos else torch.full_like(self._return, torch.nan)
        self._pending.append(torch.stack([ended.float(), self._return, self._length, success, valid.float()]))
        begun = ended | ~valid  # the episode of a row that is no transition is dropped
        self._return = torch.where(begun, 0.0, self._return)
        self._length = torch.where(begun, 0.0, self._length)
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
        """All environments were reset: unfinished episodes are forgotten."""
        self._return, self._length = torch.zeros_like(self._return), torch.zeros_like(self._length)

    def flush(self) -> int:
        """Takes in what `add` has gathered; returns how many transitions that were."""
        if not self._pending:
            return 0
        rows = torch.stack(self._pending).cpu()  # (steps, 5, E)
        self._pending = []
        for row in rows:
            for e in row[0].nonzero()[:, 0].tolist():
                self.returns.append(float(row[1, e]))
                self.lengths.append(float(row[2, e]))
                self.successes.append(float(row[3, e]))
                self.episodes += 1
        return int(rows[:, 4].sum())

    def means(self) -> dict[str, float]:
        """return, length and success over the window; NaN before the first episode and where success is not told."""
        named = {"return": self.returns, "length": self.lengths, "success": self.successes}
        return {name: sum(v) / len(v) if v else float("nan") for name, v in named.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain data; call `flush` first."""
        assert not self._pending
        return {
            "recent": [list(self.returns), list(self.lengths), list(self.successes)], "episodes": self.episodes,
            "return": self._return.clone(), "length": self._length.clone(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for own, saved in zip((self.returns, self.lengths, self.successes), state["recent"], strict=True):
            own.clear()
            own.extend(saved)
        self.episodes = state["episodes"]
        self._return = state["return"].to(self._return.device)
        self._length = state["length"].to(self._length.device)
