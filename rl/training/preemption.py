"""Stop signals: SIGTERM, SIGINT and SIGUSR1 raise a flag, the training loop acts on it at a step boundary.

The handler does nothing else (no I/O, no locks, no collectives). All ranks agree with `ParallelContext.any_rank`.
"""

import ctypes
import faulthandler
import os
import signal
import time
from types import FrameType
from typing import Any

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
_PR_SET_PDEATHSIG = 1


class StopFlag:
    """`install()`, then ask `stop_requested()` at every step boundary; a second signal ends the process at once.

    Ctrl+C in a terminal reaches a rank twice, from the terminal and from the launcher that forwards it, so signals
    within `repeat_after_s` of the first one count as the same request.
    """

    def __init__(self, repeat_after_s: float = 2.0) -> None:
        self._repeat_after_s = repeat_after_s
        self._first_at: float | None = None
        self._signum: int | None = None
        self._previous: dict[int, Any] = {}

    def install(self) -> None:
        """Main thread only. Also makes SIGUSR2 print the stack of every thread to stderr, for hangs, and lets a rank
        stop as by SIGTERM when its launcher is killed: nobody would end it any more."""
        for s in STOP_SIGNALS:
            self._previous[s] = signal.signal(s, self._on_signal)
        faulthandler.register(signal.SIGUSR2, all_threads=True)
        if "LOCAL_RANK" in os.environ:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    def restore(self) -> None:
        """Puts the handlers from before `install()` back."""
        for s, handler in self._previous.items():
            signal.signal(s, handler)
        self._previous.clear()

    def stop_requested(self) -> bool:
        return self._signum is not None

    @property
    def signal_name(self) -> str | None:
        """Name of the first signal received, e.g. "SIGTERM"."""
        return None if self._signum is None else signal.Signals(self._signum).name

    def _on_signal(self, signum: int, _frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first_at is None:
            self._first_at, self._signum = now, signum
        elif now - self._first_at >= self._repeat_after_s:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
