"""Whole runs on the real Isaac Lab as a user starts them. Each is a process of its own."""

import json
import subprocess
from pathlib import Path

import imageio.v3 as iio
import pytest

from tests.launch.sessions import run_in_session

pytest.importorskip("isaaclab", reason="needs Isaac Lab: bash setup.sh isaaclab, then bash tests/run.sh isaaclab")

REPO = Path(__file__).resolve().parents[2]
CARTPOLE = ["rl", "--task", "Isaac-Cartpole-Direct", "--num_envs", "16", "--device", "cpu"]
SHORT = ["rl.eval_episodes=16", "rl.final_episodes=16", "rl.save_every=2", "rl.eval_every=2"]


def train(*args: str) -> subprocess.CompletedProcess[str]:
    """Whatever becomes of it, no process of it may be left."""
    done = run_in_session(["bash", str(REPO / "train.sh"), *args], timeout=900, cwd=REPO)
    assert done.left == [], done.process.stderr
    return done.process


@pytest.mark.timeout(3000)
def test_ppo_trains_goes_on_plays_and_leaves_no_process(tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = train(*CARTPOLE, "--algorithm", "PPO", "--max_iterations", "2", "--output_dir", str(run), *SHORT)
    assert done.returncode == 0, done.stderr
    done = train(*CARTPOLE, "--algorithm", "PPO", "--max_iterations", "4", "--output_dir", str(run), "--auto_resume",
                 *SHORT)  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((run / "result.json").read_text())
    assert (result["env_steps"], result["episodes"]) == (4 * 16 * 16, 16)
    done = train("play", "--checkpoint", str(run), "--video", "--video_length", "12", "--log_data", "--log_steps", "10",
                 "--num_envs", "2", "--log_env_ids", "0,1")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(iio.imread(run / "videos" / "play.mp4")) == 12
    assert len((run / "play_data.csv").read_text().splitlines()) == 1 + 2 * 10


@pytest.mark.timeout(1500)
def test_ppo_trains_the_reaching_arm_and_play_shows_it(tmp_path: Path) -> None:
    """A manager-based task with a curriculum."""
    run = tmp_path / "run"
    done = train("rl", "--task", "Isaac-Reach-Franka", "--algorithm", "PPO", "--num_envs", "16", "--device", "cpu",
                 "--max_iterations", "2", "--output_dir", str(run), *SHORT)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "result.json").read_text())["env_steps"] == 2 * 24 * 16
    done = train("play", "--checkpoint", str(run), "--video", "--video_length", "12", "--num_envs", "2")
    assert done.returncode == 0, done.stderr
    assert len(iio.imread(run / "videos" / "play.mp4")) == 12


@pytest.mark.timeout(1500)
def test_ppo_trains_the_manager_based_cartpole(tmp_path: Path) -> None:
    done = train("rl", "--task", "Isaac-Cartpole", "--algorithm", "PPO", "--num_envs", "16", "--device", "cpu",
                 "--max_iterations", "2", "--output_dir", str(tmp_path / "run"), "rl.preset=rsl_rl", "ppo.n_steps=16",
                 *SHORT)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["env_steps"] == 2 * 16 * 16


@pytest.mark.timeout(1500)
def test_fastsac_trains_the_ant(tmp_path: Path) -> None:
    small = ["sac.learning_starts=32", "sac.batch_size=32", "sac.buffer_size=1024", "rl.max_iterations=8",
             "rl.final_episodes=8"]  # fmt: skip
    done = train("rl", "--task", "Isaac-Ant-Direct", "--algorithm", "FASTSAC", "--num_envs", "8", "--device", "cpu",
                 "--output_dir", str(tmp_path / "run"), "sac.network.actor_hidden=[32]", "rl.eval_every=100",
                 "sac.network.critic_hidden=[32]", *small)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "run" / "result.json").read_text())["env_steps"] == 64


@pytest.mark.timeout(1500)
def test_gr00t_of_random_weights_trains_in_isaac_lab(tmp_path: Path) -> None:
    place = ["--output_dir", str(tmp_path / "run")]
    done = train(*CARTPOLE, "--algorithm", "PPO", "--max_iterations", "2", *place, *SHORT, "gr00t.backend=stub")
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(900)
def test_an_unknown_task_is_refused_with_the_nearest(tmp_path: Path) -> None:
    done = train("rl", "--task", "Isaac-Cartpol-Direct", "--output_dir", str(tmp_path / "run"), "--num_envs", "4")
    assert done.returncode == 4
    assert "did you mean Isaac-Cartpole-Direct" in done.stderr
    assert not (tmp_path / "run").exists()
