"""Watches numbers that should not jump: a spike is never silent (after Composer's KillLossSpike)."""

import logging
import math
import statistics
from collections import deque
from collections.abc import Mapping

from rl.config import NumbersConfig, OnSpike
from rl.training.errors import NumericalError

log = logging.getLogger(__name__)
WATCHED = ("loss", "grad_norm")  # last parts of names; both are positive and have no business to jump
FEWEST = 10  # values before the first judgement


class SpikeWatch:
    """The window begins anew with every start of a run: it judges, but changes nothing."""

    def __init__(self, cfg: NumbersConfig) -> None:
        self.cfg = cfg
        self.seen: dict[str, deque[float]] = {}
        self.high: dict[str, int] = {}  # how often in a row

    def add(self, step: int, line: Mapping[str, float]) -> None:
        """One line of metrics, equal on all ranks. NumericalError when `numbers.on_spike` says stop."""
        for name, value in line.items():
            if name.rsplit("/", 1)[-1] in WATCHED and math.isfinite(value):
                self._judge(step, name, value)

    def _judge(self, step: int, name: str, value: float) -> None:
        c, window = self.cfg, self.seen.setdefault(name, deque(maxlen=self.cfg.spike_window))
        usual = statistics.median(window) if len(window) >= FEWEST else math.inf
        self.high[name] = self.high.get(name, 0) + 1 if value > c.spike_factor * usual else 0
        if self.high[name] == 0:
            window.append(value)  # spikes do not become the usual
        if self.high[name] < c.spike_patience:
            return
        self.high[name] = 0
        window.clear()  # if it stays there, that is the new level
        text = (
            f"{name} was above {c.spike_factor} times its usual {usual:.4g} in {c.spike_patience} lines of metrics in "
            f"a row ({value:.4g} at {step})"
        )
        if c.on_spike is OnSpike.stop:
            raise NumericalError(
                f"{text}; resume an earlier checkpoint with --resume and a lower learning rate, or set "
                "numbers.on_spike=log"
            )
        log.warning("LOSS SPIKE: %s", text)
