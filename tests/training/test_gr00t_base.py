"""A run on released weights keeps what it trains and the sha256 of the rest: other weights there are refused."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rl.models import gr00t_backend, gr00t_checkpoint, gr00t_real, gr00t_weights
from tests.models.gr00t_files import write_weights
from tests.training import policy_runs

SMALL = ("gr00t.backend=n1.7", "ppo.num_envs=2", "ppo.n_steps=4", "ppo.n_epochs=1", "ppo.minibatch_size=8",
         "arm.save_every=8", "arm.eval_every=8", "arm.eval_episodes=2", "arm.final_episodes=2")  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A checkpoint whose model is the stub, whatever its weights say."""
    folder = tmp_path_factory.mktemp("base") / "released"
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gr00t_real, "load", lambda *_, **__: gr00t_backend.stub("tiny"))
        patch.setattr(gr00t_checkpoint, "read_embodiment", lambda *_: None)
        write_weights(folder / "model.safetensors", "backbone.x", "action_head.x")
        yield folder


@pytest.fixture(scope="module")
def run(base: Path) -> Path:
    assert policy_runs.arm("PPO", base.parent / "run", *SMALL, f"gr00t.checkpoint={base}", "--steps", "8") == 0
    return base.parent / "run"


@pytest.fixture
def hashes(base: Path) -> Iterator[tuple[str, str]]:
    """While a test runs there are other weights; the hashes before and then."""
    before = gr00t_weights.fingerprint(base)
    write_weights(base / "model.safetensors", "backbone.y", "action_head.y")
    yield before, gr00t_weights.fingerprint(base)
    write_weights(base / "model.safetensors", "backbone.x", "action_head.x")


def played(policy: Path, *more: str) -> int:
    return policy_runs.played("--checkpoint", str(policy), "--steps", "4", "--device", "cpu", *more)


@pytest.mark.parametrize("name", ["checkpoint-8", "best_model.pt"])
def test_a_policy_is_played_on_its_base(name: str, run: Path, tmp_path: Path) -> None:
    assert played(run / name, "--json", str(tmp_path / "n.json")) == 0
    assert json.loads((tmp_path / "n.json").read_text())["env_steps"] == 4


@pytest.mark.parametrize("name", ["checkpoint-8", "best_model.pt"])
def test_a_policy_is_not_played_on_another_base(
    name: str, run: Path, base: Path, hashes: tuple[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert played(run / name) == 4
    said = capfd.readouterr().err
    assert f"{run / name} was trained on GR00T weights with sha256 {hashes[0]}" in said
    assert f"have {hashes[1]}; put the weights it was trained on back at {base}" in said


def test_a_run_does_not_go_on_with_another_base(
    run: Path, base: Path, hashes: tuple[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    again = shutil.copytree(run, tmp_path / "again")
    more = ("--steps", "16", "--auto_resume")
    assert policy_runs.arm("PPO", again, *SMALL, f"gr00t.checkpoint={base}", *more) == 4
    said = capfd.readouterr().err
    assert f"{again / 'checkpoint-8'} was trained on GR00T weights with sha256 {hashes[0]}" in said
    assert f"have {hashes[1]}" in said


def test_a_best_model_that_does_not_name_its_base_is_not_played(
    run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As earlier versions wrote it."""
    shutil.copy(run / "config.yaml", tmp_path)
    saved: dict[str, Any] = torch.load(run / "best_model.pt", weights_only=True)
    del saved["base"]
    torch.save(saved, tmp_path / "best_model.pt")
    assert played(tmp_path / "best_model.pt") == 4
    assert "best_model.pt does not say on which GR00T weights" in capfd.readouterr().err


def test_a_policy_on_random_weights_names_none_and_is_played(tmp_path: Path) -> None:
    small = [s for s in SMALL if "backend" not in s]
    assert policy_runs.arm("PPO", tmp_path / "run", *small, "gr00t.backend=stub", "--steps", "8") == 0
    saved = torch.load(tmp_path / "run" / "best_model.pt", weights_only=True)
    assert saved["base"] is None
    assert played(tmp_path / "run" / "best_model.pt") == 0
