"""Pinned choices and tiles."""

import json

import pytest
import torch

from kernels import dispatch, fa4, pinned
from kernels.triton_tiles import Tile, tile_for

KIND = dispatch.Kind(torch.device("cuda"), 90, torch.bfloat16, 256, True, False)


@pytest.fixture
def pins(tmp_path, monkeypatch):
    file = tmp_path / "pins.json"
    monkeypatch.setenv(pinned.FILE, str(file))
    return file


def test_shipped_file_is_readable():
    assert set(pinned.read(pinned.SHIPPED)) == {"choices", "tiles"}


def test_auto_takes_the_pinned_backend_and_says_when_it_cannot(pins, monkeypatch):
    pinned.write(pins, choices={str(KIND): pinned.Pin("fa4", "1.00 x the best")})
    monkeypatch.setattr(fa4, "missing_packages", list)
    assert dispatch.choose("auto", KIND) == dispatch.Choice("fa4", "pinned: 1.00 x the best")
    monkeypatch.setattr(fa4, "missing_packages", lambda: ["flash-attn-4"])
    found = dispatch.choose("auto", KIND)
    assert found.backend == "sdpa" and "pinned fa4 cannot run (FlashAttention 4 not available" in found.reason
    assert dispatch.choose("reference", KIND).backend == "reference"  # the configuration is stronger


def test_pinned_tile_replaces_that_of_the_table_for_its_architecture_only(pins):
    pinned.write(pins, tiles={"sm_90": {"128": {"forward": [64, 32, 4, 2]}}})
    assert tile_for("forward", 90, 72, 2) == Tile(64, 32, 4, 2)
    assert tile_for("dq", 90, 72, 2) == Tile(128, 64, 8, 2)
    assert tile_for("forward", 89, 72, 2) == Tile(64, 32, 8, 2)
    assert tile_for("forward", 100, 72, 2) == Tile(128, 64, 8, 3)


def test_writing_keeps_what_other_machines_pinned(pins):
    pinned.write(pins, choices={"a": pinned.Pin("sdpa", "x")}, tiles={"sm_90": {"64": {"dq": [1, 2, 3, 4]}}})
    pinned.write(pins, choices={"b": pinned.Pin("flex", "y")}, tiles={"sm_90": {"64": {"forward": [5, 6, 7, 8]}}})
    found = json.loads(pins.read_text())
    assert found["choices"] == {"a": {"backend": "sdpa", "why": "x"}, "b": {"backend": "flex", "why": "y"}}
    assert found["tiles"] == {"sm_90": {"64": {"dq": [1, 2, 3, 4], "forward": [5, 6, 7, 8]}}}


@pytest.mark.parametrize("text", ["{}", "no json", '{"choices": {"a": {"backend": "sdpa"}}, "tiles": {}}', None])
def test_file_that_is_none_is_refused_with_the_remedy(pins, text):
    if text is not None:
        pins.write_text(text)
    with pytest.raises(ValueError, match=r"no file of pinned attention choices .*kernels\.benchmark --pin"):
        dispatch.choose("auto", KIND)
