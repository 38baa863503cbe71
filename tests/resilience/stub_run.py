"""A stand-in for a training command under scripts/supervise.py: `stub_run.py FOLDER PLAN [flags]`.

PLAN has one word a start: an exit code, `save+CODE` (writes a new checkpoint first), `kill` (SIGKILL), `wait` (until
SIGTERM, then 75). What it was started with is appended to FOLDER/starts, the signals it noticed to FOLDER/signals.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main() -> None:
    folder, plan = Path(sys.argv[1]), sys.argv[2].split(",")
    run, starts = folder / "run", folder / "starts"
    number = len(starts.read_text().splitlines()) if starts.exists() else 0
    run.mkdir(exist_ok=True)
    Path(os.environ["RL_RUN_DIR_FILE"]).write_text(f"{run}\n")
    (run / "status.json").write_text(json.dumps({"state": "running", "exit_code": None, "step": 3}))
    with starts.open("a") as f:
        f.write(
            json.dumps({"argv": sys.argv[3:], "restarts": os.environ["RL_RESTARTS"], "time": time.monotonic()}) + "\n"
        )
    word = plan[number]
    if word.startswith("save+"):
        (run / f"checkpoint-{number + 1}").mkdir()
        (run / f"checkpoint-{number + 1}" / "manifest.json").write_text("{}")
    if word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if word == "wait":

        def noticed(number: int, _: object) -> None:
            with (folder / "signals").open("a") as f:
                f.write(signal.Signals(number).name + "\n")
            sys.exit(75)

        signal.signal(signal.SIGTERM, noticed)
        (folder / "waiting").touch()
        time.sleep(60)
    sys.exit(int(word.removeprefix("save+")))


if __name__ == "__main__":
    main()
