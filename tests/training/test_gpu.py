"""Which device a rank draws on, from what the launcher and the user put into the environment."""

import os
from types import SimpleNamespace

import pytest
import torch

from rl.training.gpu import RENDER_VARIABLES, get_physical_gpu_id, setup_sapien_gpu


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "LOCAL_RANK", *RENDER_VARIABLES):
        monkeypatch.setenv(name, "to be removed")  # so that the test's own changes are undone, too
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("visible", "local_rank", "expected"),
    [
        (None, None, 0),
        (None, "3", 3),
        ("2", None, 2),
        ("4,7", "1", 7),
        (" 4 , 7 ", "1", 7),
        ("GPU-8f2c,GPU-77aa", "1", "GPU-77aa"),
        ("MIG-3d5e/1/0", "0", "MIG-3d5e/1/0"),
        ("0,GPU-77aa", "0", 0),
    ],
)
def test_the_entry_of_the_visible_devices_that_belongs_to_the_rank(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, local_rank: str | None, expected: int | str
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if local_rank is not None:
        monkeypatch.setenv("LOCAL_RANK", local_rank)
    assert get_physical_gpu_id() == expected


def test_an_accelerator_knows_its_rank_better_than_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6,7")
    assert get_physical_gpu_id(SimpleNamespace(local_process_index=2)) == 7


@pytest.mark.parametrize("visible", ["0,1", ""])
def test_more_ranks_than_visible_devices_is_an_error(monkeypatch: pytest.MonkeyPatch, visible: str) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(ValueError, match=r"local rank 2 has no GPU: .* start fewer processes"):
        get_physical_gpu_id()


def test_the_render_variables_name_the_physical_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,3")
    monkeypatch.setenv("LOCAL_RANK", "1")
    setup_sapien_gpu()
    assert [os.environ[name] for name in RENDER_VARIABLES] == ["3", "3", "3"]
    setup_sapien_gpu("GPU-77aa")
    assert [os.environ[name] for name in RENDER_VARIABLES] == ["GPU-77aa"] * 3


@pytest.mark.parametrize("visible", [None, ""])
def test_without_a_gpu_nothing_is_set(monkeypatch: pytest.MonkeyPatch, visible: str | None) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: visible is not None)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    setup_sapien_gpu()
    assert not any(name in os.environ for name in RENDER_VARIABLES)
