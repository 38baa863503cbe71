"""`train.sh arm` and `train.sh rl`: what a run writes, how it continues, what it refuses."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
import torch

from rl import config as rl_config
from rl.config import load
from rl.envs.registry import make_vector_env
from rl.training import policy_phase, provenance
from rl.training.checkpoint import load_plain, open_checkpoint
from rl.training.policies import task_options
from rl.training.policy_evaluation import Evaluation
from tests.training import policy_runs
from tests.training.teacher_runs import parameters_equal

RESULT_KEYS = {
    "algorithm", "task", "seed", "env_steps", "success_rate", "success_interval", "mean_return", "steps_per_second",
    "wall_seconds", "training_seconds", "episodes", "machine", "command", "code_commit", "best", "curve",
}  # fmt: skip
EVERY = ("arm.save_every=128", "arm.log_every=128", "arm.eval_every=256")


@pytest.fixture(scope="module")
def ppo_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three iterations of 128 steps, a checkpoint at each."""
    place = tmp_path_factory.mktemp("arm") / "ppo"
    json_file = place.parent / "numbers.json"
    assert policy_runs.arm("PPO", place, "--steps", "384", *EVERY, "--seed", "3", "--json", str(json_file)) == 0
    assert json.loads(json_file.read_text()) == policy_runs.result(place)
    return place


@pytest.mark.parametrize("run", ["arm", "rl"])
def test_ppo_on_pictures_tells_its_critic_where_the_target_is(run: str) -> None:
    task = {"arm": "arm.vision=true", "rl": "rl.task=VisionArmReach-v1"}[run]
    chosen = {a: task_options(load(None, [task, f"{run}.algorithm={a}"], run)) for a in ("PPO", "SAC")}
    assert chosen["PPO"].privileged_critic and not chosen["SAC"].privileged_critic
    env = make_vector_env("VisionArmReach-v1", 1, options=chosen["PPO"])
    assert set(env.observation_space.spaces) == {"pixels", "state", "critic"}
    env.close()


def test_a_run_writes_numbers_checkpoints_metrics_and_its_best_model(ppo_run: Path) -> None:
    found = policy_runs.result(ppo_run)
    assert found.keys() >= RESULT_KEYS
    assert (found["algorithm"], found["task"], found["seed"], found["env_steps"]) == ("PPO", "ArmReach-v1", 3, 384)
    low, high = found["success_interval"]
    assert found["episodes"] == 8 and 0 <= low <= found["success_rate"] <= high <= 1
    assert found["code_commit"] == provenance.git_commit()
    assert found["steps_per_second"] == pytest.approx(384 / found["training_seconds"])
    assert found["wall_seconds"] > found["training_seconds"]
    assert {p.name for p in ppo_run.glob("checkpoint-*")} == {"checkpoint-128", "checkpoint-256", "checkpoint-384"}
    assert not (ppo_run / "model_config.yaml").exists()  # there is no F1 model in it
    assert json.loads((ppo_run / "status.json").read_text())["state"] == "done"
    assert [(e["step"], e["env_steps"]) for e in found["curve"]] == [(256, 256), (384, 384)]
    best = load_plain(ppo_run / "best_model.pt")
    winner = max(found["curve"], key=lambda e: (e["success_rate"], e["mean_return"]))
    assert best["algorithm"] == "PPO" and best["evaluation"] == found["best"] == winner


def test_metrics_name_return_success_losses_entropy_learning_rate_and_memory(ppo_run: Path) -> None:
    written = policy_runs.lines(ppo_run)
    assert [line["step"] for line in written] == [128, 256, 384]
    assert written[-1].keys() >= {
        "env_steps", "updates", "arm/eval_return", "arm/eval_success", "arm/memory_gb", "arm/env_steps_per_s",
        "arm/learning_rate", "arm/entropy",
    }  # fmt: skip
    assert any(key.startswith("arm/") and "loss" in key for key in written[0])
    assert any("arm/episode_return" in line and "arm/success_rate" in line for line in written)


def test_ppo_takes_mixed_precision_and_accumulation_from_the_command_line(tmp_path: Path) -> None:
    place, flags = tmp_path / "run", ("--mixed_precision", "bf16", "--gradient_accumulation_steps", "2")
    assert policy_runs.arm("PPO", place, "--steps", "128", *EVERY, *flags) == 0
    saved = load(place / "config.yaml").training
    assert (saved.mixed_precision, saved.gradient_accumulation_steps) == (rl_config.MixedPrecision.bf16, 2)
    model = open_checkpoint(place / "checkpoint-128").read("model.pt")
    assert {x.dtype for name, x in model.items() if "norm" not in name} == {torch.float32}
    (line,) = policy_runs.lines(place)
    assert all(math.isfinite(line[f"arm/{key}"]) for key in ("policy_loss", "value_loss", "grad_norm"))


@pytest.mark.parametrize("algorithm", ["PPO", "FASTSAC"])
def test_a_resumed_run_ends_with_the_same_parameters(algorithm: str, tmp_path: Path) -> None:
    straight, fork = tmp_path / "straight", tmp_path / "fork"
    common = ("--steps", "384", *EVERY)
    assert policy_runs.arm(algorithm, straight, *common) == 0
    assert policy_runs.arm(algorithm, fork, *common, "--resume", str(straight / "checkpoint-128")) == 0
    assert parameters_equal(straight / "checkpoint-384", fork / "checkpoint-384")
    a, b = policy_runs.result(straight), policy_runs.result(fork)
    assert a["mean_return"] == b["mean_return"] and a["env_steps"] == b["env_steps"] == 384
    assert [e["mean_return"] for e in a["curve"]] == [e["mean_return"] for e in b["curve"]]
    assert load_plain(fork / "best_model.pt")["evaluation"] == b["best"]


def test_how_often_is_evaluated_does_not_change_what_is_learned(tmp_path: Path) -> None:
    for name, every in (("often", 128), ("never", 10_000)):
        extra = ("--steps", "384", "arm.save_every=384", f"arm.eval_every={every}")
        assert policy_runs.arm("FASTSAC", tmp_path / name, *extra) == 0
    assert parameters_equal(tmp_path / "often" / "checkpoint-384", tmp_path / "never" / "checkpoint-384")
    often, never = (policy_runs.result(tmp_path / name) for name in ("often", "never"))
    assert [e["step"] for e in often["curve"]] == [128, 256, 384]
    assert never["curve"] == often["curve"][2:]  # a run shorter than eval_every is evaluated at its end
    assert load_plain(tmp_path / "never" / "best_model.pt")["evaluation"] == never["best"] == never["curve"][0]


def test_the_last_policy_is_the_best_model_only_when_it_did_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, returns in (("better", [-9.0, -5.0]), ("worse", [-5.0, -9.0])):
        # Two evaluations on the way, then the final one.
        found = iter([Evaluation([r], [100], [False]) for r in (*returns, -7.0)])
        monkeypatch.setattr(policy_phase, "evaluate", lambda *_, found=found: next(found))
        place = tmp_path / name
        assert policy_runs.arm("A2C", place, "--steps", "64", "arm.eval_every=32", "arm.save_every=64") == 0
        assert load_plain(place / "best_model.pt")["evaluation"]["mean_return"] == -5.0
        assert policy_runs.result(place)["best"]["step"] == {"better": 64, "worse": 32}[name]


def test_a_run_that_is_done_is_measured_again_but_not_trained(ppo_run: Path, tmp_path: Path) -> None:
    place = tmp_path / "copy"
    shutil.copytree(ppo_run, place)
    extra = ("--steps", "384", *EVERY, "--seed", "3", "--auto_resume", "arm.final_episodes=12")
    assert policy_runs.arm("PPO", place, *extra) == 0
    before, after = policy_runs.result(ppo_run), policy_runs.result(place)
    assert after["episodes"] == 12 and after["curve"] == before["curve"] and after["best"] == before["best"]
    assert after["training_seconds"] == before["training_seconds"]
    saved = load_plain(place / "checkpoint-384" / "training_state.pt")["policy_run"]
    assert after["wall_seconds"] > saved["wall_seconds"] > saved["seconds"] == after["training_seconds"]
    assert parameters_equal(place / "checkpoint-384", ppo_run / "checkpoint-384")


def test_gymnasium_tasks_are_trained_by_iterations(tmp_path: Path) -> None:
    place = tmp_path / "pole"
    extra = ("--task", "CartPole-v1", "--max_iterations", "3", "--num_envs", "2", "rl.eval_every=2", "--headless")
    assert policy_runs.rl("PPO", place, *extra, "rl.preset=ppo_reach") == 0
    found = policy_runs.result(place)
    assert (found["task"], found["env_steps"], found["success_rate"]) == ("CartPole-v1", 3 * 2 * 32, None)
    assert 8 <= found["mean_return"] <= 500
    assert [line["iteration"] for line in policy_runs.lines(place)] == [1, 2, 3]


def test_runs_are_placed_by_task_and_name() -> None:
    config = rl_config.load(None, ["arm.algorithm=A2C", "training.seed=4", "rl.task=Pendulum-v1"], "arm")
    assert rl_config.run_directory(config, "arm") == Path("outputs/ArmReach-v1/a2c_seed4")
    config.arm.vision, config.arm.experiment_name, config.arm.run_name = True, "night", "one"
    assert rl_config.run_directory(config, "arm") == Path("outputs/VisionArmReach-v1/night_one")
    assert rl_config.run_directory(config, "rl") == Path("outputs/Pendulum-v1/ppo_seed4")


@pytest.mark.parametrize(
    ("run", "algorithm", "extra", "message"),
    [
        ("rl", "PPO", ["--task", "CartPol-v1"], r"task 'CartPol-v1' is unknown; did you mean .*CartPole-v1"),
        ("rl", "SAC", ["--task", "CartPole-v1", "rl.preset=sac_reach"], "SAC needs continuous actions"),
        ("arm", "PPO", ["--export", "ppo.network.lstm=8", "ppo.minibatches=by_environment"], "cannot be exported"),
        ("arm", "PPO", ["--run_name", "a/b"], "run name 'a/b'"),
        (
            "arm",
            "SAC",
            ["sac.buffer_size=1000000000000"],
            r"replay of 1000000000000.* needs \d+ bytes.*sac.buffer_size",
        ),
        ("rl", "PPO", ["--distributed"], "bash train.sh rl NUM_PROCESSES"),
        ("rl", "PPO", ["rl.headless=false"], r"rl.headless=false.* train.sh play --checkpoint RUN --video"),
        *(
            ("arm", name, ["--gradient_accumulation_steps", "2"], rf"--gradient_accumulation_steps .* is 2, but {name}")
            for name in ("SAC", "FASTSAC", "DIT")
        ),
        ("arm", "PPO", ["--compare", "--gradient_accumulation_steps", "2"], "is 2, but SAC takes every batch whole"),
        (
            "arm",
            "PPO",
            ["--gradient_accumulation_steps", "2", "ppo.network.lstm=8", "ppo.minibatches=by_environment"],
            "gradient_accumulation_steps above 1 does not go with ppo.network.lstm",
        ),
        ("arm", "A2C", ["ppo.num_minibatches=17"], "16 rows give no minibatch of 0; lower ppo.num_minibatches"),
        (
            "arm",
            "PPO",
            ["--gradient_accumulation_steps", "3", "ppo.minibatch_size=126"],
            "a minibatch of 2 rows cannot be cut into 3 micro-batches",
        ),
    ],
)
def test_a_wrong_run_is_refused_and_leaves_nothing(
    run: str, algorithm: str, extra: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    place = tmp_path / "refused"
    assert (policy_runs.arm if run == "arm" else policy_runs.rl)(algorithm, place, *extra) == 4
    assert re.search(message, capfd.readouterr().err)
    assert not place.exists()


def test_the_checkpoint_of_another_algorithm_is_refused(
    ppo_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    code = policy_runs.arm("A2C", tmp_path / "new", "--steps", "384", "--resume", str(ppo_run / "checkpoint-128"))
    assert code == 4 and "arm.algorithm PPO -> A2C" in capfd.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_learning_rate_falls_over_the_steps_of_the_run(tmp_path: Path) -> None:
    assert policy_runs.arm("PPO", tmp_path / "run", "--steps", "384", *EVERY) == 0
    rates = [line["arm/learning_rate"] for line in policy_runs.lines(tmp_path / "run")]
    assert rates[0] > rates[1] > rates[2] > 0 and all(math.isfinite(r) for r in rates)
