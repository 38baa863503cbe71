"""Whole teacher runs of the smallest size: in this process, in one of their own, made once for all test workers.

As a program (`teacher_runs.py STOP_AFTER flags...`) it trains and sends itself SIGTERM after that many updates.
"""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from f1_vla.tokenizer import MultiScaleVQVAE
from f1_vla.tokenizer_io import save_tokenizer
from rl import config as rl_config
from rl.training import cli
from rl.training.checkpoint import open_checkpoint
from rl.training.checkpoint_files import describe, manifest_text
from rl.training.teacher_phase import TeacherPhase
from rl.training.train_teacher_rl import main
from tests.helpers.once import once  # noqa: F401 - used through this module

REPO = Path(__file__).resolve().parents[2]
STEPS, BPTT, UPDATES, SCALES = 8, 3, 2, 3
SETTINGS = {
    "training.num_threads": 1, "training.steps_per_episode": STEPS, "training.bptt_length": BPTT,
    "training.batch_size": 2, "training.warmup_updates": 4, "training.save_every": 3, "training.sample_save_every": 3,
    "training.video_save_every": 3, "teacher.burn_in": 2, "teacher.updates_per_episode": UPDATES,
    "environment.num_objects": 2,
}  # fmt: skip


def make_tokenizer(path: Path) -> None:
    """A random tokenizer of the debug preset: trained weights would change no contract."""
    torch.manual_seed(0)
    save_tokenizer(MultiScaleVQVAE(rl_config.load_model("debug_test").tokenizer), path, {"seed": 0})


def flags(tokenizer: Path, output_dir: Path, episodes: int, *extra: str) -> list[str]:
    """Command line of one run; `extra` replaces settings of the same key."""
    replaced = {e.split("=")[0] for e in extra}
    settings = {"model.tokenizer_path": tokenizer, **SETTINGS}
    overrides = [f"{k}={v}" for k, v in settings.items() if k not in replaced]
    preset = [] if "--model_config" in extra else ["--model_config", "debug_test"]
    place = ["--device", "cpu", "--output_dir", str(output_dir)]
    return [*preset, *place, "--num_episodes", str(episodes), *overrides, *extra]


def run_process(argv: list[str], module: str = "rl.training.train_teacher_rl") -> tuple[int, str]:
    """Exit code and all output of `python -m module`."""
    return _finish([sys.executable, "-m", module, *argv])


def run_process_stopped_after(updates: int, argv: list[str]) -> tuple[int, str]:
    return _finish([sys.executable, __file__, str(updates), *argv])


def _finish(command: list[str]) -> tuple[int, str]:
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


def parameters_equal(a: Path, b: Path) -> bool:
    """model.pt of two checkpoints, bit for bit."""
    first, second = (torch.load(c / "model.pt", weights_only=True) for c in (a, b))
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def with_other_weights(run: Path, place: Path, entry: str) -> Path:
    """`place`: a copy of the run whose newest checkpoint has 1 added to an entry, and a manifest that says so."""
    shutil.copytree(run, place)
    checkpoint = open_checkpoint(place)
    state = torch.load(checkpoint.path / "model.pt", weights_only=True)
    state[entry] += 1
    torch.save(state, checkpoint.path / "model.pt")
    files = [describe(checkpoint.path, checkpoint.path / f["name"]) for f in checkpoint.manifest["files"]]
    (checkpoint.path / "manifest.json").write_text(manifest_text(checkpoint.step, 1, files, {}))
    return place


@contextmanager
def sigterm_after(updates: int) -> Iterator[None]:
    """A teacher in this process sends itself SIGTERM at the end of that update."""
    update = TeacherPhase.update

    def counted(self: TeacherPhase, progress: float) -> dict[str, float]:
        line = update(self, progress)
        if self.updates == updates:
            os.kill(os.getpid(), signal.SIGTERM)
        return line

    TeacherPhase.update = counted  # type: ignore[method-assign]
    try:
        yield
    finally:
        TeacherPhase.update = update  # type: ignore[method-assign]


if __name__ == "__main__":
    with sigterm_after(int(sys.argv[1])):
        cli.run_main("teacher", main, sys.argv[2:])
