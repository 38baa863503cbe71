"""torch's launcher without its traceback when a rank ends with an exit code of its own choosing.

The ranks have said what was wrong in one line (`rl.training.cli`); the launcher's report would bury it. Rank 0 leaves
its code in $RL_EXIT_CODE_FILE; where it could not (a crash, a killed rank) the report is printed as usual.
"""

import ctypes
import logging
import os
import signal
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import parse_args, run

EXPECTED = (3, 4, 75)  # not finite, wrong input, stopped by a signal


class _Quiet(logging.Filter):
    """Holds back "failed (exitcode: N)" of ranks that ended as expected."""

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(f"exitcode: {code})" in record.getMessage() for code in EXPECTED)


def main() -> int:
    # When the shell that started this is killed, the ranks are to save and end: PR_SET_PDEATHSIG is 1.
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    for name in ("torch.distributed.elastic.multiprocessing.api", "torch.distributed.elastic.agent.server.api"):
        logging.getLogger(name).addFilter(_Quiet())
    try:
        run(parse_args(sys.argv[1:]))
    except SignalException:  # passed on to the ranks, whose code counts
        return 1
    except ChildFailedError as e:
        code = Path(os.environ["RL_EXIT_CODE_FILE"]).read_text(encoding="utf-8").strip()
        if not code.isdigit() or int(code) not in EXPECTED:
            print(e, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
