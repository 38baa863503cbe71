"""How a process that was one of several ranks ends.

Gloo's worker thread frees a finished operation under the lock of its group and needs the GIL for that. The group's
destructor takes the same lock while holding the GIL: freed right after the last collective (with the DDP wrapper that
owns the group), the two wait for each other for ever. And a worker that asks for the GIL while the interpreter is torn
down is unwound by it, which aborts the process whatever the run had to say. So a group that was left is never freed,
and a process that left one ends without tearing the interpreter down.
"""

import logging
import os
import sys
from typing import Any, NoReturn

_left: list[Any] = []


def keep(group: Any) -> None:
    """Keeps a group that this process leaves."""
    _left.append(group)


def end_process(code: int) -> NoReturn:
    """Ends this process with `code`; logs and output are flushed."""
    if not _left:
        sys.exit(code)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
