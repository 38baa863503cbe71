"""The full-size benchmark runs end to end on the smallest model."""

import json

import pytest

from benchmarks import f1_full_size


def test_smallest_model_goes_through_every_measurement(tmp_path):
    argv = ["--model_config", "debug_test", "--device", "cpu", "--batch", "1", "--window", "1", "--rows", "1", "2"]
    files = ["--json", str(tmp_path / "x.json"), "--markdown", str(tmp_path / "x.md")]
    f1_full_size.main([*argv, "--repeats", "1", "--modes", "eager", *files])
    result = json.loads((tmp_path / "x.json").read_text())
    assert result["update"]["update_s"] > result["update"]["floor_s"] > 0
    assert [r["rows"] for r in result["sampling"]] == [1, 2]
    assert all(r["eager_s"] > r["floor_s"] > 0 and r["encoding_s"] > 0 for r in result["sampling"])
    assert "--model_config debug_test" in (tmp_path / "x.md").read_text()


def test_full_size_is_refused_on_a_cpu():
    with pytest.raises(SystemExit, match="f1_base needs a GPU"):
        f1_full_size.main(["--device", "cpu"])
