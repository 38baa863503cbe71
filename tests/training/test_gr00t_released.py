"""A checkpoint of N1.7 as it is released, through LeRobot and the commands: trained, killed, continued, played.

`bash tests/run.sh gr00t` runs this in an environment of its own; the weights are small and random.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from rl.models import gr00t_real, gr00t_weights
from rl.models.gr00t import action_slots
from rl.models.gr00t_checkpoint import read_embodiment
from tests.models.gr00t_released import JOINTS, ROW, STATE_HIGH, STATE_LOW, TAG, write_released
from tests.training import policy_runs

REPO = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(
    os.environ.get("GR00T_BACKEND") != "n1.7",
    reason="LeRobot's N1.7: bash setup.sh gr00t, then bash tests/run.sh gr00t",
)
STEPS, SAVED = 48, 16


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released") / "GR00T-N1.7-small"
    write_released(folder)
    return folder


def flags(released: Path, place: Path) -> list[str]:
    """Of a run of three updates; the diffusion transformer's adapters begin with the third."""
    return policy_runs.flags(
        "arm", "PPO", place, "--steps", str(STEPS), "gr00t.backend=n1.7", f"gr00t.checkpoint={released}",
        f"gr00t.embodiment={TAG}", f"gr00t.action_names=[{','.join(JOINTS)}]", "gr00t.stages=[projector,dit]",
        f"gr00t.state_names=[{','.join([*JOINTS, *['null'] * 14])}]", "ppo.observation_norm=none",
        "gr00t.unfreeze_at=[0,0.5]", "gr00t.lora_rank=2", "ppo.n_steps=4", "ppo.n_epochs=1", "ppo.minibatch_size=8",
        f"arm.save_every={SAVED}", f"arm.log_every={SAVED}", f"arm.eval_every={2 * SAVED}", "arm.eval_episodes=4",
        "arm.final_episodes=4",
    )  # fmt: skip


@pytest.fixture(scope="module")
def run(released: Path) -> Path:
    """A run without interruption."""
    place = released.parent / "run"
    words = flags(released, place)
    assert policy_runs.arm("PPO", place, *words[words.index("--device") + 2 :]) == 0
    return place


def model(checkpoint: Path) -> dict[str, torch.Tensor]:
    return torch.load(checkpoint / "model.pt", weights_only=True)


def learned(place: Path) -> list[dict[str, Any]]:
    """What its updates and episodes were like, times apart."""
    apart = ("seconds", "per_s", "_gb", "time")
    return [{k: v for k, v in line.items() if not any(a in k for a in apart)} for line in policy_runs.lines(place)]


def written(released: Path) -> dict[str, torch.Tensor]:
    """Weights of all its files."""
    files = sorted(released.glob("*.safetensors"))
    assert len(files) > 1
    return {name: x for file in files for name, x in load_file(file).items()}


def test_its_weights_and_its_robot_are_those_of_the_files(released: Path) -> None:
    found = gr00t_real.load("n1.7", released, "tiny")
    own = found.model.state_dict()
    held = written(released)
    assert set(own) - set(held) <= {"backbone.model.lm_head.weight"}  # tied to the embedding
    assert all(torch.equal(own[name], x) for name, x in held.items())
    robot = read_embodiment(released, "n1.7", TAG)
    assert robot.index == ROW
    assert action_slots(7, found.action_slots, JOINTS, robot).tolist() == list(range(1, 8))  # the gripper comes first
    assert (robot.low[1:].tolist(), robot.high[1:].tolist()) == ([-1.0] * 7, [1.0] * 7)


def test_a_run_trains_its_stages_and_keeps_only_what_it_trains(run: Path, released: Path) -> None:
    saved = model(run / f"checkpoint-{STEPS}")
    of_head = [n for n in saved if n.startswith("model.model.action_head")]
    parts = {"adapters" if ".lora_" in n else n.split(".")[3] for n in of_head}
    assert parts == {"state_encoder", "action_encoder", "action_decoder", "position_embedding", "adapters"}
    assert not any("backbone" in n for n in saved)
    assert saved["low"].tolist() == [-1.0] * 7
    told = {n: saved[f"state_map.{n}"].tolist() for n in ("columns", "slots", "low", "high")}
    assert told == {
        "columns": list(range(7)), "slots": list(range(1, 8)), "low": STATE_LOW, "high": STATE_HIGH,
    }  # fmt: skip
    before = written(released)
    name = "action_head.state_encoder.layer1.W"
    rows = (saved[f"model.model.{name}"] - before[name].float()).abs().amax((1, 2)) > 0
    assert rows.nonzero()[:, 0].tolist() == [ROW]  # of its robot alone
    assert all(saved[n].any() for n in saved if ".lora_B." in n)
    training = torch.load(run / f"checkpoint-{STEPS}" / "training_state.pt", weights_only=True)
    assert training["gr00t"] == {"stage": 2, "ages": [1], "base": gr00t_weights.fingerprint(released)}


def test_a_run_that_was_killed_goes_on_to_the_same_result(run: Path, released: Path) -> None:
    """SIGKILL when its first checkpoint is there, while at least one update and 12 episodes are still to come."""
    place = released.parent / "killed"
    env = {**os.environ, "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-m", "rl.training.train_arm", *flags(released, place)]
    process = subprocess.Popen(command, cwd=REPO, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 240
    while not (place / f"checkpoint-{SAVED}").is_dir() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, output
    assert not (place / f"checkpoint-{STEPS}").exists()
    words = flags(released, place)
    assert policy_runs.arm("PPO", place, *words[words.index("--device") + 2 :], "--auto_resume") == 0
    whole, resumed = (model(p / f"checkpoint-{STEPS}") for p in (run, place))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    assert len(learned(run)) == STEPS // SAVED and "arm/policy_loss" in learned(run)[0]
    assert learned(place) == learned(run)
    assert policy_runs.result(place)["curve"] == policy_runs.result(run)["curve"]
    assert policy_runs.result(place)["mean_return"] == policy_runs.result(run)["mean_return"]


@pytest.mark.parametrize("name", [f"checkpoint-{STEPS}", ""])
def test_a_policy_is_played_as_the_run_measured_it(name: str, run: Path, tmp_path: Path) -> None:
    """The same four episodes as the run's final evaluation, whose seed is the one after arm.eval_seed (1,000,000)."""
    expected = policy_runs.result(run)
    code = policy_runs.played(
        "--checkpoint", str(run / name), "--num_envs", "4", "--steps", "100", "--device", "cpu", "play.seed=1000001",
        "--json", str(tmp_path / "n.json"),
    )  # fmt: skip
    assert code == 0
    found = json.loads((tmp_path / "n.json").read_text())
    assert (found["checkpoint"], found["episodes"]) == (f"checkpoint-{STEPS}", 4)
    assert found["mean_return"] == pytest.approx(expected["mean_return"], abs=1e-4)
    assert found["success_rate"] == expected["success_rate"]


def test_its_best_model_is_played_and_not_on_other_weights(
    run: Path, released: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    play = ("--checkpoint", str(run / "best_model.pt"), "--steps", "2", "--device", "cpu")
    assert policy_runs.played(*play) == 0
    file, before = sorted(released.glob("*.safetensors"))[0], gr00t_weights.fingerprint(released)
    kept, weights = file.read_bytes(), load_file(file)
    save_file({n: x + 1 for n, x in weights.items()}, file, metadata={"format": "pt"})
    try:
        assert policy_runs.played(*play) == 4
    finally:
        changed = gr00t_weights.fingerprint(released)
        file.write_bytes(kept)
    said = capfd.readouterr().err
    assert f"sha256 {before}" in said and f"have {changed}" in said
    assert gr00t_weights.fingerprint(released) == before
