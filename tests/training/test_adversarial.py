"""`train.sh adversarial` as a whole, with the smallest model: outputs, roles, resume, stop, refusals, modes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from rl.training import cli, student_phase
from rl.training.checkpoint import open_checkpoint
from rl.training.evaluation.loading import load_run
from rl.training.train_adversarial_rl import main
from rl.training.train_student_rl import main as student_main
from tests.training import student_runs
from tests.training.adversarial_runs import MODULE, flags, sigterm_after
from tests.training.run_here import run_here
from tests.training.teacher_runs import parameters_equal, run_process, with_other_weights

Refused = Callable[..., str]
STEPS, ENVS = student_runs.STEPS, student_runs.ENVS


def _lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "episode_metrics.jsonl").read_text().splitlines()]


def _without_times(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if not k.endswith(("_per_s", "_s"))} for line in lines]


def _model(run: Path, iteration: int) -> dict[str, torch.Tensor]:
    return torch.load(run / f"checkpoint-{iteration}" / "model.pt", weights_only=True)


def _is_explorers(name: str) -> bool:
    return name.startswith(("policy.trunk.act.", "policy.flow.", "value."))


# --- outputs ---------------------------------------------------------------------------------------------------------


def test_a_run_writes_checkpoints_pictures_and_videos(adversarial_run: Path) -> None:
    for n in (2, 4):
        files = {p.name for p in (adversarial_run / f"checkpoint-{n}").iterdir()}
        rank_files = {"replay_rank0.pt", "held_out_rank0.pt"}
        assert files == {"model.pt", "training_state.pt", "metrics.pt", "manifest.json"} | rank_files
    assert {p.name for p in (adversarial_run / "samples").iterdir()} == {"episode_2.png", "episode_4.png"}
    assert {p.name for p in (adversarial_run / "videos").iterdir()} == {"episode_2.mp4", "episode_4.mp4"}
    status = json.loads((adversarial_run / "status.json").read_text())
    assert (status["state"], status["step"], status["phase"]) == ("done", 4, "adversarial")


def test_every_iteration_has_a_line_with_both_players_and_signs_of_collapse(adversarial_run: Path) -> None:
    lines = _lines(adversarial_run)
    assert [line["iteration"] for line in lines] == [1, 2, 3, 4]
    # three rounds an iteration (explorer, past, random), one round of random actions before the first
    assert [line["env_steps"] for line in lines] == [(3 * i + 1) * ENVS * STEPS for i in range(1, 5)]
    assert [line["updates"] for line in lines] == [3, 7, 11, 15]  # three of the world model, one of the explorer
    signs = {"action_std", "reward_std", "reward_raw_std_share", "token_top_share", "collapse_signs"}
    world_model = {"loss", "accuracy", "grad_norm", "learning_rate", "ensemble_loss", "loss_random", "loss_adversarial"}
    explorer = {
        "policy_loss", "kl_to_phase2", "leash_weight", "explorer_grad_norm", "explorer_learning_rate", "approx_kl",
        "first_ratio_error", "rollout_log_prob_gap",
    }  # fmt: skip
    for line in lines:
        names = {k.removeprefix("adversarial/") for k in line}
        assert all(np.isfinite(v) for v in line.values())
        assert signs | world_model | {"unseen_random_loss", "unseen_past_loss", "rollbacks", "past_explorers"} <= names
        assert (explorer <= names) == (line["iteration"] > 1)  # the first iteration is warm-up
        now, start = (
            [x[f"adversarial/reward_raw_std_{c}"] for c in ("memory_divergence", "disagreement")]
            for x in (line, lines[0])
        )
        least = min(a / b for a, b in zip(now, start, strict=True))
        assert line["adversarial/reward_raw_std_share"] == pytest.approx(least)
    suites = {f"held_out_{s}_loss" for s in ("random", "past", "noisy", "current")}
    measured = [suites <= {k.removeprefix("adversarial/") for k in line} for line in lines]
    assert measured == [True, True, False, True]  # before the first update, and every second iteration
    first = lines[0]
    assert first["adversarial/held_out_past_loss"] == first["adversarial/held_out_current_loss"]
    assert [line["adversarial/past_explorers"] for line in lines] == [1, 1, 2, 3]
    for line in lines[1:]:
        assert line["adversarial/first_ratio_error"] <= 1e-5 and line["adversarial/rollout_log_prob_gap"] <= 1e-3
        assert line["adversarial/kl_to_phase2"] > 0


def test_each_player_moves_its_own_parameters_and_the_base_stays(adversarial_run: Path, student_run: Path) -> None:
    start = open_checkpoint(student_run).read("model.pt")
    first, last = _model(adversarial_run, 2), _model(adversarial_run, 4)
    moved = {k for k in first if not torch.equal(start[k], first[k]) and not torch.equal(first[k], last[k])}
    explorers = {k for k in moved if _is_explorers(k)}
    assert {"policy.flow.action_out_proj.weight", "value.layers.0.weight"} <= explorers
    assert {"policy.world_model.ensemble.readout", "policy.world_model.embed.weight"} <= moved - explorers
    assert any(k.startswith("policy.trunk.gen.") for k in moved) and any(k.startswith("policy.memory.") for k in moved)
    assert not any(k.startswith(("policy.vision.tower.", "policy.tokenizer.")) for k in moved)


@pytest.mark.parametrize("player", ["world_model", "explorer"])
def test_in_the_warm_up_one_player_alone_moves(
    player: str, adversarial_run: Path, teacher_with_heads: Path, student_run: Path, tmp_path: Path,
    capfd: pytest.CaptureFixture,
) -> None:  # fmt: skip
    run = tmp_path / "run"
    extra = [f"adversarial.warmup_player={player}", "training.save_every=1", "training.video_save_every=0"]
    assert run_here(main, flags(teacher_with_heads, student_run, run, 2, *extra), "adversarial") == 0, (
        capfd.readouterr()
    )
    start, end = open_checkpoint(student_run).read("model.pt"), _model(run, 1)
    moved = {_is_explorers(k) for k in end if not torch.equal(start[k], end[k])}
    assert moved == {player == "explorer"}
    both = {_is_explorers(k) for k, v in _model(run, 2).items() if not torch.equal(end[k], v)}
    assert both == {True, False}


def test_a_checkpoint_is_evaluated_as_one_of_its_phase_with_its_explorer(adversarial_run: Path) -> None:
    args = cli.parse("evaluate", ["--phase", "adversarial", "--checkpoint", str(adversarial_run), "--device", "cpu"])
    found = load_run(args.checkpoint, "--checkpoint", args, torch.device("cpu"), "adversarial")
    assert found.phase == "adversarial" and found.explorer is not None
    last = _model(adversarial_run, 4)
    assert all(torch.equal(v, last[k]) for k, v in found.explorer.state_dict().items())


# --- stop and resume -------------------------------------------------------------------------------------------------


def test_two_iterations_and_two_after_a_resume_equal_four_straight(
    adversarial_run: Path, teacher_with_heads: Path, student_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, output = run_process(flags(teacher_with_heads, student_run, run, 2), MODULE)
    assert code == 0, output
    # Neither teacher nor student is needed any more.
    code, output = run_process([*flags(None, None, run, 4), "--auto_resume"], MODULE)
    assert code == 0, output
    for n in (2, 4):
        assert parameters_equal(adversarial_run / f"checkpoint-{n}", run / f"checkpoint-{n}")
    assert _without_times(_lines(run)) == _without_times(_lines(adversarial_run))
    for name in ("samples/episode_4.png", "videos/episode_4.mp4"):
        assert (run / name).read_bytes() == (adversarial_run / name).read_bytes()


def test_a_run_stopped_between_two_updates_continues_to_the_same_end(
    adversarial_run: Path, teacher_with_heads: Path, student_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """The signal comes in iteration 2, after the explorer's update and one of three of the world model."""
    run = tmp_path / "run"
    argv = flags(teacher_with_heads, student_run, run, 4, "training.video_save_every=0", "training.sample_save_every=0")
    with sigterm_after(4):
        assert run_here(main, argv, "adversarial") == 75, capfd.readouterr().err
    assert open_checkpoint(run).read("training_state.pt")["loop"]["updates_done"] == 2
    assert run_here(main, [*argv, "--auto_resume"], "adversarial") == 0, capfd.readouterr().err
    assert parameters_equal(adversarial_run / "checkpoint-4", run / "checkpoint-4")
    assert _without_times(_lines(run)) == _without_times(_lines(adversarial_run))


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.fixture
def refused(
    teacher_with_heads: Path, student_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> Refused:  # fmt: skip
    """The one line of a refusal, before any simulator and with nothing written."""

    def no_simulator(*args: object, **kwargs: object) -> None:
        raise AssertionError("a simulator was started")

    monkeypatch.setattr(student_phase, "EpisodeCollector", no_simulator)

    def run(*extra: str, teacher: Path | None = teacher_with_heads, student: Path | None = student_run) -> str:
        code = run_here(main, flags(teacher, student, tmp_path / "run", 2, *extra), "adversarial")
        output = capfd.readouterr().err
        lines = [line for line in output.splitlines() if line.startswith("error: ")]
        assert (code, len(lines)) == (4, 1), output
        assert not (tmp_path / "run").exists()
        return lines[0]

    return run


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["adversarial.warmup_iterations=5"], "--total_iterations (adversarial.total_iterations) is 2"),
        (["adversarial.replay.random_share=0.1"], "make 0.5 to 1 together"),
        (["adversarial.wm_updates_per_iter=0"], "adversarial.wm_updates_per_iter is 0"),
        (["adversarial.leash.weight=1e9"], "adversarial.leash.weight is 1000000000.0"),
        (["adversarial.held_out.seed=5"], "adversarial.held_out.seed is 5"),
        (
            ["adversarial.wm_min_learning_rate=1e-3"],
            "adversarial.wm_min_learning_rate is 0.001; it lies between 0 and adversarial.wm_learning_rate 0.00015",
        ),
        (["adversarial.explorer_min_learning_rate=1e-3"], "adversarial.explorer_min_learning_rate is 0.001"),
        (["adversarial.schedule_iterations=-5"], "adversarial.schedule_iterations is -5"),
        (["training.max_grad_norm=0"], "training.max_grad_norm is 0.0; it must be positive"),
        (["adversarial.collapse.min_action_std=2"], "adversarial.collapse.min_action_std"),
        (["adversarial.collapse.min_raw_std_share=1"], "adversarial.collapse.min_raw_std_share is 1.0"),
        (["student.rewards.memory_divergence_weight=0", "student.rewards.wm_uncertainty_weight=0"], "are both 0"),
        (["student.flow.num_steps=3"], "--student_checkpoint"),
        (["student.value_hidden=16"], "student.value_hidden is 128 there and 16 here"),
        (["arch.trunk.num_layers=3"], "--teacher_checkpoint"),
        (["environment.gripper_scale=0.02"], "environment.gripper_scale is 0.01 there and 0.02 here"),
    ],
)
def test_wrong_settings_are_refused_in_one_line(refused: Refused, extra: list[str], message: str) -> None:
    assert message in refused(*extra)


def test_missing_or_unfit_checkpoints_are_refused_by_their_flag(
    refused: Refused, adversarial_run: Path, student_run: Path, teacher_with_heads: Path, tmp_path: Path
) -> None:  # fmt: skip
    assert "--teacher_checkpoint DIR is missing" in refused(teacher=None)
    assert "--student_checkpoint DIR is missing" in refused(student=None)
    assert "--student_checkpoint: " in refused(student=tmp_path / "nowhere")
    assert "is no checkpoint of phase 1" in refused(teacher=student_run)
    for other in (teacher_with_heads, adversarial_run):
        assert "is no checkpoint of phase 2" in refused(student=other)


def test_a_student_of_another_teacher_is_refused_by_its_flag(
    refused: Refused, teacher_with_heads: Path, tmp_path: Path
) -> None:  # fmt: skip
    """The same configuration, other weights."""
    other = with_other_weights(teacher_with_heads, tmp_path / "other", "world_model.embed.weight")
    message = refused(teacher=other)
    assert "--student_checkpoint" in message and "was made with the world model of" in message


def test_a_student_of_another_world_is_refused_by_its_flag(
    refused: Refused, student_run: Path, tmp_path: Path
) -> None:  # fmt: skip
    other = tmp_path / "other"
    shutil.copytree(student_run, other)
    text = (other / "config.yaml").read_text()
    assert "physics_timestep: 0.01" in text
    (other / "config.yaml").write_text(text.replace("physics_timestep: 0.01", "physics_timestep: 0.02"))
    message = refused(student=other)
    assert "--student_checkpoint" in message and "environment.physics_timestep is 0.02 there and 0.01 here" in message


def test_a_student_whose_weights_do_not_fit_is_refused_before_any_simulator(
    refused: Refused, student_run: Path, tmp_path: Path
) -> None:  # fmt: skip
    """The configuration beside the checkpoint says what it is not: keys and shapes are compared, too."""
    forged = tmp_path / "forged"
    shutil.copytree(student_run, forged)
    text = (forged / "config.yaml").read_text()
    assert "value_hidden: 128" in text
    (forged / "config.yaml").write_text(text.replace("value_hidden: 128", "value_hidden: 24"))
    message = refused("student.value_hidden=24", student=forged)
    assert "--student_checkpoint: " in message and "another architecture" in message
    assert "value.layers.0.weight (128, " in message and "instead of (24, " in message


# --- modes -----------------------------------------------------------------------------------------------------------


def test_a_run_with_bf16_accumulation_and_a_world_model_that_forgets_goes_back(
    teacher_with_heads: Path, student_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """A learning rate far too high: the random suite regresses and the world model is rolled back."""
    run = tmp_path / "run"
    extra = [
        "--mixed_precision", "bf16", "--gradient_accumulation_steps", "2", "adversarial.wm_learning_rate=1.0",
        "adversarial.held_out.every=1", "adversarial.wm_warmup_updates=0", "training.video_save_every=0",
        "adversarial.collapse.max_action_std=0.06", "training.sample_save_every=0",
    ]  # fmt: skip
    assert run_here(main, flags(teacher_with_heads, student_run, run, 2, *extra), "adversarial") == 0, (
        capfd.readouterr()
    )
    lines = _lines(run)
    assert [line["adversarial/rollbacks"] for line in lines] == [0, 1]  # counted before the iteration is judged
    assert all(line["adversarial/collapse_signs"] >= 1 for line in lines)
    told = capfd.readouterr().err
    assert "goes back to the last good weights" in told and "actions sit at their bounds" in told
    start = open_checkpoint(student_run).read("model.pt")
    kept = {k: v for k, v in _model(run, 2).items() if not _is_explorers(k)}
    assert all(torch.equal(start[k], v) for k, v in kept.items())  # both iterations went back to the teacher's


def test_a_teacher_without_ensemble_heads_plays_both_phases_on_entropy(
    straight_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """The remedy that the refusal of such a teacher names."""
    extra = [
        "arch.world_model.ensemble_heads=0", "arch.world_model.ensemble_features=64",
        "student.rewards.uncertainty=entropy", "training.video_save_every=0", "training.sample_save_every=0",
    ]  # fmt: skip
    student, run = tmp_path / "student", tmp_path / "run"
    assert run_here(student_main, student_runs.flags(straight_run, student, 2, *extra), "student") == 0, (
        capfd.readouterr().err
    )
    assert run_here(main, flags(straight_run, student, run, 2, *extra), "adversarial") == 0, capfd.readouterr().err
    last = _lines(run)[-1]
    assert "adversarial/reward_raw_disagreement" not in last
    for name in ("reward_scaled_entropy", "wm_nll", "loss_adversarial", "held_out_current_loss"):
        assert np.isfinite(last[f"adversarial/{name}"]), name
