"""What commands share that train and evaluate in processes of their own and put together what those measured."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from rl.training.provenance import git_commit

REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / "docs" / "results"
# What every row of numbers names, of a benchmark that measures speed alone.
NO_EPISODES: dict[str, None] = {"success_rate": None, "success_interval": None, "mean_return": None}


def start(module: str, *arguments: str) -> None:
    """Runs a module of the repository as a process; ends this one with its exit code when that is not 0."""
    print("---", module, *arguments, flush=True)
    done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=REPO, check=False)
    if done.returncode != 0:
        raise SystemExit(done.returncode)


def parsed(parser: argparse.ArgumentParser, name: str) -> tuple[argparse.Namespace, Path]:
    """The arguments, and where the numbers go: `--json`, by default docs/results/NAME.json; a table lies beside it."""
    place = RESULTS / f"{name}.json"
    parser.add_argument("--json", type=Path, default=place, help="numbers; the table lies beside them as .md")
    args = parser.parse_args()
    place = args.json
    del args.json  # what is left is kept in the results, which name no path of a machine
    return args, place


def read(place: Path) -> Any:
    return json.loads(place.read_text(encoding="utf-8"))


def write(place: Path, data: Any) -> None:
    """The file is there when it is complete, and not before."""
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_suffix(".tmp")
    partial.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    partial.replace(place)


def publish(table: Path, json_file: Path, text: str, data: dict[str, Any]) -> None:
    """Writes a table (markdown) and the numbers behind it with the commit of the code, and prints the table."""
    write(json_file, {"code_commit": git_commit(), **data})
    table.write_text(text, encoding="utf-8")
    print(text)
