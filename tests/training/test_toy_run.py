"""Stop, resume and repeat of a whole run on two ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

TOY = Path(__file__).with_name("toy_run.py")
REPO = Path(__file__).resolve().parents[2]


def launch(work: Path, run: str, stop_at: int, *flags: str) -> tuple[int, str]:
    """Exit code left by rank 0, and all output."""
    code_file = work / f"{run}.code"
    code_file.unlink(missing_ok=True)
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "RL_EXIT_CODE_FILE": str(code_file)}
    arguments = [str(work / run), "6", str(stop_at), str(work / f"{run}.hash"), *flags]
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(TOY),
        *arguments,
    ]
    done = subprocess.run(command, env=env, cwd=work, capture_output=True, text=True, timeout=60, check=False)
    return int(code_file.read_text()), done.stdout + done.stderr


def test_a_stopped_and_resumed_run_equals_a_straight_one_bit_for_bit(tmp_path: Path) -> None:
    """One test, because each launch costs seconds. Rank 1 alone gets SIGTERM at step 3; both ranks stop there."""
    code, output = launch(tmp_path, "straight", 0)
    assert code == 0, output
    code, output = launch(tmp_path, "stopped", 3)
    assert code == 75 and "stopped: checkpoint-3 saved" in output, output
    status = json.loads((tmp_path / "stopped" / "status.json").read_text())
    assert (status["state"], status["step"], status["exit_code"]) == ("preempted", 3, 75)
    code, output = launch(tmp_path, "stopped", 0, "--auto_resume")
    assert code == 0, output
    hashes = [(tmp_path / f"{run}.hash").read_text() for run in ("straight", "stopped")]
    assert hashes[0] == hashes[1]
    metrics = [(tmp_path / run / "episode_metrics.jsonl").read_text() for run in ("straight", "stopped")]
    assert metrics[0] == metrics[1] and metrics[0].count("\n") == 6
