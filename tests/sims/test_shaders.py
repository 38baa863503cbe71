"""The shader without an environment map draws what SAPIEN's own draws."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rl.config import EnvironmentConfig
from rl.sims import asset_cache, make_simulator, shaders


def test_pictures_equal_those_of_the_shipped_shader_to_the_last_bit(tmp_path: Path) -> None:
    # The shader is chosen once per process, so the shipped one draws in another process.
    code = (
        "import sys, numpy as np, sapien\nfrom rl.sims import rendering, make_simulator\n"
        "from rl.config import EnvironmentConfig\n"
        "rendering.camera_shader_directory = lambda: 'minimal'\n"
        "sim = make_simulator(EnvironmentConfig(), seed=11)\nsim.reset(0)\n"
        "np.save(sys.argv[1], np.stack([sim.render('head'), sim.render('wrist')]))\n"
    )
    file = tmp_path / "shipped.npy"
    subprocess.run([sys.executable, "-c", code, str(file)], cwd=Path(__file__).resolve().parents[2], check=True)
    sim = make_simulator(EnvironmentConfig(), seed=11)
    sim.reset(0)
    np.testing.assert_array_equal(np.stack([sim.render("head"), sim.render("wrist")]), np.load(file))
    sim.close()


def test_a_shader_that_differs_from_the_known_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asset_cache, "CACHE_DIR", tmp_path)
    monkeypatch.setitem(shaders.EDITS, "gbuffer.frag", {"a line of another version": ""})
    with pytest.raises(ValueError, match=r"gbuffer\.frag.*setup\.sh"):
        shaders.camera_shader_directory()
    assert list(tmp_path.iterdir()) == []
