"""`train.sh teacher` as a whole, with the smallest model: outputs, resume, stop, refusals, modes."""

import json
import shutil
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from peft import PeftConfig, PeftModel
from peft.utils import load_peft_weights
from PIL import Image

from rl.config import load, load_model
from rl.training.checkpoint import open_checkpoint
from rl.training.model_setup import build_base
from rl.training.train_teacher_rl import main
from tests.training import teacher_runs
from tests.training.run_here import run_here
from tests.training.teacher_runs import STEPS, UPDATES, flags, parameters_equal, run_process

SCALE_NAMES = [f"_scale_{k}" for k in range(1, teacher_runs.SCALES + 1)]
TIMES = ("_per_s",)  # what a clock decides


def _lines(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "episode_metrics.jsonl").read_text().splitlines()]


def _without_times(lines: list[dict]) -> list[dict]:
    return [{k: v for k, v in line.items() if not k.endswith(TIMES)} for line in lines]


# --- outputs ---------------------------------------------------------------------------------------------------------


def test_a_run_writes_what_the_design_lists_and_nothing_else(straight_run: Path) -> None:
    names = {p.name for p in straight_run.iterdir()}
    assert names == {
        "config.yaml", "model_config.yaml", "provenance.jsonl", "status.json", "run.lock", "episode_metrics.jsonl",
        "attention.json",
        "checkpoint-3", "checkpoint-6", "samples", "videos", "tensorboard", "logs",
    }  # fmt: skip
    for n in (3, 6):
        files = {p.name for p in (straight_run / f"checkpoint-{n}").iterdir()}
        assert files == {"model.pt", "training_state.pt", "metrics.pt", "manifest.json", "buffer_rank0.pt"}
        assert open_checkpoint(straight_run / f"checkpoint-{n}").step == n
    assert {p.name for p in (straight_run / "samples").iterdir()} == {"episode_3.png", "episode_6.png"}
    assert {p.name for p in (straight_run / "videos").iterdir()} == {"episode_3.mp4", "episode_6.mp4"}
    assert [p.name.startswith("rl_training_") for p in (straight_run / "logs").iterdir()] == [True]
    assert any(p.name.startswith("events.out.tfevents") for p in (straight_run / "tensorboard").iterdir())


def test_the_run_tells_how_it_ended_and_what_it_was_started_with(straight_run: Path) -> None:
    status = json.loads((straight_run / "status.json").read_text())
    expected = {"phase": "teacher", "state": "done", "step": 6, "total": 6, "exit_code": 0}
    assert {k: status[k] for k in expected} == expected
    config = load(straight_run / "config.yaml")
    assert (config.training.num_episodes, config.training.steps_per_episode) == (6, STEPS)
    console = (straight_run.parent / "console.txt").read_text()
    assert "episode 6/6" in console and "steps/s" in console and "ETA 0:00:00" in console
    log_file = next((straight_run / "logs").iterdir()).read_text()
    assert "trainable parts" in log_file and "Traceback" not in log_file


def test_the_sample_picture_shows_four_labelled_columns(straight_run: Path) -> None:
    with Image.open(straight_run / "samples" / "episode_6.png") as picture:
        assert picture.format == "PNG"
        pixels = np.asarray(picture.convert("RGB"))
    # four columns of 256 px, three gaps of 4 px, a label line of 18 px above
    assert pixels.shape == (256 + 18, 4 * 256 + 3 * 4, 3)
    columns = [pixels[18:, i * 260 : i * 260 + 256] for i in range(4)]
    assert all(c.std() > 0 for c in columns)
    last, truth, predicted, error = (c.astype(int) for c in columns)
    assert (last != truth).any()
    # both were drawn from the same numbers: error = 2 |truth - prediction|, cut at 254
    np.testing.assert_array_equal(error, 2 * np.abs(truth - predicted).clip(0, 127))


def test_the_video_plays_in_a_browser_and_has_one_frame_for_every_prediction(straight_run: Path) -> None:
    reader = imageio_ffmpeg.read_frames(str(straight_run / "videos" / "episode_6.mp4"))
    meta = next(reader)
    assert (meta["codec"], meta["pix_fmt"].split("(")[0]) == ("h264", "yuv420p")
    assert meta["size"] == (3 * 256 + 2 * 4, 256 + 18)  # Head | GT Wrist | Predicted
    assert sum(1 for _ in reader) == STEPS


def test_every_episode_has_one_line_with_every_measure(straight_run: Path) -> None:
    lines = _lines(straight_run)
    assert [line["episode"] for line in lines] == [1, 2, 3, 4, 5, 6]
    assert [line["env_steps"] for line in lines] == [STEPS * n for n in range(1, 7)]
    assert [line["updates"] for line in lines] == [UPDATES * n for n in range(1, 7)]
    measures = {f"{name}{scale}" for name in ("loss", "accuracy") for scale in ("", *SCALE_NAMES)}
    others = {
        "copy_accuracy", "memory_norm", "memory_gate", "grad_norm", "learning_rate", "env_steps_per_s",
        "train_steps_per_s",
    }  # fmt: skip
    expected = {f"teacher/{m}" for m in measures | {f"unseen_{m}" for m in measures} | others}
    for line in lines:
        assert set(line) == expected | {"episode", "env_steps", "updates"}
        assert all(isinstance(v, int | float) for v in line.values())
        # a mean over scales, weighted by their tokens 1, 4 and 16
        for prefix in ("", "unseen_"):
            parts = [line[f"teacher/{prefix}loss{s}"] for s in SCALE_NAMES]
            total = float(np.dot(parts, [1, 4, 16])) / 21
            assert line[f"teacher/{prefix}loss"] == pytest.approx(total, rel=1e-5)


def test_the_learning_rate_warms_up_and_follows_the_cosine_of_the_episodes(straight_run: Path) -> None:
    # Two updates an episode, at 0 and half an episode; warm-up over 4 updates; from 1e-3 to 1e-5 over 6 episodes.
    def rate(progress: float, update: int) -> float:
        return (1e-5 + (1e-3 - 1e-5) * 0.5 * (1 + np.cos(np.pi * progress / 6))) * min(1, (update + 1) / 4)

    for e, line in enumerate(_lines(straight_run)):
        expected = (rate(e, 2 * e) + rate(e + 0.5, 2 * e + 1)) / 2
        assert line["teacher/learning_rate"] == pytest.approx(expected, rel=1e-6)


def test_a_checkpoint_holds_the_latest_metrics_and_their_history(straight_run: Path) -> None:
    saved = open_checkpoint(straight_run)
    lines = [{k: v for k, v in line.items() if k != "episode"} for line in _lines(straight_run)]
    assert saved.read("metrics.pt") == lines[-1]
    assert saved.read("training_state.pt")["metrics_history"] == lines


def test_the_tokenizer_never_trains_and_the_memory_does(straight_run: Path, tokenizer_path: Path) -> None:
    first, last = (torch.load(straight_run / f"checkpoint-{n}" / "model.pt", weights_only=True) for n in (3, 6))
    moved = {k for k in first if not torch.equal(first[k], last[k])}
    assert not any(k.startswith(("tokenizer.", "vision.tower.", "trunk.act.", "flow.")) for k in moved)
    assert {"memory.memory_gate", "memory.out_proj.weight", "world_model.out_proj.weight"} <= moved


# --- stop and resume -------------------------------------------------------------------------------------------------


def test_three_episodes_and_three_after_a_resume_equal_six_straight(
    straight_run: Path, tokenizer_path: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    code, output = run_process(flags(tokenizer_path, run, 3, "training.schedule_episodes=6"))
    assert code == 0, output
    assert parameters_equal(straight_run / "checkpoint-3", run / "checkpoint-3")
    code, output = run_process(flags(tokenizer_path, run, 6, "training.schedule_episodes=6", "--auto_resume"))
    assert code == 0, output
    assert parameters_equal(straight_run / "checkpoint-6", run / "checkpoint-6")
    assert _without_times(_lines(run)) == _without_times(_lines(straight_run))
    for name in ("samples/episode_6.png", "videos/episode_6.mp4"):
        assert (run / name).read_bytes() == (straight_run / name).read_bytes()


@pytest.mark.parametrize("updates", [4, 9, 11], ids=["after_an_episode", "within_an_episode", "within_the_last"])
def test_a_run_that_got_sigterm_saves_exits_75_and_continues_to_the_same_end(
    straight_run: Path, tokenizer_path: Path, tmp_path: Path, updates: int, capfd: pytest.CaptureFixture
) -> None:
    run, argv = tmp_path / "run", flags(tokenizer_path, tmp_path / "run", 6, "training.schedule_episodes=6")
    if updates == 9:  # once as a process of its own
        code, output = teacher_runs.run_process_stopped_after(updates, argv)
    else:
        with teacher_runs.sigterm_after(updates):
            code, output = run_here(main, argv), capfd.readouterr().err
    assert code == 75, output
    assert "stopped: SIGTERM received, everything is saved" in output and "--auto_resume" in output
    status = json.loads((run / "status.json").read_text())
    episode = -(-updates // UPDATES)
    assert (status["state"], status["step"], status["exit_code"]) == ("preempted", episode, 75)
    assert open_checkpoint(run).step == episode
    assert len(_lines(run)) == updates // UPDATES
    code = run_here(main, [*argv, "--auto_resume"])
    assert code == 0, capfd.readouterr().err
    assert parameters_equal(straight_run / "checkpoint-6", run / "checkpoint-6")
    assert _without_times(_lines(run)) == _without_times(_lines(straight_run))
    assert (run / "samples" / "episode_6.png").read_bytes() == (straight_run / "samples" / "episode_6.png").read_bytes()
    assert not [p for p in run.iterdir() if p.name.startswith(".")]


def test_a_finished_run_has_nothing_to_do(straight_run: Path, tokenizer_path: Path, tmp_path: Path) -> None:
    before = (straight_run / "episode_metrics.jsonl").read_bytes()
    copy = tmp_path / "run"
    shutil.copytree(straight_run, copy)
    argv = flags(tokenizer_path, copy, 6, "training.schedule_episodes=6", "--auto_resume")
    assert run_here(main, argv) == 0
    assert (copy / "episode_metrics.jsonl").read_bytes() == before
    assert {p.name for p in copy.glob("checkpoint-*")} == {"checkpoint-3", "checkpoint-6"}
    assert json.loads((copy / "status.json").read_text())["state"] == "done"


# --- refusals --------------------------------------------------------------------------------------------------------


def _snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def _refused(argv: list[str], capfd: pytest.CaptureFixture, code: int = 4) -> str:
    """The one line of complaint on stderr."""
    assert run_here(main, argv) == code
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]


def test_an_existing_run_is_not_overwritten_unless_told_to(
    straight_run: Path, tokenizer_path: Path, capfd: pytest.CaptureFixture
) -> None:
    before = _snapshot(straight_run)
    message = _refused(flags(tokenizer_path, straight_run, 6), capfd)
    assert "holds a run already; continue it with --auto_resume, replace it with --overwrite" in message
    assert {k: v for k, v in _snapshot(straight_run).items() if k != "run.lock"} == {
        k: v for k, v in before.items() if k != "run.lock"
    }


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            ["environment.wm_size=128"],
            "environment.wm_size is 128 px, but the tokenizer of model 'debug_test' takes",
        ),
        (["model.tokenizer_path=/nowhere.safetensors"], "model.tokenizer_path /nowhere.safetensors does not exist"),
        (["teacher.screen_share=0.5"], "set environment.domain_randomization.noisy_screen=true"),
        (["arch.tokenizer.vocab_size=64"], "does not fit the model: vocab_size: file 32, model 64"),
        (["training.num_envs=0"], "training.num_envs is 0; it must be at least 1"),
        (["training.batch_sise=3"], "did you mean 'training.batch_size'?"),
        (["training.batch_size=many"], "training.batch_size"),
        (["--bacth_size", "3"], "unknown flag --bacth_size"),
        (["training.action_dim=8"], "training.action_dim is 8, the model has 32; set training.action_dim=32"),
        (["--resume", "/nowhere/checkpoint-3"], "no checkpoint there"),
        (["environment.supervision.window=0"], "environment.supervision.window is 0; it must be at least 1"),
        (["training.bptt_length=9"], "training.bptt_length is 9, but an episode has 8 steps with a target"),
        (["--mixed_precision", "fp16"], "fp16 needs a GPU"),
    ],
)
def test_wrong_input_is_refused_in_one_line_and_nothing_is_written(
    tokenizer_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture, extra: list[str], message: str
) -> None:
    argv = flags(tokenizer_path, tmp_path / "run", 2, *extra)
    assert message in _refused(argv, capfd)
    assert not any(tmp_path.iterdir())


def test_an_output_directory_that_cannot_be_made_is_refused(
    tokenizer_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    (tmp_path / "file").write_text("not a directory")
    message = _refused(flags(tokenizer_path, tmp_path / "file" / "run", 2), capfd)
    assert f"output directory {tmp_path}/file/run: cannot write" in message and "(Not a directory)" in message


def test_a_changed_configuration_is_refused_on_resume(
    straight_run: Path, tokenizer_path: Path, capfd: pytest.CaptureFixture
) -> None:
    argv = flags(tokenizer_path, straight_run, 8, "training.schedule_episodes=6", "--auto_resume")
    message = _refused([*argv, "training.learning_rate=0.5"], capfd)
    assert "training.learning_rate 0.001 -> 0.5" in message


def test_a_loss_that_is_not_finite_ends_the_run_with_3_and_keeps_the_batch(
    tokenizer_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    argv = flags(
        tokenizer_path, tmp_path / "run", 4, "training.learning_rate=1e30", "training.warmup_updates=0",
        "training.save_every=1", "teacher.updates_per_episode=1",
    )  # fmt: skip
    message = _refused(argv, capfd, code=3)
    assert "loss or gradient is not finite" in message and "teacher: training.learning_rate" in message
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("failed", 3)
    batch = torch.load(tmp_path / "run" / "not_finite_batch_rank0.pt", weights_only=True)
    assert batch["target_ids"].shape[1] == 3 + 2  # a window and its burn-in
    assert not [p for p in (tmp_path / "run").iterdir() if p.name.startswith(".")]


# --- modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extra",
    [
        ["training.sequential_training=false"],
        ["--mixed_precision", "bf16"],
        ["training.memory_backprop=false", "--gradient_accumulation_steps", "2"],
        ["arch.world_model.latent_head=true", "arch.world_model.latent_head_logit_scale=1"],
        ["arch.obs_img_stride=2", "training.num_envs=2"],
        ["teacher.freeze.freeze_vision_encoder=false", "arch.memory.memory_enabled=false"],
    ],
    ids=["random_batches", "bf16", "accumulation", "latent_head", "stride_and_two_envs", "vision_trained_no_memory"],
)
def test_every_mode_trains_to_the_end(
    tokenizer_path: Path, tmp_path: Path, extra: list[str], capfd: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    code = run_here(main, flags(tokenizer_path, run, 2, "training.save_every=2", *extra))
    assert code == 0, capfd.readouterr().err
    lines = _lines(run)
    assert lines[-1]["episode"] == 2 and np.isfinite(lines[-1]["teacher/loss"])
    assert ("teacher/latent_loss" in lines[-1]) == ("arch.world_model.latent_head=true" in extra)
    assert (run / "checkpoint-2" / "manifest.json").is_file() and (run / "videos" / "episode_2.mp4").is_file()


def test_an_adapter_is_saved_as_peft_reads_it(
    tokenizer_path: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    run = tmp_path / "run"
    argv = flags(tokenizer_path, run, 1, "model.lora.mode=on", "model.lora.r=2", "training.learning_rate=0.01")
    assert run_here(main, argv) == 0, capfd.readouterr().err
    adapter = open_checkpoint(run).adapter_dir
    assert adapter is not None and {p.name for p in adapter.iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors",
    }  # fmt: skip
    assert PeftConfig.from_pretrained(str(adapter)).r == 2
    config = load(run / "config.yaml")
    fresh = build_base(config, load_model(str(run / "model_config.yaml")), "cpu")
    loaded = PeftModel.from_pretrained(fresh, str(adapter))
    saved = torch.load(run / "checkpoint-1" / "model.pt", weights_only=True)
    weights = load_peft_weights(str(adapter))
    assert weights and all("trunk.und." in k or "trunk.gen." in k for k in weights)
    for name, value in loaded.named_parameters():
        if ".lora_" in name:
            own = name.removeprefix("base_model.model.").replace(".default.", ".world_model.")
            assert torch.equal(value, saved[own]), name
    assert any(v.abs().max() > 0 for k, v in weights.items() if "lora_B" in k)  # it has learned something
