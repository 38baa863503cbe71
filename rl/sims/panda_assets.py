"""Franka Panda for SAPIEN: where its files are, and a low-poly copy of its visual meshes for software rendering.

The URDF, meshes and SRDF are those of the installed `mani_skill` package (found without importing it). Rendering on a
CPU is vertex bound, so the low-poly copy decides the frame rate; it is generated once into the cache directory.
"""

import importlib.util
import shutil
from pathlib import Path

import numpy as np

from rl.sims.asset_cache import build_once

# Faces kept per link; small parts keep at least MIN_FACES.
FACES_PER_LINK = 240
MIN_FACES = 12
# Of the decimation: at the library's default of 7 the base loses 5 cm, below 4 it stops short of the target.
AGGRESSIVENESS = 4
VERSION = 3  # raise it when what is generated changes


def panda_directory() -> Path:
    """Folder of `panda_v2.urdf` inside the installed mani_skill. Raises ValueError when it is missing."""
    spec = importlib.util.find_spec("mani_skill")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError("package mani_skill (Panda model) is not installed: run `bash setup.sh`")
    path = Path(next(iter(spec.submodule_search_locations))) / "assets" / "robots" / "panda"
    if not (path / "panda_v2.urdf").is_file():
        raise ValueError(f"{path}/panda_v2.urdf is missing: reinstall mani_skill with `bash setup.sh`")
    return path


def panda_urdf(low_poly: bool) -> Path:
    """The URDF to load, its SRDF beside it; with `low_poly` the cached copy with decimated visuals."""
    folder = build_once(f"panda_lowpoly_{FACES_PER_LINK}_v{VERSION}", _fill) if low_poly else panda_directory()
    return folder / "panda_v2.urdf"


def _fill(directory: Path) -> None:
    source = panda_directory()
    meshes = Path("franka_description") / "meshes"
    shutil.copytree(source / meshes / "collision", directory / meshes / "collision")
    (directory / meshes / "visual").mkdir(parents=True)
    for glb in sorted((source / meshes / "visual").glob("*.glb")):
        _decimate(glb, directory / meshes / "visual" / glb.name)
    for name in ("panda_v2.srdf", "panda_v2.urdf"):
        shutil.copyfile(source / name, directory / name)


def _decimate(source: Path, target: Path) -> None:
    """Reduces every part of a GLB scene to its share of FACES_PER_LINK, keeping materials and node poses."""
    import fast_simplification
    import trimesh

    scene = trimesh.load_scene(source)
    total = sum(len(g.faces) for g in scene.geometry.values())
    for geometry in scene.geometry.values():
        geometry.merge_vertices(merge_norm=True, merge_tex=True)
        keep = max(MIN_FACES, round(FACES_PER_LINK * len(geometry.faces) / total))
        if keep >= len(geometry.faces):
            continue
        points = np.asarray(geometry.vertices, np.float32)
        low, high = points.min(0), points.max(0)
        points, faces = fast_simplification.simplify(
            points, np.asarray(geometry.faces, np.int32), target_count=keep, agg=AGGRESSIVENESS
        )
        points = np.clip(points, low, high)  # decimation may throw a vertex out of the part
        material = geometry.visual.material  # type: ignore[union-attr]
        geometry.vertices, geometry.faces = points, faces
        geometry.visual = trimesh.visual.TextureVisuals(material=material)
        # Written out because loaders otherwise compute flat normals, which triples the vertices.
        _ = geometry.vertex_normals
    target.write_bytes(bytes(scene.export(file_type="glb", include_normals=True)))
