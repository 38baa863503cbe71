"""The pipeline: which processes it starts, what it skips, how it stops; once for real at the smallest size."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rl.config import PipelinePhase
from rl.training import cli, pipeline
from rl.training.errors import Preempted
from rl.training.pipeline import Pipeline, run_process
from tests.training.adversarial_runs import SETTINGS as ADVERSARIAL
from tests.training.browser import check_everything_is_shown, dumped_page
from tests.training.teacher_runs import REPO, SETTINGS, once

TRAINING = ("teacher", "student", "adversarial")
SMALL = ["pipeline.teacher_episodes=4", "pipeline.student_episodes=6", "pipeline.adversarial_iterations=7"]


class _Processes:
    """In place of processes: notes the commands and leaves what a phase leaves."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.commands, self.codes = directory, [], {}  # type: ignore[var-annotated]

    def __call__(self, command: list[str]) -> int:
        module = command[command.index("-m") + 1] if "-m" in command else f"train.sh {command[2]}"
        name = module.removeprefix("rl.training.").removeprefix("train_").removesuffix("_rl")
        if name == "evaluate":
            name = f"evaluate {command[command.index('--phase') + 1]}"
        self.commands.append((name, command))
        code = self.codes.get(name, 0)
        if name.startswith("evaluate"):
            if code == 0:
                self._measure(command)
            return code
        flag = "--total_iterations" if "--total_iterations" in command else "--num_episodes"
        total = int(command[command.index(flag) + 1])
        run = self.directory / name.removeprefix("train.sh ")
        (run / "checkpoint-1").mkdir(parents=True, exist_ok=True)
        state = {0: "done", 75: "preempted"}.get(code, "failed")
        (run / "status.json").write_text(
            json.dumps({"state": state, "step": total if code == 0 else 1, "total": total})
        )
        (run / "provenance.jsonl").write_text(
            json.dumps({"python": "3", "versions": {}, "commit": "c", "started": "s", "command": []}) + "\n"
        )
        return code

    def _measure(self, command: list[str]) -> None:
        target = Path(command[command.index("--json") + 1])
        target.parent.mkdir(exist_ok=True)
        numbers = {"weights": "w", "episodes": 3, "seed": 1_000_000, "checkpoint": "checkpoint-1", "policy": "random"}
        target.write_text(json.dumps(numbers | {"notes": [], "measures": {}}))

    @property
    def names(self) -> list[str]:
        return [n for n, _ in self.commands]


@pytest.fixture
def processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Processes:
    fake = _Processes(tmp_path / "run")
    monkeypatch.setattr(pipeline, "run_process", fake)
    monkeypatch.setattr(pipeline, "open_checkpoint", lambda path: path)
    monkeypatch.setattr(pipeline, "weights_of", lambda saved: "w")
    monkeypatch.setattr(pipeline, "began_with", lambda saved: {})
    # So that the tests do not depend on which phases this version has.
    monkeypatch.setattr(pipeline, "MODULES", dict.fromkeys(PipelinePhase, "json") | pipeline.MODULES)
    monkeypatch.setattr(pipeline, "check_available", lambda phases: None)
    return fake


def _run(processes: _Processes, *argv: str) -> int:
    given = {a.split("=")[0] for a in argv}
    sizes = [s for s in (*SMALL, "pipeline.evaluation_episodes=3") if s.split("=")[0] not in given]
    return Pipeline(cli.parse("pipeline", ["--output_dir", str(processes.directory), *sizes, *argv])).run()


ALL = ["teacher", "student", "adversarial", "evaluate teacher", "evaluate student", "evaluate adversarial"]


def test_phases_run_in_order_each_in_its_directory_with_what_it_needs(processes: _Processes) -> None:
    assert _run(processes, "--phases", "evaluation,adversarial,student,teacher", "arch.chunk_size=2") == 0
    assert processes.names == ALL
    commands, home = dict(processes.commands), str(processes.directory)
    for phase, size in [("teacher", "4"), ("student", "6"), ("adversarial", "7")]:
        command = commands[phase]
        assert command[command.index("--output_dir") + 1] == f"{home}/{phase}" and size in command
        assert {"--auto_resume", "arch.chunk_size=2", f"{home}/config.yaml"} <= set(command)
    assert commands["student"][commands["student"].index("--teacher_path") + 1] == f"{home}/teacher"
    assert commands["adversarial"][commands["adversarial"].index("--student_checkpoint") + 1] == f"{home}/student"
    measured = commands["evaluate adversarial"]
    assert measured[measured.index("--teacher_checkpoint") + 1] == f"{home}/teacher" and "--video" in measured
    assert cli.parse("student", commands["student"][3:]).config.training.num_episodes == 6
    assert cli.parse("evaluate", measured[3:]).config.evaluation.num_episodes == 3
    assert (processes.directory / "report.html").is_file()
    assert set(json.loads((processes.directory / "times.json").read_text())) == {
        "teacher", "student", "adversarial", "evaluation of teacher", "evaluation of student",
        "evaluation of adversarial",
    }  # fmt: skip


def test_the_student_alone_has_the_environments_and_rounds_of_the_pipeline(processes: _Processes) -> None:
    _run(processes, "--num_envs", "3", "pipeline.student_envs=5", "pipeline.student_rounds=null")
    for phase, envs in [("teacher", 3), ("student", 5), ("adversarial", 3)]:
        cfg = cli.parse(phase, dict(processes.commands)[phase][3:]).config
        assert (cfg.training.num_envs, cfg.student.episodes_per_iteration) == (envs, 4)


@pytest.mark.parametrize(
    ("asked", "file", "expected"),
    [([], "", 3), (["evaluation.unfamiliar_episodes=20"], "", 20), ([], "evaluation: {unfamiliar_episodes: 7}\n", 7)],
)
def test_unfamiliar_scenes_are_as_many_as_the_familiar_ones_unless_told_otherwise(
    processes: _Processes, tmp_path: Path, asked: list[str], file: str, expected: int
) -> None:
    (tmp_path / "own.yaml").write_text(file or "{}\n")
    _run(processes, "--rl_config", str(tmp_path / "own.yaml"), "--phases", "teacher,evaluation", *asked)
    measured = cli.parse("evaluate", dict(processes.commands)["evaluate teacher"][3:]).config.evaluation
    assert (measured.num_episodes, measured.unfamiliar_episodes) == (3, expected)


def test_what_is_finished_is_skipped_and_what_grew_goes_on(processes: _Processes) -> None:
    _run(processes)
    processes.commands.clear()
    assert _run(processes, "--auto_resume") == 0 and processes.names == []
    assert _run(processes, "--auto_resume", "pipeline.student_episodes=8") == 0 and processes.names == ["student"]


def test_a_finished_phase_whose_predecessor_was_trained_on_is_said_and_left(
    processes: _Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[Any] = []
    _run(processes)
    processes.commands.clear()
    made = {"student": {"teacher": "t1"}, "adversarial": {"teacher": "t1", "student": "s1"}}
    monkeypatch.setattr(pipeline, "began_with", lambda saved: made.get(saved.name, {}))
    monkeypatch.setattr(pipeline, "warn_of_another", lambda *args: said.append(args))
    assert _run(processes, "--auto_resume", "pipeline.teacher_episodes=8") == 0 and processes.names == ["teacher"]
    home = processes.directory
    assert said == [
        ("phase student:", home / "teacher", "t1"), ("phase adversarial:", home / "teacher", "t1"),
        ("phase adversarial:", home / "student", "s1"),
    ]  # fmt: skip


def test_other_weights_or_other_scenes_are_measured_again(
    processes: _Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    _run(processes)
    processes.commands.clear()
    _run(processes, "--auto_resume", "pipeline.evaluation_episodes=4")
    assert processes.names == ALL[3:]
    processes.commands.clear()
    _run(processes, "--auto_resume", "evaluation.seed=1000007")
    assert processes.names == ALL[3:] and "evaluation.seed=1000007" in processes.commands[0][1]
    processes.commands.clear()
    monkeypatch.setattr(pipeline, "weights_of", lambda saved: "newer")
    _run(processes, "--auto_resume")
    assert processes.names == ALL[3:]


def test_a_stopped_phase_stops_the_pipeline_and_the_next_start_goes_on_there(processes: _Processes) -> None:
    processes.codes["student"] = 75
    with pytest.raises(Preempted, match="in student; the same command with --auto_resume continues"):
        _run(processes)
    assert processes.names == ["teacher", "student"]
    assert (processes.directory / "report.html").is_file()  # of what there is
    processes.codes.clear()
    processes.commands.clear()
    assert _run(processes, "--auto_resume") == 0
    assert processes.names == ALL[1:] and "--auto_resume" in processes.commands[0][1]


@pytest.mark.parametrize(("code", "expected"), [(3, 3), (4, 4), (-9, 1)])
def test_a_failed_phase_ends_the_pipeline_with_its_exit_code(processes: _Processes, code: int, expected: int) -> None:
    processes.codes["teacher"] = code
    assert _run(processes) == expected and processes.names == ["teacher"]


def test_overwriting_starts_every_phase_anew(processes: _Processes) -> None:
    _run(processes)
    processes.commands.clear()
    _run(processes, "--overwrite")
    assert processes.names == ALL and "--overwrite" in processes.commands[0][1]


def test_several_processes_are_launched_by_train_sh_and_measuring_needs_one(processes: _Processes) -> None:
    _run(processes, "--num_processes", "2", "--phases", "teacher,evaluation")
    assert processes.names == ["train.sh teacher", "evaluate teacher"]
    assert processes.commands[0][1][:4] == ["bash", str(REPO / "train.sh"), "teacher", "2"]


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        ([], [], "holds a pipeline already; continue it with --auto_resume"),
        ([], ["--auto_resume", "training.learning_rate=0.5"], "training.learning_rate 0.001 -> 0.5"),
        ([], ["--auto_resume", "student.value_hidden=7"], "student.value_hidden 128 -> 7"),
        (None, ["--phases", "student"], "holds no teacher; add it to --phases"),
        (None, ["--phases", "evaluation"], "holds nothing to evaluate"),
        (None, ["--phases", "teacher,teacher"], "pipeline.phases names teacher twice"),
        (None, ["pipeline.phases=[]"], "pipeline.phases is empty"),
        (None, ["pipeline.media=0"], "pipeline.media is 0"),
        (None, ["pipeline.adversarial_iterations=2"], "phase adversarial of the pipeline, whose --total_iterations is "
         "pipeline.adversarial_iterations: --total_iterations (adversarial.total_iterations) is 2, not more than"),
        (None, ["student.rewards.memory_divergence_weight=0", "student.rewards.wm_uncertainty_weight=0"],
         "phase student of the pipeline, whose --num_episodes is pipeline.student_episodes: "
         "student.rewards.memory_divergence_weight and student.rewards.wm_uncertainty_weight are both 0"),
        (None, ["adversarial.replay.random_share=0.1"], "phase adversarial of the pipeline"),
        (None, ["model.tokenizer_path=/nowhere"], "phase teacher of the pipeline"),
    ],
)  # fmt: skip
def test_wrong_requests_are_refused_before_anything_starts(
    processes: _Processes, first: list[str] | None, then: list[str], message: str
) -> None:
    if first is not None:
        _run(processes, *first)
        processes.commands.clear()
    with pytest.raises(ValueError) as refused:
        _run(processes, *then)
    assert message in str(refused.value) and processes.names == []
    assert first is not None or not processes.directory.exists()


def test_settings_of_phases_that_are_not_asked_for_are_not_judged(processes: _Processes) -> None:
    assert _run(processes, "--phases", "teacher,student", "pipeline.adversarial_iterations=2") == 0
    assert processes.names == ["teacher", "student"]


def test_a_phase_that_this_version_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = pipeline.MODULES | {PipelinePhase.adversarial: "rl.training.train_nothing"}
    monkeypatch.setattr(pipeline, "MODULES", changed)
    with pytest.raises(ValueError, match="not available in this version: adversarial; there are: --phases teacher"):
        Pipeline(cli.parse("pipeline", ["--output_dir", str(tmp_path / "run")]))
    assert not (tmp_path / "run").exists()
    Pipeline(cli.parse("pipeline", ["--output_dir", str(tmp_path / "run"), "--phases", "teacher"]))


def _in_a_while(action: Callable[[], Any], ready: Path) -> threading.Thread:
    def wait() -> None:
        while not ready.exists():
            time.sleep(0.01)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


@pytest.mark.parametrize("handler", ["sys.exit(75)", "None"])
def test_a_stop_signal_goes_on_to_the_process_and_counts_as_stopped(tmp_path: Path, handler: str) -> None:
    ready, before = tmp_path / "ready", signal.getsignal(signal.SIGTERM)
    script = "import signal, sys, time, pathlib\n"
    if handler != "None":  # a phase that saves; else one that the signal simply ends
        script += f"signal.signal(signal.SIGTERM, lambda n, f: {handler})\n"
    script += f"pathlib.Path({str(ready)!r}).touch()\ntime.sleep(60)\n"
    thread = _in_a_while(lambda: os.kill(os.getpid(), signal.SIGTERM), ready)
    assert run_process([sys.executable, "-c", script]) == 75
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is before
    assert run_process([sys.executable, "-c", "import sys; sys.exit(3)"]) == 3


def _whole_process(argv: list[str]) -> tuple[int, str]:
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "rl.training.pipeline", *argv]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="session")
def whole_pipeline(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Path:
    """All four phases at the smallest size, through to the report. Read only."""
    adversarial = {k: v for k, v in ADVERSARIAL.items() if k.startswith("adversarial.")}
    settings = {k: v for k, v in (SETTINGS | adversarial).items() if "save_every" not in k} | {
        "model.tokenizer_path": tokenizer_path, "arch.world_model.ensemble_heads": 2,
        "student.episodes_per_iteration": 2, "student.ppo.minibatches": 2, "evaluation.bootstrap_samples": 20,
        "evaluation.videos": 1, "pipeline.evaluation_episodes": 3, "pipeline.checkpoints": 1, "pipeline.media": 1,
        "pipeline.student_envs": "null", "pipeline.student_rounds": "null",
    }  # fmt: skip

    def make(place: Path) -> None:
        argv = ["--output_dir", str(place / "run"), "--model_config", "debug_test", "--device", "cpu"]
        argv += [*(f"{k}={v}" for k, v in settings.items()), *SMALL]
        code, output = _whole_process(argv)
        assert code == 0, output[-3000:]
        (place / "arguments.json").write_text(json.dumps(argv))

    return once(tmp_path_factory, "whole_pipeline", make)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_whole_pipeline_at_the_smallest_size(whole_pipeline: Path) -> None:
    run = whole_pipeline / "run"
    result = {p: json.loads((run / "evaluation" / f"{p}.json").read_text()) for p in TRAINING}
    assert [r["policy"] for r in result.values()] == ["random", "explorer", "explorer"]
    assert "explore/wrist_voxels" in result["student"]["baseline"]["comparison"]
    assert set(result["adversarial"]["against_teacher"]) == {"explorer", "random"}
    unfamiliar = result["adversarial"]["measures"]["auroc/unfamiliar/num_objects=24/disagreement"]
    assert unfamiliar["count"] == 2 * 3  # as many unfamiliar episodes as familiar ones
    report = (run / "report.html").read_text(encoding="utf-8")
    assert report.count("data:video/mp4") == 5 + 3  # one a policy measured, one a phase
    code, output = _whole_process([*json.loads((whole_pipeline / "arguments.json").read_text()), "--auto_resume"])
    assert code == 0 and output.count("is finished already") == 6


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_browser_shows_the_report_of_a_whole_pipeline(whole_pipeline: Path, browser: str, tmp_path: Path) -> None:
    report = whole_pipeline / "run" / "report.html"
    dom = dumped_page(browser, tmp_path, report)
    check_everything_is_shown(dom, report)
    for phase in TRAINING:
        assert f"<h3>{phase}: checkpoint-" in dom and f">{phase}, while training: " in dom
