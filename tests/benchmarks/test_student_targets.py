"""The command that asks whether phase 2 explores, on files made by hand."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import runs, student_targets

MOVED = "explore/objects_moved"


def interval(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "count": 2}


def leave_numbers(run: Path, moved: tuple[float, float], probed: bool = True) -> None:
    """What training and evaluation of an explorer leave that moved so many objects in two episodes; random actions
    moved one in each."""
    run.mkdir(parents=True)
    lines = [{"student/return_raw_disagreement": x, "student/env_steps_per_s": 9.0, "student/time_score_s": 2.0}
             for x in (1.0, 2.0)]  # fmt: skip
    (run / "episode_metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    ratio = {"difference": interval(0.0), "ratio": interval(sum(moved) / 2)}
    measures = {"frame/nll": interval(5.0), "auroc/high_loss/disagreement": interval(0.7)}
    if probed:
        values = zip(student_targets.PROBES, (0.6, 0.52, 0.08), strict=True)
        measures |= {name: interval(value) for name, value in values}
    data = {
        "measures": measures, "totals": {"wrist_voxels": 3},
        "baseline": {"comparison": dict.fromkeys(student_targets.MEASURES, ratio)},
    }  # fmt: skip
    (run / "evaluation.json").write_text(json.dumps(data))
    rows = [
        {"policy": policy, "episode": e, **dict.fromkeys(student_targets.MEASURES, 1.0), MOVED: value}
        for policy, values in (("explorer", moved), ("random", (1.0, 1.0)))
        for e, value in enumerate(values)
    ]
    (run / "evaluation.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))


@pytest.fixture
def started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Commands that would have been run, two seeds, published below `tmp_path`."""
    commands: list[tuple[str, ...]] = []

    def start(*command: str) -> None:
        commands.append(command)
        if command[0] == "rl.training.evaluate_rl":
            run = Path(command[command.index("--checkpoint") + 1])
            leave_numbers(run, {"untrained_seed0": (2.0, 1.0), "explorer_seed0": (4.0, 5.0)}[run.name])

    monkeypatch.setattr(student_targets, "start", start)
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    argv = ["student_targets", "--teacher", "T", "--runs", str(tmp_path / "runs"), "--seeds", "2", "--episodes", "2"]
    monkeypatch.setattr(sys, "argv", [*argv, "student.learning_rate=0.1", "environment.num_objects=3"])
    return commands


def test_what_training_added_and_what_the_memory_knows_are_published(
    tmp_path: Path, started: list[tuple[str, ...]]
) -> None:
    leave_numbers(tmp_path / "runs" / "explorer_seed1", (3.0, 3.0), probed=False)  # done before
    student_targets.main()
    names = [Path(c[c.index("--output_dir") + 1]).name for c in started if "--output_dir" in c]
    assert names == ["untrained_seed0", "explorer_seed0"]
    assert "student.learning_rate=1e-30" in started[0] and "student.learning_rate=0.1" not in started[0]
    assert "student.learning_rate=0.1" in started[2] and all("environment.num_objects=3" in started[i] for i in (0, 2))

    data = json.loads((tmp_path / "student_targets.json").read_text())
    added = [run["explorer"]["against_untrained"][MOVED] for run in data["runs"]]
    assert [a["ratio"]["mean"] for a in added] == pytest.approx([9 / 3, 6 / 3])
    # Of two episodes: 4 / 2 and 5 / 1 when one of them is drawn twice.
    assert [added[0]["ratio"][k] for k in ("low", "high")] == pytest.approx([2.0, 5.0])
    assert [a["difference"]["mean"] for a in added] == [3.0, 1.5]
    kept = data["runs"][0]["explorer"]["measures"]
    assert set(kept) == {*student_targets.PROBES, "auroc/high_loss/disagreement"}
    assert data["untrained"]["against_random"][MOVED]["ratio"]["mean"] == 1.5

    text = (tmp_path / "student_targets.md").read_text()
    assert "| 0 | 0.600 [0.500, 0.700] | 0.520 [0.420, 0.620] | 0.080 [-0.020, 0.180] |" in text
    assert "| 1 | - | - | - |" in text  # too few episodes to probe
    assert "| 0 | 1.00 [1.00, 1.00] | 3.00 [2.00, 5.00] |" in text
    assert "| before training | 1.50 [1.40, 1.60] |" in text


def test_explorers_of_different_scenes_are_not_compared(tmp_path: Path) -> None:
    leave_numbers(tmp_path / "a", (1.0, 2.0))
    leave_numbers(tmp_path / "b", (1.0,))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a paired comparison needs the same episodes, got 2 and 1"):
        student_targets.against(tmp_path / "a", tmp_path / "b")


def leave_views(run: Path, explorer: tuple[float, ...], random: tuple[float, ...]) -> Path:
    """How much of the view the screen filled, scene by scene."""
    run.mkdir(parents=True)
    rows = [{"policy": p, student_targets.IN_VIEW: x}
            for p, seen in (("explorer", explorer), ("random", random)) for x in seen]  # fmt: skip
    (run / "evaluation.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return run


def test_what_distracts_is_told_over_the_scenes_in_which_all_seeds_played(tmp_path: Path) -> None:
    runs = {
        "entropy": [
            leave_views(tmp_path / "e0", (0.5, 0.1), (0.1, 0.1)),
            leave_views(tmp_path / "e1", (0.9, 0.3), (0.1, 0.3)),
        ],
        "disagreement": [leave_views(tmp_path / "d0", (0.1, 0.2), (0.1, 0.1))],
    }
    found = student_targets.distraction(runs)
    # Entropy, mean of the seeds: 0.7 and 0.2 against 0.1 and 0.2, so 0.6 and 0 in the two scenes.
    means = {kind: found[kind]["difference"]["mean"] for kind in found}
    assert means == pytest.approx({"entropy": 0.3, "disagreement": 0.05, student_targets.VERSUS: 0.3})
    assert [found["entropy"]["difference"][k] for k in ("low", "high")] == pytest.approx([0.0, 0.6])


def test_explorers_beside_a_screen_are_trained_for_one_reward_each_and_tabled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = {"screen_entropy_seed0": (0.5, 0.7), "screen_disagreement_seed0": (0.1, 0.1)}
    for name in ("untrained_seed0", "explorer_seed0"):
        leave_numbers(tmp_path / "runs" / name, (2.0, 2.0))
    commands: list[tuple[str, ...]] = []

    def start(*command: str) -> None:
        commands.append(command)
        if command[0] == "rl.training.evaluate_rl":
            run = Path(command[command.index("--checkpoint") + 1])
            leave_numbers(run, (2.0, 2.0))
            (run / "evaluation.jsonl").unlink()
            rows = [{"policy": p, student_targets.IN_VIEW: x}
                    for p, seen in (("explorer", views[run.name]), ("random", (0.2, 0.2))) for x in seen]  # fmt: skip
            (run / "evaluation.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
            data = json.loads((run / "evaluation.json").read_text())
            data["measures"][student_targets.IN_VIEW] = interval(sum(views[run.name]) / 2)
            data["baseline"]["comparison"][student_targets.IN_VIEW] = {"difference": interval(0.3), "ratio": None}
            (run / "evaluation.json").write_text(json.dumps(data))

    monkeypatch.setattr(student_targets, "start", start)
    monkeypatch.setattr(runs, "RESULTS", tmp_path)
    argv = ["student_targets", "--teacher", "T", "--screen_teacher", "S", "--seeds", "1", "--episodes", "2"]
    monkeypatch.setattr(sys, "argv", [*argv, "--runs", str(tmp_path / "runs")])
    student_targets.main()

    trained = [c for c in commands if "--teacher_path" in c]
    assert len(trained) == 2 and all(c[c.index("--teacher_path") + 1] == "S" for c in trained)
    for command, kind in zip(trained, ("entropy", "disagreement"), strict=True):
        wanted = {"student.rewards.memory_divergence_weight=0", "student.rewards.action_rate_weight=0",
                  f"student.rewards.uncertainty={kind}", student_targets.SCREEN}  # fmt: skip
        assert wanted <= set(command)
    text = (tmp_path / "student_targets.md").read_text()
    assert "| 0 | entropy | 0.600 | 0.300 [0.200, 0.400] |" in text
    assert "| all | entropy | 0.600 | 0.400 [0.300, 0.500] |" in text
    assert "| all | disagreement | 0.100 | -0.100 [-0.100, -0.100] |" in text
    assert "disagreement's, all seeds: 0.500 [0.400, 0.600]." in text
