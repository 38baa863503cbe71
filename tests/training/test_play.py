"""`train.sh play`, its pictures, its records and the exported policies."""

import csv
import json
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
import torch

from rl.envs import franka_kinematics as franka
from rl.envs.arm_reach import ArmReach
from rl.sims import rendering
from rl.training import play_pictures, policy_export
from rl.training.play_recording import DataLog, Episodes
from rl.types import VectorStep
from tests.training import policy_runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("play") / "run"
    extra = ("--steps", "256", "arm.save_every=128", "arm.eval_every=128", "arm.log_every=128")
    assert policy_runs.arm("FASTSAC", place, *extra) == 0
    return place


def test_a_policy_is_played_recorded_and_measured(trained: Path, tmp_path: Path) -> None:
    numbers = tmp_path / "n.json"
    code = policy_runs.played(
        "--checkpoint", str(trained), "--num_envs", "3", "--video", "--video-length", "12", "--log-data", "--log_steps",
        "110", "--log_env_ids", "0,2", "--json", str(numbers), "play.video_size=64", "--device", "cpu",
    )  # fmt: skip
    assert code == 0
    frames = list(iio.imiter(trained / "videos" / "play.mp4"))
    assert len(frames) == 12 and not np.array_equal(frames[0], frames[-1])
    with (trained / "play_data.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert len(rows) == 220 and {r["env"] for r in rows} == {"0", "2"}
    assert [r["truncated"] for r in rows if r["env"] == "2"].index("1") == 99
    assert float(rows[0]["observation_3"]) == pytest.approx(franka.HOME[3], abs=1e-6)
    assert -1 <= float(rows[0]["action_6"]) <= 1 and float(rows[0]["reward"]) < 0
    found = json.loads(numbers.read_text())
    assert (found["algorithm"], found["task"], found["episodes"]) == ("FASTSAC", "ArmReach-v1", 3)
    assert found["checkpoint"] == "checkpoint-256" and found["env_steps"] == 330
    assert found.keys() >= {"success_rate", "success_interval", "mean_return", "steps_per_second", "wall_seconds"}


@pytest.mark.parametrize("name", ["checkpoint-128", "best_model.pt"])
def test_a_checkpoint_and_the_best_model_can_be_played(trained: Path, name: str, tmp_path: Path) -> None:
    numbers = tmp_path / "n.json"
    argv = ["--checkpoint", str(trained / name), "--steps", "100", "--json", str(numbers), "--device", "cpu"]
    assert policy_runs.played(*argv) == 0
    assert json.loads(numbers.read_text())["checkpoint"] == name


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "--checkpoint DIR is missing"),
        (["--checkpoint", "nowhere"], "no directory checkpoint-N"),
        (["--checkpoint", "x", "--log_data", "--log_env_ids", "0,1"], "there are 1 environments"),
        (["--checkpoint", "x", "--video_length", "0"], "video_length is 0"),
    ],
)
def test_a_wrong_play_is_refused(argv: list[str], message: str, capfd: pytest.CaptureFixture) -> None:
    assert policy_runs.played(*argv) == 4
    assert message in capfd.readouterr().err


def test_without_a_renderer_the_arm_is_drawn_as_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_device(gpu: int | None) -> None:
        raise ValueError("no Vulkan device can render")

    monkeypatch.setattr(rendering, "shared_device", no_device)
    env = ArmReach(1, random_phase=False)
    env.reset(0)
    pictures = play_pictures.Pictures(env, 128, None)
    first = pictures.frame("step 0")
    env.step(torch.ones(1, 7))
    assert first.shape[1] == 512 and not np.array_equal(first, pictures.frame("step 0"))
    pictures.close()


def test_the_drawing_shows_the_ball_where_the_target_is() -> None:
    """Top view: x up, y to the left. Two metres are as wide as the picture."""
    target = torch.tensor([0.5, 0.3, 0.2])
    picture = play_pictures.drawing((torch.tensor(franka.HOME), target, True), 200)
    side, top = picture[:, :200], picture[:, 200:]
    for view, centre in ((side, (160 - 20, 100 + 50)), (top, (100 - 50, 100 - 30))):
        red = (view[..., 0] > 200) & (view[..., 1] < 60)
        np.testing.assert_allclose(np.argwhere(red).mean(0), centre, atol=1)


def step(reward: list[float], ended: list[bool], success: list[bool]) -> VectorStep:
    E = len(reward)
    observation = torch.zeros(E, 2)
    return VectorStep(
        observation, observation, torch.tensor(reward), torch.zeros(E, dtype=torch.bool), torch.tensor(ended),
        torch.ones(E, dtype=torch.bool), {"success": torch.tensor(success)},
    )  # fmt: skip


def test_returns_and_successes_are_of_episodes_that_ended() -> None:
    episodes = Episodes(2, torch.device("cpu"))
    episodes.add(step([1.0, 5.0], [False, False], [False, False]))
    episodes.add(step([2.0, 5.0], [True, False], [True, False]))
    episodes.add(step([4.0, 5.0], [True, False], [False, False]))
    found = episodes.numbers()
    assert episodes.returns == [3.0, 4.0] and found["mean_return"] == 3.5
    assert (found["env_steps"], found["episodes"], found["success_rate"]) == (6, 2, 0.5)


def test_pictures_stay_out_of_the_data_log() -> None:
    log = DataLog([1], 1)
    observation = {"pixels": torch.zeros(2, 3, 4, 4), "state": torch.tensor([[1.0], [2.0]])}
    for t in range(3):
        log.add(t, observation, torch.tensor([[0.1], [0.2]]), step([1.0, 2.0], [False, False], [False, True]))
    assert log.rows == [
        {
            "step": 0, "env": 1, "state_0": 2.0, "action_0": pytest.approx(0.2), "reward": 2.0, "terminated": 0,
            "truncated": 0, "valid": 1, "success": 1.0,
        }
    ]  # fmt: skip


class Linear(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(21, 7)

    def forward(self, observation: torch.Tensor) -> torch.Tensor:
        return self.layer(observation).clamp(-1, 1)


def test_an_exported_policy_acts_the_same_for_any_number_of_rows(tmp_path: Path) -> None:
    import onnxruntime

    policy, env = Linear(), ArmReach(3)
    found = policy_export.export(policy, env, tmp_path)
    assert found["torchscript"] <= 1e-5 and found["onnx"] <= 1e-5
    rows = torch.randn(11, 21)
    expected = policy(rows).detach()
    torch.testing.assert_close(torch.jit.load(str(tmp_path / "policy.pt"))(rows), expected)
    session = onnxruntime.InferenceSession(str(tmp_path / "policy.onnx"), providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["observation"]
    (actions,) = session.run(["action"], {"observation": rows.numpy()})
    np.testing.assert_allclose(actions, expected.numpy(), atol=1e-5)


def test_an_export_that_acts_differently_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy_export, "_onnx", lambda module, names, inputs, path: module(*inputs) + 0.01)
    with pytest.raises(ValueError, match="act differently"):
        policy_export.export(Linear(), ArmReach(3), tmp_path)
