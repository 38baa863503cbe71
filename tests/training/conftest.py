"""Runs that several files look at.

Their modules need a simulator and are loaded where they are used; `bash tests/run.sh isaaclab` has none.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rl.config import TrainingConfig
from rl.training.parallel_utils import ParallelContext


@pytest.fixture
def world() -> Iterator[ParallelContext]:
    """A group of one process on the CPU."""
    context = ParallelContext.create(TrainingConfig(device="cpu"))
    yield context
    context.close()


@pytest.fixture(scope="session")
def browser() -> str:
    """A browser that can run without a window; the test is left out where there is none."""
    from tests.training.browser import BROWSERS, find_browser

    found = find_browser()
    if found is None:
        pytest.skip(f"left out: no browser on PATH (looked for {', '.join(BROWSERS)}); Debian's package is chromium")
    return found


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer file of the debug preset."""
    from tests.training import teacher_runs

    place = teacher_runs.once(
        tmp_path_factory, "tokenizer", lambda p: teacher_runs.make_tokenizer(p / "debug.safetensors")
    )
    return place / "debug.safetensors"


@pytest.fixture(scope="session")
def straight_run(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Path:
    """Run directory of six episodes, trained without interruption in a process of its own. Read only."""
    from tests.training import teacher_runs

    def make(place: Path) -> None:
        argv = teacher_runs.flags(tokenizer_path, place / "run", 6, "training.schedule_episodes=6")
        code, output = teacher_runs.run_process(argv)
        assert code == 0, output
        (place / "console.txt").write_text(output)

    return teacher_runs.once(tmp_path_factory, "straight", make) / "run"


@pytest.fixture(scope="session")
def teacher_with_heads(tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path) -> Path:
    """Run directory of a teacher with ensemble heads, which a student can start from. Read only."""
    from tests.training import student_runs, teacher_runs

    return (
        teacher_runs.once(
            tmp_path_factory, "teacher_with_heads", lambda p: student_runs.make_teacher(p, tokenizer_path)
        )
        / "run"
    )


@pytest.fixture(scope="session")
def student_run(tmp_path_factory: pytest.TempPathFactory, teacher_with_heads: Path) -> Path:
    """Run directory of four student episodes (two iterations of two environments), uninterrupted. Read only."""
    from tests.training import student_runs, teacher_runs

    def make(place: Path) -> None:
        argv = student_runs.flags(teacher_with_heads, place / "run", 4)
        code, output = teacher_runs.run_process(argv, "rl.training.train_student_rl")
        assert code == 0, output
        (place / "console.txt").write_text(output)

    return teacher_runs.once(tmp_path_factory, "student", make) / "run"


@pytest.fixture(scope="session")
def adversarial_run(tmp_path_factory: pytest.TempPathFactory, teacher_with_heads: Path, student_run: Path) -> Path:
    """Run directory of four iterations of phase 3, uninterrupted. Read only."""
    from tests.training import adversarial_runs, teacher_runs

    def make(place: Path) -> None:
        argv = adversarial_runs.flags(teacher_with_heads, student_run, place / "run", 4)
        code, output = teacher_runs.run_process(argv, adversarial_runs.MODULE)
        assert code == 0, output
        (place / "console.txt").write_text(output)

    return teacher_runs.once(tmp_path_factory, "adversarial", make) / "run"
