"""Kills runs of every phase and algorithm at random moments: `python -m tests.resilience.soak --kills 200 --json FILE`.

A chain is one run: it is started, killed, started again with the same command line until it is done, and compared with
an uninterrupted run: all parameters, optimizer states, buffers, random generators and metrics, bit for bit. Most blows
are SIGKILL to one rank after a random number of CPU seconds; a quarter falls on a step of saving a checkpoint, a tenth
is SIGTERM. The soak itself can be stopped at any time: the same command goes on from what FILE says.
"""

import argparse
import json
import os
import platform
import random
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rl.training.atomic_io import write_atomic
from tests.resilience.cases import CASES
from tests.resilience.harness import Chain, Harness


def read(path: Path, seed: int, cases: list[str], ranks: list[int]) -> list[dict[str, Any]]:
    """Chains of an earlier start; none when the file is not there. ValueError when it was another soak."""
    if not path.is_file():
        return []
    known = json.loads(path.read_text(encoding="utf-8"))
    if (known["seed"], known["cases"], known["ranks"]) != (seed, cases, ranks):
        raise ValueError(f"{path} is of another --seed, --cases or --ranks; give the same, or another file")
    chains: list[dict[str, Any]] = known["log"]
    return chains


def summary(chains: list[dict[str, Any]]) -> dict[str, Any]:
    names = sorted({c["case"] for c in chains})
    return {
        "kills": sum(len(c["blows"]) for c in chains),
        "chains": len(chains),
        "chains_as_they_should_be": sum(not c["complaints"] for c in chains),
        "cpu_seconds": round(sum(c["cpu_s"] for c in chains), 1),
        "kills_by_case": {name: sum(len(c["blows"]) for c in chains if c["case"] == name) for name in names},
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="soak", description=__doc__, allow_abbrev=False)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--chain", type=int, default=5, help="kills of one run at most (default 5)")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--cases", default=",".join(CASES), help=f"default: {','.join(CASES)}")
    parser.add_argument("--ranks", default="1,2", help="numbers of processes (default 1,2)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("outputs/soak"), help="scratch directory")
    args = parser.parse_args(argv)
    cases, ranks = args.cases.split(","), [int(r) for r in args.ranks.split(",")]
    chains = read(args.json, args.seed, cases, ranks)
    harness = Harness(args.work.resolve())
    kinds = [(case, count) for case in cases for count in ranks]
    while summary(chains)["kills"] < args.kills:
        number = len(chains)
        case, count = kinds[number % len(kinds)]
        left = args.kills - summary(chains)["kills"]
        begun = time.monotonic()
        rng = random.Random(f"{args.seed}-{number}")
        chain: Chain = harness.chain(case, count, min(args.chain, left), rng)
        chains.append(asdict(chain))
        machine = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
        result = {
            "command": f"python -m tests.resilience.soak --kills {args.kills} --seed {args.seed}", "machine": machine,
            "seed": args.seed, "cases": cases, "ranks": ranks, **summary(chains), "log": chains,
        }  # fmt: skip
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(args.json, json.dumps(result, indent=1) + "\n")
        verdict = "; ".join(chain.complaints) or "as uninterrupted"
        print(
            f"chain {number}: {case} on {count}, {len(chain.blows)} kills, {chain.cpu_s:.0f} CPU s, "
            f"{time.monotonic() - begun:.0f} s: {verdict}", flush=True,
        )  # fmt: skip
    total = summary(chains)
    print(json.dumps(total))
    return 0 if total["chains"] == total["chains_as_they_should_be"] else 1


if __name__ == "__main__":
    sys.exit(main())
