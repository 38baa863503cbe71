"""`train.sh plan gr00t` and the report of a run as commands: which run is planned, what is printed, exit codes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import gymnasium as gym
import pytest
import torch

from rl import config as rl_config
from rl.config import Config
from rl.training import cli, gr00t_memory, gr00t_plan, policies

REPO = Path(__file__).resolve().parents[2]
LAST = re.compile(
    r"memory of one process: weights (?P<weights>\S+) GB, gradients (?P<gradients>[^,]+), "
    r"(exchanged (?P<buckets>[^,]+), )?"
    r"Adam (?P<moments>[^,]+), copy (?P<copy>[^,]+), in half precision (?P<casts>[^,]+), activations "
    r"(?P<activations>[^,]+), passing (?P<passing>[^,]+), rollout (?P<rollout>[^,]+), together (?P<total>\S+) GB; "
    r"on the host while the weights are made (?P<making>\S+) GB"
)
ONE = ["gr00t.size=n1.7", "gr00t.dtype=bfloat16", "gr00t.stages=[dit]", "gr00t.lora_rank=16", "--device", "cpu"]
SMALL = ["arm.preset=gr00t_stub", "--num_envs", "4", "ppo.n_steps=4", "ppo.minibatch_size=8", "ppo.n_epochs=1"]
HUGE = ["ppo.num_envs=1024", "ppo.n_steps=128", "ppo.minibatch_size=131072"]  # terabytes of activations


def run(*words: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(words, capture_output=True, text=True, timeout=240, env=env, cwd=REPO)


def module(name: str, *args: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "-m", f"rl.training.{name}", *args)


@pytest.fixture
def train_sh(tmp_path: Path) -> Path:
    """train.sh of a checkout that is set up: its interpreter is this one."""
    shutil.copy(REPO / "train.sh", tmp_path)
    shutil.copytree(REPO / "scripts", tmp_path / "scripts")
    (tmp_path / "setup.sh").touch()
    for name in ("plan", "train_arm"):
        (tmp_path / "rl" / "training").mkdir(parents=True, exist_ok=True)
        (tmp_path / "rl" / "training" / f"{name}.py").touch()
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/bash\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return tmp_path / "train.sh"


def test_the_command_prints_its_parts_and_their_sum(train_sh: Path, tmp_path: Path) -> None:
    done = run(
        "bash", str(train_sh), "plan", "gr00t", *ONE, "ppo.minibatch_size=32", "--json", str(tmp_path / "p.json")
    )
    assert done.returncode == 0, done.stderr
    heading, of, table, *parts = done.stdout.splitlines()[:8]
    assert heading == "GR00T stub of size n1.7, bfloat16, stages dit, adapters of rank 16"
    assert of.startswith("train.sh arm on ArmReach-v1, 32 environments of 32 steps, 32 decisions at once, cpu")
    assert table.split() == ["GR00T", "part", "parameters", "trained", "weights", "GB"]
    assert [row.split()[0] for row in parts] == ["backbone", "dit", "projector", "vl_head", "heads"]
    found = LAST.search(done.stdout)
    assert found is not None, done.stdout
    shown = {k: float(v or 0) for k, v in found.groupdict().items()}
    written = json.loads((tmp_path / "p.json").read_text())
    assert sum(v for k, v in shown.items() if k not in ("total", "making")) == pytest.approx(shown["total"], abs=0.05)
    assert shown["total"] == pytest.approx(written["total"] / 1e9, abs=0.006)
    assert shown["making"] == pytest.approx(4e-9 * sum(row[1] for row in written["parts"]), abs=0.006)
    assert sum(float(row.split()[3]) for row in parts) == pytest.approx(shown["weights"], abs=0.01)


def test_what_is_planned_beyond_the_memory_is_flagged_with_the_remedy() -> None:
    done = module("plan", "--phase", "gr00t", *ONE, *HUGE)
    assert done.returncode == 0, done.stderr  # a plan may be for another machine
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("DOES NOT FIT: ")]
    assert re.search(r"GR00T needs [\d.]+ GB to train, and [\d.]+ GB are free on cpu; lower ppo.minibatch_size", line)
    assert "fits what is free" not in done.stdout


def test_a_run_beyond_the_memory_is_refused_before_its_weights_are_made(tmp_path: Path) -> None:
    place = tmp_path / "run"
    done = module("train_arm", "--algorithm", "PPO", "gr00t.backend=stub", *ONE, *HUGE, "--output_dir", str(place))
    assert done.returncode == 4, done.stderr
    assert re.search(r"error: GR00T needs [\d.]+ GB to train, .* free on cpu; lower ppo.minibatch_size", done.stderr)
    assert "GR00T part" not in done.stderr and not place.exists()


def test_a_run_logs_the_report_of_its_plan_before_its_first_update(tmp_path: Path) -> None:
    plan = module("plan", "--phase", "gr00t", *SMALL)
    first = plan.stdout.splitlines().index(next(x for x in plan.stdout.splitlines() if x.startswith("GR00T part")))
    report = plan.stdout.splitlines()[first : first + 7]
    assert LAST.fullmatch(report[-1])
    short = ["--steps", "16", "arm.eval_episodes=2", "arm.final_episodes=2", "logging.tensorboard=false"]
    done = module("train_arm", *SMALL, *short, "--output_dir", str(tmp_path))
    assert done.returncode == 0, done.stderr
    (log,) = (tmp_path / "logs").glob("*.log")
    lines = [x.split(": ", 1)[-1] for x in log.read_text().splitlines()]
    begun = lines.index(report[0])
    assert lines[begun : begun + len(report)] == report
    # Said between the first rollout and its update.
    assert begun < next(i for i, x in enumerate(lines) if x.startswith("GR00T: acting and training agree"))


# --- which run --------------------------------------------------------------------------------------------------------


def planned(*argv: str) -> cli.Args:
    return cli.parse("plan", ["--phase", "gr00t", *argv])


@pytest.mark.parametrize(
    ("run", "argv"),
    [
        ("arm", ["arm.preset=gr00t_stub"]),
        ("arm", ["arm.preset=gr00t", "--num_envs", "7"]),
        ("arm", ["--vision", "--image-size", "96", "--num_envs=3", "gr00t.backend=stub", "arm.preset=gr00t"]),
        ("rl", ["--task", "Pendulum-v1", "rl.preset=gr00t", "--num_envs", "5"]),
        ("rl", ["rl.task=Pendulum-v1", "rl.preset=gr00t", "--algorithm", "A2C", "--mixed_precision", "bf16"]),
        ("rl", ["rl.task=VisionArmReach-v1", "rl.preset=gr00t", "--gradient_accumulation_steps", "2"]),
    ],
)
def test_the_plan_has_the_configuration_of_the_run_with_the_same_flags(run: str, argv: list[str]) -> None:
    found, started = planned(*argv), cli.parse(run, argv)
    assert found.run == run
    assert rl_config.to_dict(found.config) == rl_config.to_dict(started.config)


def test_a_file_of_settings_counts_as_for_the_run(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("arm:\n  preset: gr00t_stub\ngr00t:\n  size: n1.7\n  lora_rank: 4\n")
    argv = ["--rl_config", str(tmp_path / "mine.yaml"), "--num_envs", "3"]
    found = planned(*argv).config
    assert rl_config.to_dict(found) == rl_config.to_dict(cli.parse("arm", argv).config)
    assert (found.gr00t.size, found.gr00t.stages, found.ppo.num_envs) == ("n1.7", ["projector", "dit", "vl_head"], 3)


def test_flags_of_one_command_are_not_taken_for_the_other() -> None:
    with pytest.raises(ValueError, match=r"--vision is not a flag of plan; it belongs to arm"):
        planned("--task", "Pendulum-v1", "--vision")
    with pytest.raises(ValueError, match=r"--algorithm is not a flag of plan"):
        cli.parse("plan", ["--phase", "teacher", "--algorithm", "PPO"])


def test_processes_are_counted_and_later_stages_refused_as_by_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["--task", "Pendulum-v1", "rl.preset=gr00t", "gr00t.stages=[projector]", "--num_processes", "3"]
    gr00t_plan.plan(planned(*argv))
    out = capsys.readouterr().out
    assert "exchanged" in out and "\nall 3 processes: " in out
    with pytest.raises(ValueError, match=r"gr00t\.unfreeze_at above 0 works in one process"):
        gr00t_plan.plan(planned("arm.preset=gr00t_stub", "--num_processes", "2"))
    with pytest.raises(ValueError, match="is the actor-critic of PPO and A2C, SAC would ignore it"):
        gr00t_plan.plan(planned("--algorithm", "SAC"))


@pytest.mark.parametrize("flags", [[], ["arm.physics=true"], ["arm.reach_bonus=true"]])
def test_the_spaces_are_those_of_the_task(flags: list[str]) -> None:
    cfg = cli.parse("arm", flags).config
    env = policies.make_env(cfg, "arm", 1, torch.device("cpu"), 0)
    assert gr00t_plan.spaces_of(cfg, "arm") == (env.observation_space, env.action_space)
    env.close()


def test_cameras_of_the_arm_are_planned_without_drawing() -> None:
    cfg = cli.parse("arm", ["--vision", "--image-size", "96", "--frame-stack", "2"]).config
    seen, actions = gr00t_plan.spaces_of(cfg, "arm")
    assert isinstance(seen, gym.spaces.Dict)
    assert (seen["pixels"].shape, seen["state"].shape, actions.shape) == ((18, 96, 96), (17,), (7,))


def test_a_task_of_isaac_lab_is_planned_for_a_robot_that_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    args = planned("--task", "Isaac-Reach-Franka", "rl.preset=gr00t")
    gr00t_plan.plan(args)
    assert "planned for 32 numbers, a camera and 7 actions" in capsys.readouterr().out


def test_a_checkpoint_is_planned_with_the_sizes_of_n17(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg: Config = planned("gr00t.backend=n1.7", "gr00t.checkpoint=released", "gr00t.action_names=[a,b]").config
    found = gr00t_memory.planned(cfg, torch.device("cpu"), gr00t_memory.planned_robot())
    assert sum(row[1] for row in found.parts) > 2.9e9
