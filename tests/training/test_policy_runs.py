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
from rl.training.off_policy_phase import OffPolicyPhase
from rl.training.parallel_utils import ParallelContext
from rl.training.policies import build_phase, make_env, task_options
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


@pytest.mark.parametrize("run", ["arm", "rl"])
def test_pictures_are_made_and_kept_as_the_block_arm_says(run: str, world: ParallelContext) -> None:
    task = {"arm": "arm.vision=true", "rl": "rl.task=VisionArmReach-v1"}[run]
    small = [f"{run}.algorithm=SAC", f"{run}.num_envs=1", "sac.buffer_size=50", "sac.network.picture_features=8"]
    cfg = load(None, [task, *small, "arm.frame_stack=2", "arm.image_size=40"], run)
    env = make_env(cfg, run, 1, world.device, 0)
    phase = build_phase(cfg, run, env, world, 100)
    assert isinstance(phase, OffPolicyPhase)
    assert env.observation_space["pixels"].shape == (2 * 9, 40, 40)  # two frames of three cameras
    assert phase.replay.layout["pixels"].frame == (9, 40, 40)
    phase.close()


@pytest.mark.parametrize("task", ["ArmReach-v1", "ArmReachPhysics-v1"])
def test_rl_gives_its_reaching_task_the_bonus_that_the_block_arm_asks_for(task: str) -> None:
    for bonus, width in ((False, 21), (True, 22)):  # with a flag that says whether it was given
        cfg = load(None, [f"rl.task={task}", f"arm.reach_bonus={str(bonus).lower()}"], "rl")
        env = make_env(cfg, "rl", 1, torch.device("cpu"), 0)
        assert env.observation_space.shape == (width,)
        env.close()


PIXELS = ["--vision", "--image-size", "36", "--frame-stack", "2", "--steps", "16"]
PIXELS += ["arm.eval_episodes=1", "arm.final_episodes=1"]  # drawing dominates


@pytest.mark.parametrize(
    ("algorithm", "settings", "layer", "inputs"),
    [
        # 17 numbers of the arm, 16 points of two coordinates for each of 2 frames of 3 cameras, and the estimate of the
        # 21 that the critic is shown.
        ("PPO", ["ppo.num_envs=2", "ppo.n_steps=4", "ppo.minibatch_size=4"], "actor_body.0.weight", 17 + 192 + 21),
        # 2 frames of 3 cameras of 3 colours.
        (
            "FASTSAC",
            ["sac.num_envs=2", "sac.batch_size=8", "sac.learning_starts=8", "sac.buffer_size=64"],
            "critic.features.encoders.picture_pixels.convolutions.0.weight",
            18,
        ),
    ],
)
def test_an_arm_learns_from_pictures_of_the_size_and_number_asked_for(
    algorithm: str, settings: list[str], layer: str, inputs: int, tmp_path: Path
) -> None:
    place = tmp_path / "run"
    assert policy_runs.arm(algorithm, place, *PIXELS, *settings) == 0
    found, last = policy_runs.result(place), policy_runs.lines(place)[-1]
    assert (found["algorithm"], found["task"], found["env_steps"]) == (algorithm, "VisionArmReach-v1", 16)
    assert last["updates"] > 0 and all(math.isfinite(v) for k, v in last.items() if "loss" in k)
    assert open_checkpoint(place).read("model.pt")[layer].shape[1] == inputs


@pytest.mark.parametrize("algorithm", ["SAC", "DIT"])
def test_an_arm_learns_from_replay(algorithm: str, tmp_path: Path) -> None:
    place = tmp_path / "run"
    fewer = ["diffusion.updates_per_step=2"] if algorithm == "DIT" else []
    assert policy_runs.arm(algorithm, place, "--steps", "128", *EVERY, *fewer) == 0
    found, last = policy_runs.result(place), policy_runs.lines(place)[-1]
    assert (found["algorithm"], found["task"], found["env_steps"]) == (algorithm, "ArmReach-v1", 128)
    losses = {k: v for k, v in last.items() if "loss" in k}
    assert {"arm/critic_loss", "arm/actor_loss"} <= losses.keys() and all(map(math.isfinite, losses.values()))


@pytest.mark.parametrize("run", ["arm", "rl"])
def test_the_diffusion_policy_is_saved_whenever_ten_episodes_are_over(run: str, tmp_path: Path) -> None:
    """Five environments with 100 steps an episode, which begin somewhere within their first one: in every 100 steps
    each ends once, so the 10th episode is over after the 101st to the 200th of 500, the 20th in the 301st to 400th."""
    size = {"arm": ["--steps", "2500"], "rl": ["--task", "ArmReach-v1", "--max_iterations", "500"]}[run]
    unit = {"arm": 5, "rl": 1}[run]
    extra = (*size, "diffusion.num_envs=5", "diffusion.learning_starts=100000", "diffusion.buffer_size=2500")
    rest = (f"{run}.save_every=100000", f"{run}.eval_every=100000", "training.keep_checkpoints=9")
    start = policy_runs.arm if run == "arm" else policy_runs.rl
    assert start("DIT", tmp_path / "run", *extra, *rest) == 0
    saved = sorted(int(p.name.split("-")[1]) for p in (tmp_path / "run").glob("checkpoint-*"))
    assert len(saved) == 3
    assert 100 < saved[0] / unit <= 200 and 300 < saved[1] / unit <= 400 and saved[2] / unit == 500
    resume = ("--resume", str(tmp_path / "run" / f"checkpoint-{saved[0]}"))
    assert start("DIT", tmp_path / "fork", *extra, *rest, *resume) == 0
    assert {p.name for p in (tmp_path / "fork").glob("checkpoint-*")} == {f"checkpoint-{n}" for n in saved[1:]}


def test_where_episodes_begin_anew_at_a_checkpoint_so_many_of_each_environment_are_waited_for(tmp_path: Path) -> None:
    """Pendulum's episodes have 200 steps, all end together; two of each of the two environments are 400 steps."""
    size = ("--task", "Pendulum-v1", "--max_iterations", "8", "rl.save_every=100", "rl.eval_every=100")
    extra = ("sac.num_envs=2", "sac.vector_steps=100", "sac.learning_starts=100000", "sac.buffer_size=2000")
    assert policy_runs.rl("SAC", tmp_path / "run", *size, *extra, "rl.save_every_episodes=2") == 0
    assert {p.name for p in (tmp_path / "run").glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-8"}


def test_published_qvpo_is_a_preset_that_learns(tmp_path: Path) -> None:
    cut = {
        "num_envs": 1, "batch_size": 2, "actor_batch_size": 2, "learning_starts": 4, "buffer_size": 100,
        "network.width": 16, "network.num_blocks": 1, "network.num_heads": 2, "network.critic_hidden": "[16]",
    }  # fmt: skip
    kept = {  # what is published, not what SMALL says
        "train_samples": 64, "act_samples": 4, "eval_samples": 32, "entropy_actions": 10, "denoising_steps": 20,
    }  # fmt: skip
    extra = ["--task", "ArmReach-v1", "--max_iterations", "5", "rl.preset=qvpo"]
    extra += ["rl.save_every=100", "rl.eval_every=100", "rl.eval_episodes=1", "rl.final_episodes=1"]
    extra += [f"diffusion.{key}={value}" for key, value in (cut | kept).items()]
    assert policy_runs.rl("DIT", tmp_path / "run", *extra) == 0
    last = policy_runs.lines(tmp_path / "run")[-1]
    assert last["updates"] == 2 and math.isfinite(last["rl/critic_loss"]) and math.isfinite(last["rl/actor_loss"])


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
