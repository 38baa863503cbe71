"""The driver set-up's reading of apt's answers, and its record."""

import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType

import pytest

from rl.sims import vulkan_driver

SCRIPT = Path(__file__).resolve().parent.parent.parent / "scripts" / "install_vulkan.py"


@pytest.fixture
def install() -> ModuleType:
    spec = importlib.util.spec_from_file_location("install_vulkan", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("candidate", "enough"),
    [("22.3.6-1+deb12u1", False), ("24.2.8-1", False), ("24.3.0-1", True), ("25.0.7-2~bpo12+1", True),
     ("1:25.2.8-0ubuntu0.24.04.1", True), ("(none)", False)],
)  # fmt: skip
def test_mesa_is_recent_enough_from_24_3_on(install: ModuleType, candidate: str, enough: bool) -> None:
    assert install.recent_enough(f"mesa-vulkan-drivers:\n  Installed: (none)\n  Candidate: {candidate}\n") is enough


def test_the_record_is_applied_to_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "record.json"
    vulkan_driver.write_record(record, vulkan_driver.Driver("cpu", icd="/somewhere/lvp_icd.json"))
    monkeypatch.setenv(vulkan_driver.RECORD_VARIABLE, str(record))
    monkeypatch.delenv("VK_DRIVER_FILES", raising=False)
    monkeypatch.delenv("VK_ICD_FILENAMES", raising=False)
    driver = vulkan_driver.use_installed_driver()
    assert driver is not None and driver.renderer == "cpu"
    assert os.environ["VK_DRIVER_FILES"] == os.environ["VK_ICD_FILENAMES"] == "/somewhere/lvp_icd.json"
    assert json.loads(record.read_text())["preload"] == []


def test_a_driver_chosen_by_the_user_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = tmp_path / "record.json"
    vulkan_driver.write_record(record, vulkan_driver.Driver("cpu", icd="/somewhere/lvp_icd.json"))
    monkeypatch.setenv(vulkan_driver.RECORD_VARIABLE, str(record))
    monkeypatch.setenv("VK_DRIVER_FILES", "/mine.json")
    vulkan_driver.use_installed_driver()
    assert os.environ["VK_DRIVER_FILES"] == "/mine.json"


def test_a_library_that_cannot_be_loaded_is_an_error_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = tmp_path / "record.json"
    vulkan_driver.write_record(record, vulkan_driver.Driver(preload=[str(tmp_path / "libnothing.so")]))
    monkeypatch.setenv(vulkan_driver.RECORD_VARIABLE, str(record))
    with pytest.raises(OSError, match=r"libnothing.*setup\.sh"):
        vulkan_driver.use_installed_driver()
