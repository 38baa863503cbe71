"""Rows 13, 14, 16 and 23: ranks that disagree, other numbers of ranks, a second run, leaks."""

import gc
import os
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest

from rl.config import EnvironmentConfig, SupervisionConfig
from rl.envs.supervised import Lost, Workers
from rl.f1_rl_env import TeacherEnv
from rl.training.checkpoint import open_checkpoint
from tests.helpers.ranks import run_ranks
from tests.resilience import process_cases
from tests.resilience.toy_envs import Holder


def test_a_rank_that_waits_alone_gives_up_and_leaves_no_checkpoint(tmp_path: Path) -> None:
    """Not a deadlock: the group's timeout (here 3 s) ends it, and what was complete before is still the newest."""
    run = tmp_path / "run"
    run.mkdir()
    waiting, _ = run_ranks(process_cases.one_rank_saves, 2, tmp_path, 200, 3.0, run_dir=str(run))
    assert waiting["error"] not in ("none", "CheckpointError")
    assert open_checkpoint(run).step == 1


def held() -> tuple[int, int, int]:
    """Open files, threads and pieces of shared memory of this process (mapped or held open)."""
    gc.collect()
    process = psutil.Process()
    mapped = {m.path for m in process.memory_maps() if m.path.startswith("/dev/shm/")}
    kept = {p.name for p in Path("/dev/shm").iterdir() if str(os.getpid()) in p.name}  # torch names them by process
    return process.num_fds(), process.num_threads(), len(mapped) + len(kept)


def children() -> set[int]:
    return {c.pid for c in psutil.Process().children(recursive=True)}


def test_lost_processes_leave_no_files_children_or_shared_memory() -> None:
    others = children()  # of the test run itself
    workers = Workers([partial(Holder, 1)] * 2, SupervisionConfig(max_failures=100))
    before = held()
    for _ in range(6):
        assert isinstance(workers.call("hurt", [("exit",)], [1])[0], Lost)
    assert held() == before and len(children() - others) == 2
    workers.close()
    assert children() - others == set()


@pytest.mark.parametrize("resets", [60, pytest.param(400, marks=pytest.mark.slow)])
def test_resets_and_rebuilt_scenes_leave_nothing_behind(resets: int) -> None:
    """Memory may grow by caches at first; the second half of the resets must add next to nothing."""
    env = TeacherEnv(EnvironmentConfig(num_objects=2, scene_reset_interval=4), max_steps=2)
    process, seen = psutil.Process(), []
    for i in range(resets):
        env.reset()
        env.step(np.zeros(32, np.float32))
        if i % 10 == 9:
            env.rebuild()
            seen.append((process.memory_info().rss / 2**20, *held()))
    half = len(seen) // 2
    assert seen[-1][1:] == seen[half][1:], "files, threads or shared memory"
    assert seen[-1][0] - seen[half][0] < 10 + 0.05 * resets, f"resident memory in MiB: {[round(s[0]) for s in seen]}"
    env.close()
    assert os.getpid() == process.pid
