"""Time and memory of the first command of the README, from a warm set-up: `python -m benchmarks.first_run`.

Target: 20 episodes of 50 steps end within 3 minutes, peak memory under 4 GB.
"""

import argparse
import json
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rl.training import provenance
from rl.training.atomic_io import write_atomic

REPO = Path(__file__).resolve().parent.parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num_episodes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    subprocess.run(["bash", str(REPO / "setup.sh")], check=True)
    with tempfile.TemporaryDirectory() as place:
        command = ["bash", str(REPO / "train.sh"), "teacher", "1", "1", "--num_episodes", str(args.num_episodes)]
        command += ["--seed", str(args.seed), "--output_dir", place + "/run"]
        start = time.monotonic()
        subprocess.run(command, check=True)
        seconds = time.monotonic() - start
    # train.sh replaces itself by the training process; KiB on Linux, the largest of the finished children.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024**2
    print(f"{args.num_episodes} episodes: {seconds:.0f} s (target 180), peak memory {peak:.2f} GiB (target 4 GB)")
    numbers = {
        "command": "python -m benchmarks.first_run " + shlex.join(sys.argv[1:]),
        "machine": provenance.machine(),
        "num_episodes": args.num_episodes,
        "seed": args.seed,
        "wall_seconds": round(seconds, 1),
        "peak_memory_gib": round(peak, 3),
    }
    if args.json is not None:
        write_atomic(args.json, json.dumps(numbers, indent=1) + "\n")


if __name__ == "__main__":
    main()
