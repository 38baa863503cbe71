"""Processes and files of the commands under benchmarks/ that train and measure."""

import json
from pathlib import Path

import pytest

from benchmarks import runs
from rl.training import provenance


def test_a_module_that_fails_ends_the_command_with_its_exit_code(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text("[1]")
    bad.write_text("[1")
    runs.start("json.tool", str(good), str(tmp_path / "pretty.json"))
    assert runs.read(tmp_path / "pretty.json") == [1]
    with pytest.raises(SystemExit) as stopped:
        runs.start("json.tool", str(bad))
    assert stopped.value.code == 1


def test_numbers_replace_a_file_only_when_they_are_complete(tmp_path: Path) -> None:
    place = tmp_path / "new" / "numbers.json"
    runs.write(place, {"a": 1})
    with pytest.raises(TypeError):
        runs.write(place, {"a": object()})
    assert runs.read(place) == {"a": 1} and [p.name for p in place.parent.iterdir()] == ["numbers.json"]


def test_a_table_is_written_beside_its_numbers_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs.publish(tmp_path / "t.md", tmp_path / "t.json", "| a |\n", {"runs": [2]})
    assert (tmp_path / "t.md").read_text() == "| a |\n" and capsys.readouterr().out == "| a |\n\n"
    assert json.loads((tmp_path / "t.json").read_text()) == {"code_commit": provenance.git_commit(), "runs": [2]}
