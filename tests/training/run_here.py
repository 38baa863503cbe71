"""An entry point in this process; needs no simulator by itself."""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from accelerate.state import AcceleratorState, GradientState, PartialState

from rl.training import cli


@contextmanager
def undisturbed() -> Iterator[None]:
    """Gives back what a run changes in its process: signal handlers, logging, Accelerate's shared state."""
    signals = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    for handler in handlers:
        root.removeHandler(handler)
    try:
        yield
    finally:
        for s, handler in signals.items():
            signal.signal(s, handler)
        for handler in list(root.handlers):
            root.removeHandler(handler)
            handler.close()
        for handler in handlers:
            root.addHandler(handler)
        root.setLevel(level)
        for name in ("rl", "f1_vla", "kernels"):
            logging.getLogger(name).setLevel(logging.NOTSET)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        PartialState._reset_state()


def run_here(entry: Callable[[cli.Args], Any], argv: list[str], phase: str = "teacher") -> int:
    """Exit code of the entry point in this process; pytest's capfd has its output."""
    with undisturbed(), pytest.raises(SystemExit) as stop:
        cli.run_main(phase, entry, argv)
    code = stop.value.code
    assert isinstance(code, int)
    return code
