"""`train.sh evaluate` on runs of every phase: sections, the same scenes for everybody, repeatability, videos."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import imageio_ffmpeg
import numpy as np
import pytest
import torch

from rl.config import TrainingConfig
from rl.training import cli, evaluate_rl
from rl.training.checkpoint import open_checkpoint
from rl.training.evaluation import measure, video
from rl.training.evaluation.frames import score_frames
from rl.training.evaluation.loading import LoadedRun, check_same_tokens, load_run, weights_of
from rl.training.parallel_utils import ParallelContext
from rl.types import EpisodeRecord
from tests.training.run_here import run_here
from tests.training.student_runs import STEPS
from tests.training.teacher_runs import with_other_weights

EPISODES = 2
QUICK = [
    "--device", "cpu", "--episodes", str(EPISODES), "training.num_threads=1", "evaluation.bootstrap_samples=20",
    "evaluation.unfamiliar_episodes=0", "evaluation.videos=1",
]  # fmt: skip
VIDEO_SIZE = (4 * 256 + 3 * 4, 18 + 256)  # four pictures of 64 px enlarged, gaps; a line of labels above


def _measured(target: Path, *argv: object) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The result and the lines of single episodes."""
    assert run_here(evaluate_rl.main, [*map(str, argv), "--json", str(target), *QUICK], "evaluate") == 0
    lines = target.with_suffix(".jsonl").read_text().splitlines()
    return json.loads(target.read_text()), [json.loads(line) for line in lines]


def _loaded(run: Path) -> LoadedRun:
    args = cli.parse("evaluate", ["--checkpoint", str(run), "--device", "cpu"])
    return load_run(args.checkpoint, "--checkpoint", args, torch.device("cpu"))


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[list[EpisodeRecord]]:
    """The episodes of every policy that an evaluation in this process plays, in its order."""
    rounds: list[list[EpisodeRecord]] = []
    play = measure.play

    def noted(*arguments: Any) -> list[EpisodeRecord]:
        rounds.append(play(*arguments))
        return rounds[-1]

    monkeypatch.setattr(measure, "play", noted)
    return rounds


def _frames(path: Path) -> tuple[tuple[int, int], int]:
    """Size and number."""
    reader = imageio_ffmpeg.read_frames(str(path))
    return next(reader)["size"], sum(1 for _ in reader)


def test_weights_are_named_by_their_place_below_the_working_directory(
    teacher_with_heads: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saved = open_checkpoint(teacher_with_heads)
    monkeypatch.chdir(teacher_with_heads.parent)
    here = weights_of(saved)
    monkeypatch.chdir(tmp_path)
    elsewhere = weights_of(saved)
    assert here["path"] == f"{teacher_with_heads.name}/{saved.path.name}" and here["sha256"] == elsewhere["sha256"]
    assert elsewhere["path"] == str(saved.path.resolve())


def test_a_game_is_measured_beside_random_actions_and_beside_its_teacher_in_the_same_scenes(
    adversarial_run: Path, teacher_with_heads: Path, tmp_path: Path, played: list[list[EpisodeRecord]]
) -> None:
    argv = ["--phase", "adversarial", "--checkpoint", adversarial_run, "--teacher_checkpoint", teacher_with_heads]
    result, rows = _measured(tmp_path / "numbers.json", *argv, "--video")
    assert (result["phase"], result["policy"], result["episodes"]) == ("adversarial", "explorer", EPISODES)
    assert result["weights"] == result["actor"] == weights_of(open_checkpoint(adversarial_run))
    assert result["teacher"] == weights_of(open_checkpoint(teacher_with_heads))
    assert {"auroc/high_loss/disagreement", "frame/disagreement", "true/nll"} <= result["measures"].keys()

    reference, explorer, random = played
    for e in range(EPISODES):
        for other in (reference, random):
            assert np.array_equal(explorer[e].head[0], other[e].head[0])
            assert np.array_equal(explorer[e].wrist[0], other[e].wrist[0])
            assert not np.array_equal(explorer[e].actions, other[e].actions)
    assert not np.array_equal(explorer[0].head[0], explorer[1].head[0])

    by_policy = {p: [r for r in rows if r["policy"] == p] for p in ("explorer", "random")}
    assert [[r["episode"] for r in lines] for lines in by_policy.values()] == [[0, 1]] * 2
    for name, c in result["baseline"]["comparison"].items():
        (a1, a2), (b1, b2) = ([r[name] for r in lines] for lines in by_policy.values())
        assert c["difference"]["mean"] == pytest.approx((a1 - b1 + a2 - b2) / 2, abs=1e-9)
        assert c["ratio"] is None or c["ratio"]["mean"] == pytest.approx((a1 + a2) / (b1 + b2))
    ctx, teacher = ParallelContext.create(TrainingConfig(device="cpu")), _loaded(teacher_with_heads)
    for policy, records in [("explorer", explorer), ("random", random)]:
        theirs = score_frames(teacher, records, ctx).nll.mean()
        ours = np.mean([r["frame/nll"] for r in by_policy[policy]])
        against = result["against_teacher"][policy]["frame/nll"]
        assert against["difference"]["mean"] == pytest.approx(ours - theirs, abs=1e-5) and ours != theirs
    ctx.close()

    videos = [f"numbers.videos/{p}_episode_0.mp4" for p in by_policy]
    assert result["videos"] == videos and [_frames(tmp_path / v) for v in videos] == [(VIDEO_SIZE, STEPS)] * 2

    again, rows_again = _measured(tmp_path / "again.json", *argv)
    assert rows_again == rows
    assert {k: v for k, v in result.items() if k not in ("command", "videos")} == {
        k: v for k, v in again.items() if k != "command"
    }


def test_the_explorer_of_another_run_acts_as_it_does_in_its_own(
    teacher_with_heads: Path, student_run: Path, tmp_path: Path
) -> None:
    """A student keeps the world model of its teacher, so that every number is the same, whichever is measured."""
    student = ["--student_checkpoint", student_run]
    lent, rows = _measured(tmp_path / "lent.json", "--phase", "teacher", "--checkpoint", teacher_with_heads, *student)
    argv = ["--phase", "student", "--checkpoint", student_run, "--policy", "explorer"]
    own, own_rows = _measured(tmp_path / "own.json", *argv)
    assert (lent["phase"], lent["policy"], own["policy"]) == ("teacher", "explorer", "explorer")
    assert lent["actor"] == own["weights"] != lent["weights"] == weights_of(open_checkpoint(teacher_with_heads))
    assert rows == own_rows and (lent["measures"], lent["baseline"]) == (own["measures"], own["baseline"])
    assert "against_teacher" not in lent and lent["baseline"]["policy"] == "random"


@pytest.mark.parametrize(("run", "kind"), [("teacher_with_heads", "disagreement"), ("straight_run", "entropy")])
def test_the_fourth_panel_of_a_video_is_what_the_world_model_does_not_know(
    run: str, kind: str, request: pytest.FixtureRequest, world: ParallelContext, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    rng, steps = np.random.default_rng(0), 4
    head, wrist, wrist_vlm = rng.integers(0, 256, (3, steps + 1, 64, 64, 3), dtype=np.uint8)
    states, actions = np.zeros((steps + 1, 32), np.float32), np.zeros((steps, 32), np.float32)
    record = EpisodeRecord(head, wrist, wrist_vlm, states, actions, 0, 0)
    loaded, panels, row = _loaded(request.getfixturevalue(run)), [], video.media.labelled_row

    def noted(columns: dict[str, np.ndarray]) -> np.ndarray:
        panels.append(columns)
        return row(columns)

    monkeypatch.setattr(video.media, "labelled_row", noted)
    video.write_video(loaded, record, world, tmp_path / "v.mp4")
    assert _frames(tmp_path / "v.mp4") == (VIDEO_SIZE, steps)
    _, found, maps = video.predict(loaded, record, world)
    assert found == kind and maps.shape == (steps, 64, 64)
    # Every scale weighs the same in a map as it does in the number of its frame.
    np.testing.assert_allclose(maps.mean((1, 2)), score_frames(loaded, [record], world).uncertainty[kind][0], rtol=1e-4)
    label = f"{kind.capitalize()} 0 .. {np.quantile(maps, 0.99):.2g} nats"
    for t, columns in enumerate(panels):
        assert list(columns) == ["Head", "GT wrist", "Predicted", label]
        assert (columns["Head"] == head[t + 1]).all() and (columns["GT wrist"] == wrist[t + 1]).all()
        assert (columns[label] == video.colours(maps)[t]).all()


def test_a_file_of_settings_says_how_to_measure_and_not_what_was_trained(
    teacher_with_heads: Path, tmp_path: Path
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("evaluation: {worst_share: 0.25, num_episodes: 7}\nenvironment: {num_objects: 5}\n")
    argv = ["--checkpoint", str(teacher_with_heads), "--device", "cpu", "--rl_config", str(file), "--episodes", "9"]
    args = cli.parse("evaluate", argv)
    cfg = load_run(args.checkpoint, "--checkpoint", args, torch.device("cpu")).cfg
    assert (cfg.evaluation.worst_share, cfg.evaluation.num_episodes) == (0.25, 9)
    assert cfg.environment.num_objects == _loaded(teacher_with_heads).cfg.environment.num_objects != 5


# --- what cannot be compared -----------------------------------------------------------------------------------------


def test_a_world_model_that_cannot_be_compared_is_refused_before_any_simulator(
    teacher_with_heads: Path, tmp_path: Path, capfd: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_simulator(*arguments: object) -> None:
        raise AssertionError("a simulator was started")

    monkeypatch.setattr(measure, "held_out_scenes", no_simulator)

    def refused(other: Path) -> str:
        argv = ["--checkpoint", str(teacher_with_heads), "--teacher_checkpoint", str(other), *QUICK]
        assert run_here(evaluate_rl.main, argv, "evaluate") == 4
        return capfd.readouterr().err

    def edited(name: str, file: str, old: str, new: str) -> Path:
        shutil.copytree(teacher_with_heads, tmp_path / name)
        text = (tmp_path / name / file).read_text()
        assert old in text
        (tmp_path / name / file).write_text(text.replace(old, new))
        return tmp_path / name

    said = refused(edited("pictures", "config.yaml", "wm_size: 64", "wm_size: 96"))
    assert "--teacher_checkpoint" in said and "environment.wm_size is 96 there and 64 here" in said
    said = refused(edited("world", "config.yaml", "action_scale: 0.1", "action_scale: 0.05"))
    assert "--teacher_checkpoint" in said and "environment.action_scale is 0.05 there and 0.1 here" in said
    said = refused(edited("history", "model_config.yaml", "obs_img_stride: 1", "obs_img_stride: 2"))
    assert "--teacher_checkpoint" in said and "arch.obs_img_stride is 2 there and 1 here" in said
    codes = with_other_weights(teacher_with_heads, tmp_path / "codes", "tokenizer.quantize.embedding.weight")
    said = refused(codes)
    assert "--teacher_checkpoint" in said and "its tokenizer has other weights" in said
    assert "--teacher_checkpoint: " in refused(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("block", "key", "value"),
    [("tokenizer", "scales", [1, 2, 3]), ("tokenizer", "vocab_size", 16), ("world_model", "num_resolutions", 2)],
)
def test_losses_of_other_tokens_are_not_compared(teacher_with_heads: Path, block: str, key: str, value: Any) -> None:
    run = _loaded(teacher_with_heads)
    check_same_tokens(run, run, "--teacher_checkpoint")
    inner = dataclasses.replace(getattr(run.arch, block), **{key: value})
    other = dataclasses.replace(run, arch=dataclasses.replace(run.arch, **{block: inner}))
    with pytest.raises(ValueError, match=f"--teacher_checkpoint .*: arch.{block}.{key} is .* there and .* here"):
        check_same_tokens(other, run, "--teacher_checkpoint")
