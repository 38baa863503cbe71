"""Isaac Sim around a task of Isaac Lab 2.3, which cannot start without it (3.0 can).

Written against the source of Isaac Lab 2.3.2 and NOT RUN: Isaac Sim needs an RTX GPU. It has to be started before
anything else of Isaac Lab is imported, and a process can start it once.
"""

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# Isaac Lab's handlers close Isaac Sim and with it the process, before a checkpoint could be written.
TAKEN = (signal.SIGINT, signal.SIGTERM, signal.SIGABRT, signal.SIGSEGV)
ASSETS = "/persistent/isaac/asset_root/cloud"  # Isaac Sim's setting of where robots come from


def start(device: str, asset_root: str | None) -> Callable[[], None]:
    """Starts it without a window; returns what closes it. `asset_root`: folder of robots, None for NVIDIA's server."""
    from isaaclab.app import AppLauncher

    with _ours_alone([] if asset_root is None else [f"--{ASSETS}={asset_root}"]):
        # A fast shutdown ends the process with 0, whatever had failed.
        app = AppLauncher({"headless": True, "device": device, "fast_shutdown": False}).app
    close: Callable[[], None] = app.close
    return close


@contextmanager
def _ours_alone(settings: list[str]) -> Iterator[None]:
    """Our signal handlers stay, and Isaac Sim reads `settings` and not our command line."""
    handlers, argv = {s: signal.getsignal(s) for s in TAKEN}, sys.argv
    sys.argv = [*argv[:1], *settings]
    try:
        yield
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
