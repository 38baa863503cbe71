"""Which device draws, and what is said when none does."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import sapien

from rl.sims import rendering


def test_no_vulkan_device_is_one_clear_error_naming_the_doctor() -> None:
    code = (
        "from rl.config import EnvironmentConfig\nfrom rl.sims import make_simulator\n"
        "try:\n    make_simulator(EnvironmentConfig())\nexcept ValueError as e:\n    print('VALUE ERROR', e)\n"
    )
    env = {**os.environ, "VK_DRIVER_FILES": "/nonexistent.json", "VK_ICD_FILENAMES": "/nonexistent.json"}
    root = Path(__file__).resolve().parents[2]
    output = subprocess.run([sys.executable, "-c", code], cwd=root, env=env, capture_output=True, text=True).stdout
    assert "VALUE ERROR no Vulkan device can render" in output
    assert "bash train.sh doctor" in output


def test_the_software_renderer_is_shared_by_the_process() -> None:
    device = rendering.shared_device(None)
    assert rendering.shared_device(None) is device


@pytest.mark.parametrize(("eye", "target"), [((1.0, 0.5, 0.9), (0.3, 0.0, 0.1)), ((0.0, -2.0, 0.5), (0.0, 0.0, 0.5))])
def test_a_camera_looks_at_its_target_upright(eye: tuple[float, ...], target: tuple[float, ...]) -> None:
    matrix = rendering.look_at(eye, target).to_transformation_matrix()
    forward = np.subtract(target, eye) / np.linalg.norm(np.subtract(target, eye))
    np.testing.assert_allclose(matrix[:3, 0], forward, atol=1e-5)
    assert abs(matrix[2, 1]) < 1e-6 and matrix[2, 2] > 0  # left is level, up points up
    assert isinstance(rendering.look_at(eye, target), sapien.Pose)
