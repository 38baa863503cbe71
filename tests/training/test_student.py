"""`train.sh student` as a whole, with the smallest model: outputs, resume, stop, refusals, modes."""

import json
import shutil
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from benchmarks import student_targets
from rl.training import student_phase
from rl.training.checkpoint import open_checkpoint
from rl.training.teacher_source import origin_of, warn_of_another
from rl.training.train_student_rl import main
from tests.training import student_runs
from tests.training.run_here import run_here
from tests.training.student_runs import ENVS, STEPS, flags
from tests.training.teacher_runs import parameters_equal, run_process


def _lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "episode_metrics.jsonl").read_text().splitlines()]


def _without_times(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if not k.endswith(("_per_s", "_s"))} for line in lines]


# --- outputs ---------------------------------------------------------------------------------------------------------


def test_a_run_writes_checkpoints_pictures_and_videos(student_run: Path) -> None:
    names = {p.name for p in student_run.iterdir()}
    assert {"config.yaml", "model_config.yaml", "checkpoint-2", "checkpoint-4", "samples", "videos", "logs"} <= names
    assert json.loads((student_run / "status.json").read_text())["state"] == "done"
    for n in (2, 4):
        files = {p.name for p in (student_run / f"checkpoint-{n}").iterdir()}
        assert files == {"model.pt", "training_state.pt", "metrics.pt", "manifest.json"}
    assert {p.name for p in (student_run / "samples").iterdir()} == {"episode_2.png", "episode_4.png"}
    reader = imageio_ffmpeg.read_frames(str(student_run / "videos" / "episode_4.mp4"))
    assert next(reader)["size"] == (3 * 256 + 2 * 4, 256 + 18)  # Head | GT Wrist | Predicted
    assert sum(1 for _ in reader) == STEPS


def test_every_iteration_has_one_line_with_every_component_raw(student_run: Path) -> None:
    lines = _lines(student_run)
    assert [line["episode"] for line in lines] == [2, 4]
    assert [line["env_steps"] for line in lines] == [2 * STEPS, 4 * STEPS]
    components = {"memory_divergence", "disagreement", "entropy", "action_rate"}
    expected = {f"student/{kind}_{c}" for c in components for kind in ("reward_raw", "reward_raw_std", "return_raw")}
    expected -= {"student/return_raw_memory_divergence"}  # a potential's: divergence_last
    expected |= {f"student/{kind}_{c}" for c in components - {"action_rate"} for kind in ("reward_scaled", "scale")}
    expected |= {
        f"student/{n}"
        for n in (
            "reward", "reward_std", "return", "divergence_mean", "divergence_last", "wm_nll", "action_std",
            "action_at_bound", "policy_loss", "value_loss", "policy_entropy", "approx_kl", "clip_fraction",
            "explained_variance", "optimizer_steps", "kl_stopped", "first_ratio_error", "rollout_log_prob_gap",
            "grad_norm", "learning_rate", "env_steps_per_s", "time_simulate_s", "time_encode_s", "time_look_s",
            "time_denoise_s", "time_score_s", "time_update_s",
        )
    }  # fmt: skip
    for line in lines:
        assert set(line) == expected | {"episode", "env_steps", "updates"}
        assert all(np.isfinite(v) for v in line.values())
        assert line["student/optimizer_steps"] == 4  # two epochs of two minibatches
        assert line["student/first_ratio_error"] <= 1e-5 and line["student/rollout_log_prob_gap"] <= 1e-3
        assert 0 < line["student/reward_raw_disagreement"] < np.log(2)
        assert 0 < line["student/reward_raw_entropy"] <= np.log(32)


def test_ppo_gets_all_of_the_divergence_at_the_last_decision(
    teacher_with_heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The only reward of this run is the potential. What it telescopes to is paid at the end, and nothing before."""
    seen, update = [], student_phase.StudentPhase.update

    def watched(self: student_phase.StudentPhase, progress: float) -> dict[str, float]:
        seen.append(self.reward_REN.clone())
        return update(self, progress)

    monkeypatch.setattr(student_phase.StudentPhase, "update", watched)
    alone = [f"student.rewards.{x}_weight=0" for x in ("wm_uncertainty", "action_rate")]
    argv = flags(teacher_with_heads, tmp_path / "run", 2, "training.video_save_every=0", *alone)
    assert run_here(main, argv, "student") == 0
    (rewards,) = seen
    assert rewards.shape == (1, ENVS, STEPS)
    torch.testing.assert_close(rewards[..., :-1], torch.zeros(1, ENVS, STEPS - 1), rtol=0, atol=1e-6)
    assert (rewards[..., -1] > 1e-3).all()


def test_only_the_explorer_moves_and_the_world_model_stays_that_of_the_teacher(
    student_run: Path, teacher_with_heads: Path
) -> None:
    teacher = open_checkpoint(teacher_with_heads).read("model.pt")
    first, last = (torch.load(student_run / f"checkpoint-{n}" / "model.pt", weights_only=True) for n in (2, 4))
    moved = {k for k in first if not torch.equal(first[k], last[k])}
    assert moved and all(k.startswith(("policy.trunk.act.", "policy.flow.", "value.")) for k in moved)
    assert {"policy.flow.action_out_proj.weight", "value.layers.0.weight"} <= moved
    frozen = {k: v for k, v in teacher.items() if not k.startswith(("trunk.act.", "flow."))}
    assert all(torch.equal(last[f"policy.{k}"], v) for k, v in frozen.items())


def test_a_checkpoint_names_its_teacher_by_hash(student_run: Path, teacher_with_heads: Path) -> None:
    teacher = open_checkpoint(teacher_with_heads)
    origin = open_checkpoint(student_run).read("training_state.pt")["explorer"]["teacher"]
    expected = next(f["sha256"] for f in teacher.manifest["files"] if f["name"] == "model.pt")
    assert origin == {"path": str(teacher.path), "episodes": 2, "sha256": expected}


def test_the_control_of_the_benchmark_is_the_explorer_as_the_teacher_left_it(
    teacher_with_heads: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """It takes an update like any other, and no weight moves."""
    still = [f"{k}={v}" for k, v in student_targets.STILL.items()]
    argv = flags(teacher_with_heads, tmp_path / "run", 1, *still, "training.video_save_every=0")
    assert run_here(main, argv, "student") == 0, capfd.readouterr().err
    (line,) = _lines(tmp_path / "run")
    assert line["student/optimizer_steps"] > 0 and line["student/grad_norm"] > 0
    teacher, explorer = (open_checkpoint(d).read("model.pt") for d in (teacher_with_heads, tmp_path / "run"))
    for name, weight in teacher.items():
        torch.testing.assert_close(explorer[f"policy.{name}"], weight, rtol=0, atol=1e-28)


# --- stop and resume -------------------------------------------------------------------------------------------------


def test_two_episodes_and_two_after_a_resume_equal_four_straight(
    student_run: Path, teacher_with_heads: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, output = run_process(flags(teacher_with_heads, run, 2), "rl.training.train_student_rl")
    assert code == 0, output
    assert parameters_equal(student_run / "checkpoint-2", run / "checkpoint-2")
    # The teacher is not needed any more: the checkpoint holds all of it.
    code, output = run_process([*flags(None, run, 4), "--auto_resume"], "rl.training.train_student_rl")
    assert code == 0, output
    assert parameters_equal(student_run / "checkpoint-4", run / "checkpoint-4")
    assert _without_times(_lines(run)) == _without_times(_lines(student_run))
    for name in ("samples/episode_4.png", "videos/episode_4.mp4"):
        assert (run / name).read_bytes() == (student_run / name).read_bytes()


def test_a_resumed_run_says_that_its_flag_names_other_weights_now(
    teacher_with_heads: Path, straight_run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kept = origin_of(open_checkpoint(teacher_with_heads))
    warn_of_another("--teacher_path", teacher_with_heads, kept)
    warn_of_another("--teacher_path", None, kept)
    warn_of_another("--teacher_path", tmp_path / "gone", kept)  # no longer needed
    assert not caplog.records
    warn_of_another("--teacher_path", straight_run, kept)
    (record,) = caplog.records
    said = record.getMessage()
    assert record.levelname == "WARNING" and f"--teacher_path {straight_run}" in said
    assert f"goes on with the weights of {kept['path']} (episode 2)" in said and "--overwrite" in said


def test_a_run_that_got_sigterm_saves_exits_75_and_continues_to_the_same_end(
    student_run: Path, teacher_with_heads: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    argv = flags(teacher_with_heads, run, 4, "training.save_every=100")
    with student_runs.sigterm_after(1):
        assert run_here(main, argv, "student") == 75, capfd.readouterr().err
    assert open_checkpoint(run).step == 2
    assert run_here(main, [*argv, "--auto_resume"], "student") == 0, capfd.readouterr().err
    assert parameters_equal(student_run / "checkpoint-4", run / "checkpoint-4")
    assert _without_times(_lines(run)) == _without_times(_lines(student_run))


# --- refusals --------------------------------------------------------------------------------------------------------


def _refused(argv: list[str], capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> str:
    def no_simulator(*args: object, **kwargs: object) -> None:
        raise AssertionError("a simulator was started")

    monkeypatch.setattr(student_phase, "EpisodeCollector", no_simulator)
    code = run_here(main, argv, "student")
    output = capfd.readouterr().err
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert (code, len(lines)) == (4, 1), output
    return lines[0]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["student.rewards.memory_divergence_weight=0", "student.rewards.wm_uncertainty_weight=0"], "are both 0"),
        (["student.rewards.memory_divergence_weight=-1"], "student.rewards.divergence_sign turns it round"),
        (["student.rewards.action_rate_weight=-1"], "student.rewards.action_rate_weight is -1.0"),
        (["student.rewards.divergence_sign=sideways"], "student.rewards.divergence_sign"),
        (["student.chunk_exec_steps=4"], "student.chunk_exec_steps is 4"),
        (["student.chunk_exec_steps=2", "training.steps_per_episode=7"], "no multiple of student.chunk_exec_steps 2"),
        (["student.ppo.minibatches=3"], "student.ppo.minibatches is 3, but an iteration has 2 episodes"),
        (["student.min_learning_rate=1"], "student.min_learning_rate 1.0 lies above"),
        (["student.learning_rate=.inf"], "student.learning_rate is inf; it must be positive and finite"),
        (["training.max_grad_norm=-1"], "training.max_grad_norm is -1.0; it must be positive and finite"),
        (["student.ppo.gamma=1.5"], "student.ppo.gamma is 1.5"),
        (["student.ppo.kl_stop=-1"], "student.ppo.kl_stop is -1.0; it must be positive"),
        (["student.ppo.value_clip=0"], "student.ppo.value_clip is 0.0; it must be positive"),
        (["student.ppo.entropy_coef=-0.1"], "student.ppo.entropy_coef is -0.1; it must not be negative"),
        (["student.ppo.value_coef=-1"], "student.ppo.value_coef is -1.0; it must not be negative"),
        (["student.flow.min_std=0.3"], "student.flow.max_std 0.16 lies below"),
        (["arch.world_model.ensemble_heads=0"], "the world model has no ensemble heads"),
        (["--gradient_accumulation_steps", "7"], "training.gradient_accumulation_steps is 7"),
        (["model.lora.mode=on"], "was trained with adapters off; set model.lora.mode=off"),
        (["model.lora.mode=on", "model.lora.lora_dropout=0.1"], "model.lora.lora_dropout is 0.1"),
        (["arch.trunk.num_layers=3"], "arch.trunk.num_layers is 2 there and 3 here"),
        (["arch.world_model.ensemble_heads=3"], "arch.world_model.ensemble_heads is 2 there and 3 here"),
        (["--model_config", "tiny"], "--teacher_path"),
        (["arch.memory.memory_enabled=false"], "student.rewards.memory_divergence_weight is positive"),
        (
            ["environment.action_scale=0.05"],
            "was trained in another world: environment.action_scale is 0.1 there and "
            "0.05 here. Give these keys as it had them",
        ),
        (
            ["environment.instruction=wait", "environment.physics_steps=6"],
            "environment.instruction is explore the table "
            "there and wait here; environment.physics_steps is 5 there and 6 here",
        ),
    ],
)
def test_wrong_input_is_refused_in_one_line_before_any_simulator(
    teacher_with_heads: Path, tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch,
    extra: list[str], message: str,
) -> None:  # fmt: skip
    assert message in _refused(flags(teacher_with_heads, tmp_path / "run", 2, *extra), capfd, monkeypatch)
    assert not any(tmp_path.iterdir())


def test_a_missing_or_unfit_teacher_is_refused_by_its_flag(
    teacher_with_heads: Path, student_run: Path, straight_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def refused(teacher: Path | None, *extra: str) -> str:
        return _refused(flags(teacher, tmp_path / "run", 2, *extra), capfd, monkeypatch)

    assert "--teacher_path DIR is missing" in refused(None)
    assert "--teacher_path: " in refused(tmp_path / "nowhere")
    assert "is no checkpoint of phase 1" in refused(student_run)
    without = refused(straight_run)  # trained without heads
    assert "--teacher_path" in without and "train a teacher with arch.world_model.ensemble_heads=2" in without
    moved = tmp_path / "elsewhere" / "checkpoint-2"
    shutil.copytree(open_checkpoint(teacher_with_heads).path, moved)
    assert "has no model_config.yaml" in refused(moved)
    for name in ("config.yaml", "model_config.yaml"):
        shutil.copy(teacher_with_heads / name, moved.parent)
    (moved / "model.pt").write_bytes(b"damaged")
    assert "model.pt" in refused(moved)
    assert not (tmp_path / "run").exists()


def test_a_teacher_whose_weights_do_not_fit_is_refused_and_nothing_is_left(
    teacher_with_heads: Path, tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The configuration beside the checkpoint says what it is not: keys are compared, too."""
    forged = tmp_path / "forged"
    shutil.copytree(teacher_with_heads, forged)
    text = (forged / "model_config.yaml").read_text().replace("memory_hidden: 16", "memory_hidden: 24")
    (forged / "model_config.yaml").write_text(text)
    argv = flags(forged, tmp_path / "run", 2, "arch.memory.memory_hidden=24")
    message = _refused(argv, capfd, monkeypatch)
    assert "--teacher_path" in message and "another architecture" in message and "memory." in message
    assert not (tmp_path / "run").exists()


# --- modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra",
    [
        ["student.flow.kind=noise", "student.ppo.entropy_coef=0.01"],
        ["student.flow.stochastic_steps=one", "student.chunk_exec_steps=2"],
        ["--mixed_precision", "bf16", "--gradient_accumulation_steps", "2"],
        ["student.rewards.uncertainty=entropy", "student.rewards.divergence_sign=close", "student.flow.chunk_size=1"],
        ["student.rewards.uncertainty=share"],
    ],
    ids=["flow_noise", "one_step_chunks_of_two", "bf16_accumulation", "entropy_close_single_action", "share"],
)
def test_every_mode_trains_to_the_end(
    teacher_with_heads: Path, tmp_path: Path, extra: list[str], capfd: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    assert run_here(main, flags(teacher_with_heads, run, 2, *extra), "student") == 0, capfd.readouterr().err
    line = _lines(run)[-1]
    assert line["episode"] == 2 and line["env_steps"] == ENVS * STEPS and np.isfinite(line["student/policy_loss"])
    assert line["student/first_ratio_error"] <= 1e-5 and line["student/rollout_log_prob_gap"] <= 1e-3


def test_kl_stop_ends_an_update_early(teacher_with_heads: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    run = tmp_path / "run"
    argv = flags(teacher_with_heads, run, 2, "student.ppo.kl_stop=1e-9", "student.ppo.epochs=5")
    assert run_here(main, argv, "student") == 0, capfd.readouterr().err
    line = _lines(run)[-1]
    assert line["student/kl_stopped"] == 1 and 1 <= line["student/optimizer_steps"] < 10
    assert line["student/approx_kl"] > 1e-9
