"""Quieting libraries changes levels, nothing else."""

import logging
import sys

from rl.suppress_logs import suppress_logs


def test_noisy_loggers_keep_their_warnings_and_lose_the_rest() -> None:
    out, err = sys.stdout, sys.stderr
    logging.getLogger("imageio").setLevel(logging.ERROR)
    logging.getLogger("trimesh").setLevel(logging.DEBUG)
    suppress_logs()
    assert logging.getLogger("trimesh").level == logging.WARNING
    assert logging.getLogger("imageio").level == logging.ERROR  # never lowered
    assert sys.stdout is out and sys.stderr is err
