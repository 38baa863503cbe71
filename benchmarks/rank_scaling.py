"""Two ranks against one: `python -m benchmarks.rank_scaling [--json FILE] [--rounds N]`.

Phase 1 as it is launched, one thread and one simulator a rank, the same work a rank. A short and a long run of each are
timed and their difference is divided by the episodes between them, so that starting up does not count. Rounds take
turns.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from rl.training.provenance import machine

REPO = Path(__file__).resolve().parents[1]


def seconds(ranks: int, episodes: int, place: Path, overrides: list[str]) -> float:
    """Wall time of a whole run of `episodes` a rank."""
    command = [
        "bash", "train.sh", "teacher", str(ranks), "1", "--num_episodes", str(ranks * episodes), "--output_dir",
        str(place / f"{ranks}_{episodes}_{time.monotonic_ns()}"), "--device", "cpu", "training.num_threads=1",
        "training.save_every=1000000", "training.video_save_every=0", "training.sample_save_every=0", *overrides,
    ]  # fmt: skip
    start = time.monotonic()
    subprocess.run(command, cwd=REPO, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)
    return time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--short", type=int, default=4, help="episodes a rank")
    parser.add_argument("--long", type=int, default=12)
    parser.add_argument("--json", type=Path, default=None)
    parser.add_argument("overrides", nargs="*", help="block.key=value for every run")
    args = parser.parse_args()
    rates: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as place:
        for _ in range(args.rounds):
            for ranks, found in rates.items():
                times = [seconds(ranks, n, Path(place), args.overrides) for n in (args.short, args.long)]
                found.append(ranks * (args.long - args.short) / (times[1] - times[0]))
                print(f"{ranks} rank(s): {found[-1]:.3f} episodes/s", flush=True)
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    data: dict[str, Any] = {
        "command": "python -m benchmarks.rank_scaling", "arguments": vars(args) | {"json": str(args.json)},
        "machine": machine(), "load": os.getloadavg()[0], "episodes_per_s": rates, "ratios": ratios,
        "ratio": median(ratios),
    }  # fmt: skip
    print(f"two ranks / one: {data['ratio']:.2f} ({', '.join(f'{r:.2f}' for r in ratios)})")
    if args.json is not None:
        args.json.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
