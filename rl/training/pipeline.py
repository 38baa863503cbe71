"""`train.sh pipeline`: teacher, student, adversarial and evaluation one after another, and a report of all of them.

Each phase is a process of its own entry module with its own run directory below the pipeline's; what is finished is
skipped, what was interrupted goes on where it stopped.
"""

import importlib.util
import json
import logging
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from f1_vla.config import F1Config
from rl import config as rl_config
from rl.config import Config, PipelinePhase
from rl.training import cli, train_adversarial_rl, train_student_rl
from rl.training.atomic_io import write_atomic
from rl.training.checkpoint import SavedCheckpoint, open_checkpoint
from rl.training.checkpoint_files import checkpoint_dirs
from rl.training.config_drift import check_drift
from rl.training.errors import EXIT_CRASH, EXIT_OK, EXIT_PREEMPTED, Preempted
from rl.training.evaluation.loading import weights_of
from rl.training.logging_setup import setup_logging
from rl.training.metrics_log import check_board
from rl.training.model_setup import check_model_files
from rl.training.preemption import STOP_SIGNALS
from rl.training.report import write_report
from rl.training.teacher_source import warn_of_another

log = logging.getLogger("rl.training.pipeline")
MODULES: dict[PipelinePhase, str] = {
    PipelinePhase.teacher: "rl.training.train_teacher_rl",
    PipelinePhase.student: "rl.training.train_student_rl",
    PipelinePhase.adversarial: "rl.training.train_adversarial_rl",
    PipelinePhase.evaluation: "rl.training.evaluate_rl",
}
NEEDS: dict[PipelinePhase, list[PipelinePhase]] = {
    PipelinePhase.teacher: [],
    PipelinePhase.student: [PipelinePhase.teacher],
    PipelinePhase.adversarial: [PipelinePhase.teacher, PipelinePhase.student],
}
TRAINING = tuple(NEEDS)
# What a phase refuses of its configuration before it starts.
CHECKS: dict[PipelinePhase, Callable[[Config, F1Config], None]] = {
    PipelinePhase.teacher: check_model_files,
    PipelinePhase.student: train_student_rl.check,
    PipelinePhase.adversarial: train_adversarial_rl.check,
}
# The flag that a phase is given its length by, and the key of the block `pipeline` that says it.
LENGTHS: dict[PipelinePhase, tuple[str, str]] = {
    PipelinePhase.teacher: ("--num_episodes", "teacher_episodes"),
    PipelinePhase.student: ("--num_episodes", "student_episodes"),
    PipelinePhase.adversarial: ("--total_iterations", "adversarial_iterations"),
}
REPO = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Step:
    """One process of the pipeline."""

    name: str  # teacher, or evaluation of teacher
    phase: PipelinePhase
    arguments: list[str]


class Pipeline:
    def __init__(self, args: cli.Args) -> None:
        """Refuses what can be refused before anything is written. Raises ValueError."""
        self.args, self.cfg, self.p = args, args.config, args.config.pipeline
        self.path = args.output_dir.expanduser().resolve()
        self.phases = [p for p in PipelinePhase if p in self.p.phases]
        self.times_file = self.path / "times.json"
        check_available(self.phases)
        self._check_settings()
        check_board(self.cfg.logging)
        self._check_predecessors()
        self._check_directory()

    def run(self) -> int:
        """Exit code of the first phase that failed, else 0. Raises Preempted."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path / "config.yaml", rl_config.to_yaml(self.cfg))
        try:
            for phase in self.phases:
                for step in self._steps(phase):
                    code = EXIT_OK if self._finished(step) else self._start(step)
                    if code == EXIT_PREEMPTED:
                        raise Preempted(f"in {step.name}; the same command with --auto_resume continues")
                    if code != EXIT_OK:
                        log.error("%s ended with exit code %d; what it said stands above", step.name, code)
                        return code if code > 0 else EXIT_CRASH
        finally:
            log.info("report: %s; %.1f minutes in all", write_report(self.path), sum(self._times().values()) / 60)
        return EXIT_OK

    # --- what is asked for ------------------------------------------------------------------------------------------

    def _check_settings(self) -> None:
        """What a later phase would refuse is refused now, not when those before it have trained."""
        game = replace(self.cfg.adversarial, total_iterations=self._total(PipelinePhase.adversarial))
        cfg = replace(self.cfg, adversarial=game)
        for phase in self.phases:
            if phase in TRAINING:
                flag, key = LENGTHS[phase]
                size = self._students_size() if phase is PipelinePhase.student else []
                try:
                    CHECKS[phase](rl_config.with_overrides(cfg, size, "pipeline"), self.args.arch)
                except ValueError as e:
                    raise ValueError(f"phase {phase} of the pipeline, whose {flag} is pipeline.{key}: {e}") from e

    def _check_predecessors(self) -> None:
        for phase in self.phases:
            missing = [
                n.value for n in NEEDS.get(phase, []) if n not in self.phases and not checkpoint_dirs(self.path / n)
            ]
            if missing:
                raise ValueError(
                    f"--phases {phase}: {self.path} holds no {' and no '.join(missing)}; add it to --phases"
                )
        ready = [p for p in TRAINING if p in self.phases or checkpoint_dirs(self.path / p)]
        if PipelinePhase.evaluation in self.phases and not ready:
            raise ValueError(f"--phases evaluation: {self.path} holds nothing to evaluate; add teacher to --phases")

    def _check_directory(self) -> None:
        saved = self.path / "config.yaml"
        if not saved.is_file() or self.args.overwrite:
            return
        if self.args.resume is cli.ResumeMode.never:
            raise ValueError(
                f"{self.path} holds a pipeline already; continue it with --auto_resume, replace it with --overwrite, "
                "or choose another --output_dir"
            )
        old, new = rl_config.read_dict(saved), rl_config.to_dict(self.cfg)
        for phase in self.phases:
            if phase in TRAINING:
                check_drift(old, new, phase, str(saved))

    def _steps(self, phase: PipelinePhase) -> list[Step]:
        if phase is PipelinePhase.evaluation:
            measured = [p for p in TRAINING if checkpoint_dirs(self.path / p)]
            return [Step(f"evaluation of {p}", phase, self._evaluation(p)) for p in measured]
        total = self._total(phase)
        length = (LENGTHS[phase][0], str(total))
        places = {"teacher_path": "teacher"} if phase is PipelinePhase.student else {}
        if phase is PipelinePhase.adversarial:
            places = {"teacher_checkpoint": "teacher", "student_checkpoint": "student"}
        every = {"save_every": self.p.checkpoints, "sample_save_every": self.p.media, "video_save_every": self.p.media}
        arguments = [
            "--rl_config", str(self.path / "config.yaml"), "--output_dir", str(self.path / phase), *length,
            "--overwrite" if self.args.overwrite else "--auto_resume",
            *(part for flag, place in places.items() for part in (f"--{flag}", str(self.path / place))),
            *(f"training.{key}={max(1, total // count)}" for key, count in every.items()),
            *(self._students_size() if phase is PipelinePhase.student else []),
            *(f"arch.{o}" for o in self.args.arch_overrides),
        ]  # fmt: skip
        return [Step(phase.value, phase, arguments)]

    def _students_size(self) -> list[str]:
        size = {"training.num_envs": self.p.student_envs, "student.episodes_per_iteration": self.p.student_rounds}
        return [f"{key}={count}" for key, count in size.items() if count is not None]

    def _evaluation(self, phase: PipelinePhase) -> list[str]:
        arguments = ["--phase", phase.value, "--checkpoint", str(self.path / phase), "--video"]
        arguments += ["--json", str(self._numbers(phase)), "--episodes", str(self.p.evaluation_episodes)]
        if phase is PipelinePhase.adversarial:
            arguments += ["--teacher_checkpoint", str(self.path / "teacher")]
        arguments += ["--rl_config", str(self.path / "config.yaml")]
        arguments += ["--device", self.cfg.training.device, f"training.num_threads={self.cfg.training.num_threads}"]
        taken = ("evaluation.num_episodes=", "evaluation.video=")
        asked = [o for o in self.args.overrides if o.startswith("evaluation.") and not o.startswith(taken)]
        return arguments + self._unfamiliar(asked) + asked

    def _unfamiliar(self, asked: list[str]) -> list[str]:
        """Several kinds of unfamiliar scenes, for each phase: as many episodes of each as of the others here, unless
        the command line says how many, or the configuration has another number than its default."""
        given = any(o.startswith("evaluation.unfamiliar_episodes=") for o in asked)
        if given or self.cfg.evaluation.unfamiliar_episodes != rl_config.EvaluationConfig.unfamiliar_episodes:
            return []
        return [f"evaluation.unfamiliar_episodes={self.p.evaluation_episodes}"]

    def _numbers(self, phase: PipelinePhase) -> Path:
        return self.path / "evaluation" / f"{phase}.json"

    def _total(self, phase: PipelinePhase) -> int:
        total: int = getattr(self.p, LENGTHS[phase][1])
        return total

    # --- what is done -----------------------------------------------------------------------------------------------

    def _finished(self, step: Step) -> bool:
        if self.args.overwrite:
            return False
        if step.phase is PipelinePhase.evaluation:
            done = self._measured(PipelinePhase(step.arguments[1]))
        else:
            done = self._trained(step.phase)
        if done:
            log.info("%s is finished already", step.name)
            if step.phase in TRAINING:
                self._warn_of_newer(step.phase)
        return done

    def _warn_of_newer(self, phase: PipelinePhase) -> None:
        """A finished phase stays as it is when one before it was trained on."""
        for name, origin in began_with(open_checkpoint(self.path / phase)).items():
            warn_of_another(f"phase {phase}:", self.path / name, origin)

    def _trained(self, phase: PipelinePhase) -> bool:
        file = self.path / phase / "status.json"
        if not file.is_file():
            return False
        status = json.loads(file.read_text(encoding="utf-8"))
        return status["state"] == "done" and status["step"] >= self._total(phase)

    def _measured(self, phase: PipelinePhase) -> bool:
        """The numbers on disk are of these weights, episodes and scenes."""
        if not self._numbers(phase).is_file():
            return False
        numbers = json.loads(self._numbers(phase).read_text(encoding="utf-8"))
        asked = (weights_of(open_checkpoint(self.path / phase)), self.p.evaluation_episodes, self.cfg.evaluation.seed)
        return (numbers["weights"], numbers["episodes"], numbers["seed"]) == asked

    def _start(self, step: Step) -> int:
        command = self._command(step)
        log.info("%s: %s", step.name, shlex.join(command))
        start = time.monotonic()
        code = run_process(command)
        self._note_time(step.name, time.monotonic() - start)
        return code

    def _command(self, step: Step) -> list[str]:
        """One process by itself; several through train.sh, which knows how to launch them. Evaluation is one."""
        count = self.args.num_processes
        if count in (None, 1) or step.phase is PipelinePhase.evaluation:
            return [sys.executable, "-m", MODULES[step.phase], *step.arguments]
        return ["bash", str(REPO / "train.sh"), step.phase.value, str(count), *step.arguments]

    def _note_time(self, name: str, seconds: float) -> None:
        """Sums up over interruptions."""
        times = self._times()
        before = 0.0 if self.args.overwrite or name not in times else times[name]
        write_atomic(self.times_file, json.dumps(times | {name: before + seconds}, indent=1) + "\n")

    def _times(self) -> dict[str, float]:
        """Seconds of every process so far."""
        found: dict[str, float] = (
            json.loads(self.times_file.read_text(encoding="utf-8")) if self.times_file.is_file() else {}
        )
        return found


def began_with(saved: SavedCheckpoint) -> dict[PipelinePhase, dict[str, Any]]:
    """Which weights of other phases a checkpoint was made with (`origin_of`)."""
    training, found = saved.read("training_state.pt", "meta"), {}
    if "explorer" in training:
        found[PipelinePhase.teacher] = training["explorer"]["teacher"]
    if "adversarial" in training:
        found[PipelinePhase.student] = training["adversarial"]["student"]
    return found


def check_available(phases: list[PipelinePhase]) -> None:
    """Raises ValueError naming the phases that this version lacks."""
    missing = [p.value for p in phases if importlib.util.find_spec(MODULES[p]) is None]
    if missing:
        rest = ",".join(p.value for p in PipelinePhase if importlib.util.find_spec(MODULES[p]) is not None)
        raise ValueError(f"not available in this version: {', '.join(missing)}; there are: --phases {rest}")


def run_process(command: list[str]) -> int:
    """Exit code; stop signals go on to the process, which saves and ends. One that a stop signal ends before it could
    do so counts as stopped, too."""
    process = subprocess.Popen(command, cwd=REPO)
    stopped: list[int] = []

    def forward(signum: int, _frame: FrameType | None) -> None:
        stopped.append(signum)
        process.send_signal(signum)

    previous = {s: signal.signal(s, forward) for s in STOP_SIGNALS}
    try:
        code = process.wait()
    finally:
        for s, handler in previous.items():
            signal.signal(s, handler)
    return EXIT_PREEMPTED if stopped else code


def main(args: cli.Args) -> int:
    setup_logging(args.config.logging)
    return Pipeline(args).run()


if __name__ == "__main__":
    cli.run_main("pipeline", main)
