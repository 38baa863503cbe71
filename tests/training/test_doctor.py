"""Doctor: its findings, and that a broken renderer is reported instead of suffered."""

import json
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import pytest

from rl.sims import vulkan_driver
from rl.training import doctor


def probe(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_a_hanging_renderer_is_reported(tmp_path: Path) -> None:
    check = doctor.check_render(tmp_path / "a.png", 0.3, probe("import time; time.sleep(60)"))
    assert check.status == "FAIL"
    assert "hangs" in check.found


def test_a_crashing_renderer_is_reported(tmp_path: Path) -> None:
    check = doctor.check_render(tmp_path / "a.png", 30, probe("import os; os.kill(os.getpid(), 11)"))
    assert check.status == "FAIL"
    assert "signal 11" in check.found


def test_a_missing_driver_is_reported_with_its_reason_and_remedy(tmp_path: Path) -> None:
    check = doctor.check_render(tmp_path / "a.png", 30, probe("import sys; sys.exit('no device')"))
    assert (check.status, check.found) == ("FAIL", "no device")
    assert "setup.sh" in check.remedy


def test_an_unwritable_output_folder_fails(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file where the folder should be")
    check = doctor.check_writable(tmp_path / "outputs")
    assert check.status == "FAIL"


def test_a_missing_package_fails_and_another_version_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    assert doctor.check_package("no_such_package_of_ours").status == "FAIL"
    monkeypatch.setattr(doctor.importlib.metadata, "version", lambda _: "0.0.1")
    assert doctor.check_package("peft").status == "WARN"
    assert doctor.check_package("torch").status == "OK"  # installed apart, several versions are fine


def test_an_unknown_flag_is_a_configuration_error() -> None:
    assert doctor.main(["--nonsense"]) == 4
    assert doctor.main(["--timeout", "soon"]) == 4


@pytest.mark.skipif(not vulkan_driver.record_path().is_file(), reason="no Vulkan driver was set up here")
def test_doctor_finds_this_machine_ready_and_leaves_a_test_frame(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rl.training.doctor", "--json", "found.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    found = {c["name"]: c for c in json.loads((tmp_path / "found.json").read_text())}
    assert done.returncode == 0, done.stdout
    assert {"python", "torch", "sapien", "memory", "disk", "outputs", "CUDA", "rendering", "ffmpeg"} <= set(found)
    assert found["rendering"]["status"] == "OK"
    assert iio.imread(tmp_path / "outputs" / "doctor.png").shape == (64, 64, 3)
