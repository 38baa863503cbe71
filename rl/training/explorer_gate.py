"""When the explorer moves on: the world model must have caught up, or have had its time."""

import math
from typing import Any


class Gate:
    """Keeps the explorer waiting while the world model does not get better, for so many examinations in a row."""

    def __init__(self, max_wait: int) -> None:
        self.max_wait = max_wait
        self.before = math.inf  # loss at the examination before
        self.waited = 0

    @property
    def closed(self) -> bool:
        return self.waited > 0

    def judge(self, loss: float) -> None:
        """One examination; equal on all ranks."""
        waits = loss >= self.before and self.waited < self.max_wait
        self.waited = self.waited + 1 if waits else 0
        self.before = loss

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"before": self.before, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.before, self.waited = state["before"], state["waited"]
