"""Progress on the console: a bar on a terminal, plain lines in a log file. Rank 0 only."""

import sys
import time
from collections.abc import Mapping
from typing import TextIO

from tqdm import tqdm


def duration(seconds: float) -> str:
    """Hours, minutes and seconds as h:mm:ss."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


class Progress:
    """`update(done, env_steps, {"loss": ...})` after each unit of work; `done` counts from 1 and survives a resume."""

    def __init__(
        self, total: int, initial: int = 0, unit: str = "episode", log_every: int = 10, enabled: bool = True,
        stream: TextIO | None = None,
    ) -> None:  # fmt: skip
        self._total, self._initial, self._unit = total, initial, unit
        self._log_every, self._enabled = log_every, enabled
        self._stream = sys.stderr if stream is None else stream
        self._start = time.monotonic()
        self._next_line = (initial // log_every + 1) * log_every
        self._bar: tqdm | None = None
        if enabled and self._stream.isatty():
            self._bar = tqdm(total=total, initial=initial, unit=unit, file=self._stream, dynamic_ncols=True)

    def update(self, done: int, env_steps: int, metrics: Mapping[str, float]) -> None:
        """`env_steps`: environment steps since this process started."""
        if not self._enabled:
            return
        elapsed = max(time.monotonic() - self._start, 1e-9)
        shown = {"steps/s": f"{env_steps / elapsed:.1f}", **{k: f"{v:.4g}" for k, v in metrics.items()}}
        if self._bar is not None:
            self._bar.set_postfix(shown, refresh=False)
            self._bar.update(done - self._bar.n)
        elif done >= self._next_line or done >= self._total:
            self._next_line = (done // self._log_every + 1) * self._log_every
            left = max(self._total - done, 0)  # the last unit may overshoot
            remaining = elapsed / max(done - self._initial, 1) * left
            values = "  ".join(f"{k} {v}" for k, v in shown.items())
            line = f"{self._unit} {done}/{self._total}  {values}  ETA {duration(remaining)}"
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
