"""`train.sh tokenizer` with the smallest sizes."""

import json
from pathlib import Path

import pytest

from f1_vla.tokenizer_io import load_tokenizer, read_header
from rl.config import load_model
from rl.training.train_tokenizer import main
from tests.training.run_here import run_here

SETTINGS = [
    "--model_config", "debug_test", "--device", "cpu", "--seed", "3", "training.num_threads=1",
    "training.steps_per_episode=8", "tokenizer.frames=30", "tokenizer.held_out_frames=6", "tokenizer.steps=6",
    "tokenizer.autoencoder_steps=3", "tokenizer.batch_size=4", "environment.num_objects=1",
]  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("tokenizer_training")
    argv = [*SETTINGS, "--output_dir", str(place), "--json", str(place / "numbers.json")]
    assert run_here(main, argv, "tokenizer") == 0
    return place


def test_the_file_fits_the_preset_and_tells_how_it_was_made(made: Path) -> None:
    path = made / "tokenizer_debug_test.safetensors"
    load_tokenizer(path, load_model("debug_test").tokenizer)
    _, provenance = read_header(path)
    assert provenance["seed"] == 3 and str(provenance["command"]).startswith("bash train.sh tokenizer ")
    assert {"psnr_db", "unquantised_psnr_db", "codes_used", "perplexity", "parameters"} <= provenance.keys()
    assert 0 < float(str(provenance["codes_used"])) <= 1 and float(str(provenance["psnr_db"])) > 0
    assert json.loads((made / "numbers.json").read_text()) == provenance


def test_an_existing_file_is_kept_unless_told_otherwise(made: Path, capfd: pytest.CaptureFixture) -> None:
    path = made / "tokenizer_debug_test.safetensors"
    before = path.read_bytes()
    assert run_here(main, [*SETTINGS, "--output_dir", str(made)], "tokenizer") == 4
    assert "exists; replace it with --overwrite" in capfd.readouterr().err and path.read_bytes() == before


def test_wrong_sizes_and_places_are_refused_before_anything_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    argv = [*SETTINGS, "--output_dir", str(tmp_path / "out"), "environment.wm_size=128"]
    assert run_here(main, argv, "tokenizer") == 4
    assert "set environment.wm_size=64" in capfd.readouterr().err and not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    assert run_here(main, [*SETTINGS, "--output_dir", str(tmp_path / "file" / "x")], "tokenizer") == 4
    assert "choose another --output_dir" in capfd.readouterr().err
