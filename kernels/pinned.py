"""What was measured on a machine and is pinned from then on, so that runs repeat.

`pinned.json` beside this file, or the file that F1_ATTENTION_PINS names, holds for each kind of call the backend that
`auto` takes (written by `python -m kernels.benchmark --pin FILE`), and tiles of our Triton kernels in place of those of
triton_tiles (`python -m kernels.autotune --pin FILE`). Nothing is tuned while a run is going.
"""

import json
import os
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

FILE = "F1_ATTENTION_PINS"  # environment variable
SHIPPED = Path(__file__).with_name("pinned.json")


@dataclass(frozen=True)
class Pin:
    """backend, and why: the measurement in words."""

    backend: str
    why: str


def pin_file() -> Path:
    return Path(os.environ[FILE]) if FILE in os.environ else SHIPPED


@lru_cache(maxsize=8)
def read(file: Path) -> dict[str, Any]:
    """{"choices": kind -> backend and why, "tiles": architecture -> head size -> kernel -> m, n, warps, stages}.

    ValueError when the file is missing or is none."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        choices = {kind: Pin(**pin) for kind, pin in found["choices"].items()}
        return {"choices": choices, "tiles": found["tiles"]}
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as e:
        raise ValueError(
            f"{file} is no file of pinned attention choices ({type(e).__name__} {e}); unset {FILE}, or make it with "
            "python -m kernels.benchmark --pin FILE"
        ) from e


def choice(kind: str) -> Pin | None:
    """The pinned backend for a kind of call, by its text."""
    return read(pin_file())["choices"].get(kind)


def tile(capability: int, padded_head: int, kernel: str) -> tuple[int, int, int, int] | None:
    """m, n, warps and stages pinned for exactly this architecture (90 for 9.0), or None."""
    found = read(pin_file())["tiles"].get(f"sm_{capability}", {}).get(str(padded_head), {}).get(kernel)
    return None if found is None else tuple(found)


def write(
    file: Path, choices: dict[str, Pin] | None = None, tiles: dict[str, dict[str, dict[str, list[int]]]] | None = None
) -> None:
    """Adds to the file, which need not exist; entries of other machines stay."""
    old = read(file) if file.is_file() else {"choices": {}, "tiles": {}}
    merged = {kind: asdict(pin) for kind, pin in sorted((old["choices"] | (choices or {})).items())}
    for arch, heads in (tiles or {}).items():
        for head, kernels in heads.items():
            old["tiles"].setdefault(arch, {}).setdefault(head, {}).update(kernels)
    text = json.dumps({"choices": merged, "tiles": old["tiles"]}, indent=1)
    file.write_text(text + "\n", encoding="utf-8")
    read.cache_clear()
