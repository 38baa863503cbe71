"""Low-poly copy of the Panda: small, complete, safe to generate from several processes."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trimesh

from rl.sims import asset_cache, panda_assets


def _faces(urdf: Path) -> dict[str, int]:
    glbs = sorted((urdf.parent / "franka_description" / "meshes" / "visual").glob("*.glb"))
    return {g.name: sum(len(m.faces) for m in trimesh.load_scene(g).geometry.values()) for g in glbs}


def test_low_poly_links_have_a_tenth_of_the_faces_and_the_same_size() -> None:
    full, low = panda_assets.panda_urdf(low_poly=False), panda_assets.panda_urdf(low_poly=True)
    before, after = _faces(full), _faces(low)
    assert set(before) == set(after) and len(after) == 10
    assert sum(after.values()) < 4000 < sum(before.values()) / 10
    for name in after:
        meshes = Path("franka_description") / "meshes" / "visual" / name
        a, b = (trimesh.load_scene(u.parent / meshes).bounds for u in (full, low))
        np.testing.assert_allclose(b, a, atol=0.01)  # m


def test_processes_that_generate_at_once_end_with_one_complete_copy(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys\nfrom rl.sims import asset_cache, panda_assets as p\n"
        "asset_cache.CACHE_DIR = pathlib.Path(sys.argv[1])\nprint(p.panda_urdf(True))\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    root = Path(__file__).resolve().parents[2]
    ranks = [subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    outputs = [rank.communicate(timeout=60)[0].strip() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0, 0]
    assert len(set(outputs)) == 1
    assert len(list(tmp_path.iterdir())) == 1  # nothing temporary is left
    assert len(_faces(Path(outputs[0]))) == 10


def test_a_half_written_copy_is_never_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(source: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(asset_cache, "CACHE_DIR", tmp_path)
    monkeypatch.setattr(panda_assets, "_decimate", killed)
    with pytest.raises(KeyboardInterrupt):
        panda_assets.panda_urdf(low_poly=True)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_robot_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(panda_assets.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="mani_skill"):
        panda_assets.panda_directory()
