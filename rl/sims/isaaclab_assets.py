"""Where Isaac Lab takes its robots from: NVIDIA's server, or our own ones where that is out of reach.

`.venv-isaaclab/bin/python -m rl.sims.isaaclab_assets` makes the folder with ours and prints where it is.

Isaac Lab reads ISAACSIM_ASSET_ROOT when it is imported, so `choose_asset_root` comes before that.
"""

import hashlib
import importlib.util
import logging
import math
import os
import re
import socket
import tempfile
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from rl.sims import asset_cache
from rl.sims.isaaclab_robots import ANT, CARTPOLE, GROUND_PLANE, PANDA, PANDA_STIFFNESS

log = logging.getLogger(__name__)
VARIABLE = "ISAACSIM_ASSET_ROOT"
# path under the asset root -> MJCF
ROBOTS = {
    "Isaac/IsaacLab/Robots/Classic/Cartpole/cartpole.usd": CARTPOLE,
    "Isaac/Robots/IsaacSim/Ant/ant_instanceable.usd": ANT,
    "Isaac/IsaacLab/Robots/FrankaEmika/franka_panda.usda": PANDA,
}
FLOOR = "Isaac/IsaacLab/Environments/Grid/default_ground_plane_checker_v1/default_ground_plane.usda"
TIMEOUT_S = 3.0


def choose_asset_root(given: str | None) -> str:
    """Sets ISAACSIM_ASSET_ROOT where it is needed and says in one sentence what is used.

    `given` (isaaclab.asset_root) wins, then the variable as it is, then the server, then our own robots. Raises
    ValueError for a folder that does not exist.
    """
    root = given_root(given)
    if root is not None:
        os.environ[VARIABLE] = root
        return f"robots from {given}"
    if os.environ.get(VARIABLE):
        return f"robots from {VARIABLE}={os.environ[VARIABLE]}"
    host = server()
    if host is not None and reachable(host):
        return f"robots from {host}"
    os.environ[VARIABLE] = str(offline_root())
    why = "NVIDIA's server is out of reach"
    if host is None:
        why = "the installed Isaac Lab does not say where NVIDIA's server is"
        log.warning("%s (no asset_root in apps/isaaclab.python.kit); isaaclab.asset_root chooses other robots", why)
    return f"robots of this project (rl/sims/isaaclab_robots.py): {why}, results differ"


def robots_of(root: str | None) -> str:
    """What a run notes about its robots; `root` is the asset root in use, None or empty for NVIDIA's server. Ours carry
    their version, wherever the folder is."""
    if not root:
        return "robots of NVIDIA's server"
    ours = offline_place()
    return f"robots of this project ({ours.name})" if Path(root).resolve() == ours.resolve() else f"robots in {root}"


def given_root(given: str | None) -> str | None:
    """Its whole path. Raises ValueError for a folder that does not exist."""
    if given is None:
        return None
    if not Path(given).is_dir():
        raise ValueError(f"isaaclab.asset_root: no folder '{given}'; leave it out for NVIDIA's server or our robots")
    return str(Path(given).resolve())


def server() -> str | None:
    """Host of the assets of the installed Isaac Lab, from its settings; None where they say nothing."""
    spec = importlib.util.find_spec("isaaclab")
    if spec is None or spec.origin is None:
        return None
    settings = Path(spec.origin).parent / "apps" / "isaaclab.python.kit"
    if not settings.is_file():
        return None
    found = re.search(r'asset_root\.(?:default|cloud)\s*=\s*"([^"]+)"', settings.read_text(encoding="utf-8"))
    return urlparse(found[1]).hostname if found else None


def reachable(host: str, port: int = 443) -> bool:
    """Answers within a few seconds."""
    try:
        socket.create_connection((host, port), TIMEOUT_S).close()
    except OSError:
        return False
    return True


def offline_place() -> Path:
    """Where `offline_root` is or would be."""
    text = "".join([*ROBOTS, *ROBOTS.values(), FLOOR, GROUND_PLANE, str(PANDA_STIFFNESS)])
    return asset_cache.CACHE_DIR / f"isaaclab-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def offline_root() -> Path:
    """Folder laid out like the server's, with our robots as USD; made once."""
    return asset_cache.build_once(offline_place().name, _fill)


def _fill(folder: Path) -> None:
    for place, mjcf in ROBOTS.items():
        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        _convert(mjcf, target)
    (folder / FLOOR).parent.mkdir(parents=True, exist_ok=True)
    (folder / FLOOR).write_text(GROUND_PLANE, encoding="utf-8")


def _convert(mjcf: str, target: Path) -> None:
    """MJCF text to one flat USD file."""
    from mujoco_usd_converter import Converter
    from pxr import Usd

    with tempfile.TemporaryDirectory() as work:
        source = Path(work) / f"{target.stem}.xml"
        source.write_text(mjcf, encoding="utf-8")
        layered = Converter().convert(str(source), str(Path(work) / "out"))
        stage = Usd.Stage.Open(layered.path)
        add_drives(stage, PANDA_STIFFNESS if mjcf is PANDA else {})
        stage.Flatten().Export(str(target))


def add_drives(stage: Any, stiffness: dict[str, float]) -> None:
    """Position drives for joints whose name begins with a key; SI units, of which USD wants degrees for angles."""
    from pxr import UsdPhysics

    for prim in stage.Traverse():
        for name, value in stiffness.items():
            if prim.IsA(UsdPhysics.Joint) and prim.GetName().startswith(name):
                turns = prim.IsA(UsdPhysics.RevoluteJoint)
                drive = UsdPhysics.DriveAPI.Apply(prim, "angular" if turns else "linear")
                drive.CreateStiffnessAttr(value * (math.pi / 180 if turns else 1.0))
                drive.CreateDampingAttr(0.1 * value * (math.pi / 180 if turns else 1.0))


if __name__ == "__main__":
    print(offline_root())
