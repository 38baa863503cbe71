"""A checkout with the lists of a part and the environment that was set up from them."""

import shutil
import subprocess
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]


def set_up(repo: Path, part: str) -> None:
    """`repo` gets the scripts, a list of packages for `part` and the stamp that setup.sh would leave."""
    for name in ("scripts", "requirements", f".venv-{part}"):
        (repo / name).mkdir(exist_ok=True)
    for script in ("setup_parts.sh", "part_python.sh"):
        shutil.copy(REPO / "scripts" / script, repo / "scripts")
    (repo / "requirements" / f"{part}.in").write_text(f"{part}==3.0.0\n")
    code = f'REPO="{repo}"; source "{REPO}/scripts/part_python.sh"; part_fingerprint {part}'
    stamp = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True, timeout=30).stdout
    (repo / f".venv-{part}" / ".setup-stamp").write_text(stamp)


def change_list(repo: Path, part: str) -> None:
    (repo / "requirements" / f"{part}.in").write_text(f"{part}==3.1.0\n")
