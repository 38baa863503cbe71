"""The teacher trains ensemble heads beside the world model, which never notices."""

import json
from pathlib import Path

import pytest
import torch

from rl.training.train_teacher_rl import main
from tests.training.run_here import run_here
from tests.training.teacher_runs import flags

HEADS = ("arch.world_model.ensemble_heads=3", "arch.world_model.ensemble_features=8")


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return torch.load(run / "checkpoint-2" / "model.pt", weights_only=True)


def test_a_run_with_heads_trains_the_same_world_model_as_one_without(
    tokenizer_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    common = ("training.save_every=1", "training.video_save_every=0", "training.sample_save_every=0")
    lines = {}
    for name, extra in [("without", ()), ("with", HEADS)]:
        argv = flags(tokenizer_path, tmp_path / name, 2, *common, *extra)
        assert run_here(main, argv) == 0, capfd.readouterr().err
        lines[name] = json.loads((tmp_path / name / "episode_metrics.jsonl").read_text().splitlines()[-1])
    plain, ensemble = (_weights(tmp_path / n) for n in ("without", "with"))
    assert set(ensemble) - set(plain) == {"world_model.ensemble.readout", "world_model.ensemble.features"}
    for key, value in plain.items():
        assert torch.equal(ensemble[key], value), key
    first = torch.load(tmp_path / "with" / "checkpoint-1" / "model.pt", weights_only=True)
    assert not torch.equal(first["world_model.ensemble.readout"], ensemble["world_model.ensemble.readout"])
    assert torch.equal(first["world_model.ensemble.features"], ensemble["world_model.ensemble.features"])
    assert lines["with"]["teacher/ensemble_loss"] > 0 and "teacher/ensemble_loss" not in lines["without"]
    assert lines["with"]["teacher/loss"] == lines["without"]["teacher/loss"]
    assert lines["with"]["teacher/grad_norm"] == lines["without"]["teacher/grad_norm"]
