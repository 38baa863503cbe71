"""Rows 9 and 10: an environment that raises, crashes, is killed or hangs costs its episode and nothing else."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from rl.config import SupervisionConfig
from rl.data.episode_statistics import EpisodeStatistics
from rl.data.returns import gae
from rl.envs.gymnasium_adapter import GymnasiumEnv
from rl.envs.process_vector import ProcessVectorEnv
from rl.envs.supervised import EnvironmentsLostError, Lost, Workers
from rl.envs.worker import Deadline
from rl.types import VectorStep
from tests.resilience.toy_envs import HORIZON, Holder, ToyEnv, refuse

REPO = Path(__file__).resolve().parents[2]
FAULTS = ["raise", "exit", "kill", "segfault", "hang", "stop"]
REASONS = {
    "raise": "raised RuntimeError: the solver diverged",
    "exit": "ended with exit code 7",
    "kill": "was ended by SIGKILL",
    "segfault": "was ended by SIGSEGV",
    "hang": "did not answer in time",
    "stop": "did not answer in time",
}


def limits(**changes: float) -> SupervisionConfig:
    return SupervisionConfig(**{"step_timeout_s": 1.5, "start_timeout_s": 60.0, "max_failures": 3} | changes)  # type: ignore[arg-type]


def toys(flag: Path, fault: str | None, envs: int = 3, **options: object) -> list[partial[ToyEnv]]:
    """Environment 1 has the fault."""
    return [
        partial(ToyEnv, i, fault if i == 1 else None, flag=str(flag), **options)  # type: ignore[arg-type]
        for i in range(envs)
    ]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_lost_environment_costs_its_row_and_nobody_elses(fault: str, tmp_path: Path) -> None:
    envs = ProcessVectorEnv(toys(tmp_path / "once", fault), limits())
    twin = ProcessVectorEnv(toys(tmp_path / "never", None), limits())
    seen, _ = envs.reset(seed=5)
    assert seen.tolist() == twin.reset(seed=5)[0].tolist()
    for t in range(1, 2 * HORIZON):
        actions = np.full((3, 1), t / 20, np.float32)
        seen, reward, terminated, truncated, _ = envs.step(actions)
        expected = twin.step(actions)
        others = [0, 2]
        assert seen[others].tolist() == expected[0][others].tolist()
        assert reward[others].tolist() == expected[1][others].tolist()
        assert truncated[others].tolist() == expected[3][others].tolist() and not terminated.any()
        assert envs.lost.tolist() == [False, t == 3, False]
        if t == 3:  # the fault: another episode, seen from its first step
            assert truncated[1] and reward[1] == 0 and seen[1, 2] == 0 and seen[1, 1] != expected[0][1, 1]
        elif t < 3 + HORIZON:  # nothing is one step late: what is seen answers the action just given
            step = t if t < 3 else t - 3
            assert seen[1].tolist() == pytest.approx([1, seen[1, 1], step, t / 20]) and not truncated[1]
            assert reward[1] == pytest.approx(t / 20)
    assert envs.workers.losses == [REASONS[fault]]
    envs.close()
    twin.close()


def test_environments_in_processes_equal_those_in_this_one(tmp_path: Path) -> None:
    """Bit for bit, over several episodes; so a checkpoint does not know where its environments lived."""
    inline = GymnasiumEnv(partial(ToyEnv, 0), 3, seed=4)
    apart = GymnasiumEnv(partial(ToyEnv, 0), 3, seed=4, processes=limits())
    assert torch.equal(inline.reset(), apart.reset())  # type: ignore[arg-type]
    for t in range(3 * HORIZON):
        a, b = (env.step(torch.full((3, 1), t / 40)) for env in (inline, apart))
        for name in ("observation", "next_observation", "reward", "terminated", "truncated", "valid"):
            assert torch.equal(getattr(a, name), getattr(b, name)), (name, t)
        assert a.lost is None and not b.lost.any()
    assert torch.equal(inline.reset(7), apart.reset(7))  # type: ignore[arg-type]
    apart.close()


def test_a_trainer_sees_a_lost_episode_as_a_cut_that_is_no_transition(tmp_path: Path) -> None:
    env = GymnasiumEnv(
        partial(ToyEnv, 0, "kill", flag=str(tmp_path / "once")), 2, processes=limits()
    )  # one of the two finds the flag first
    env.reset(0)
    steps = [env.step(torch.zeros(2, 1)) for _ in range(3)]
    lost = steps[2].lost
    assert lost is not None and lost.sum() >= 1
    assert torch.equal(steps[2].valid, ~lost) and bool(steps[2].truncated[lost].all())
    assert not steps[2].terminated.any() and bool(steps[0].valid.all() and steps[1].valid.all())
    env.close()


def test_statistics_drop_a_lost_episode_and_count_the_loss() -> None:
    """Environment 1 is lost in the second of five steps; its episode of rewards 1 + (lost) never shows."""
    statistics = EpisodeStatistics(2)
    for t in range(5):
        lost = torch.tensor([False, t == 1])
        ended = torch.tensor([t == 4, t == 4]) | lost
        nothing = torch.zeros(2)
        statistics.add(
            VectorStep(nothing, nothing, torch.ones(2), torch.zeros(2, dtype=torch.bool), ended, ~lost, {}, lost)
        )
    assert statistics.flush() == 9  # transitions
    assert list(statistics.returns) == [5.0, 3.0] and list(statistics.lengths) == [5.0, 3.0]
    assert statistics.losses() == {"environment_failures": 1.0} and statistics.losses() == {}


def test_advantages_do_not_pass_through_a_lost_row() -> None:
    """The step before it is cut at the observation that was really seen: r + gamma V(s') - V(s) = 1 + 0.5 * 4 - 2."""
    rewards, values = torch.tensor([[1.0], [9.0], [1.0]]), torch.tensor([[2.0], [4.0], [8.0]])
    after = torch.tensor([[4.0], [torch.nan], [0.0]])
    lost = torch.tensor([[False], [True], [False]])
    advantages, _ = gae(rewards, values, after, torch.zeros_like(lost), lost, ~lost, 0.5, 0.9)
    assert advantages[:, 0].tolist() == [1.0, 0.0, -7.0]


def test_too_many_losses_stop_with_the_remedy(tmp_path: Path) -> None:
    envs = ProcessVectorEnv(toys(tmp_path / "x", "exit", 2, at=1, always=True), limits(max_failures=2))
    envs.reset(seed=0)
    actions = np.zeros((2, 1), np.float32)
    for _ in range(2):
        envs.step(actions)
    with pytest.raises(EnvironmentsLostError, match=r"lost 3 times within 1000 steps.*exit code 7.*max_failures"):
        envs.step(actions)
    envs.close()


def test_losses_that_lie_far_apart_do_not_stop(tmp_path: Path) -> None:
    envs = ProcessVectorEnv(toys(tmp_path / "x", "raise", 2, at=4, always=True), limits(max_failures=1, window=4))
    envs.reset(seed=0)
    for _ in range(12):
        envs.step(np.zeros((2, 1), np.float32))
    assert len(envs.workers.losses) == 3
    envs.close()


def test_an_environment_that_is_lost_in_its_reset_is_reset_again(tmp_path: Path) -> None:
    envs = ProcessVectorEnv(toys(tmp_path / "once", "exit", 2, at=0), limits())
    seen, _ = envs.reset(seed=0)
    assert envs.lost.tolist() == [False, True] and seen[:, 2].tolist() == [0, 0]
    envs.step(np.zeros((2, 1), np.float32))
    assert not envs.lost.any()
    envs.close()


def test_one_that_is_lost_between_steps_is_lost_in_the_next(tmp_path: Path) -> None:
    """Else it would go on as a new environment that nobody reset or told what the others know."""
    envs = ProcessVectorEnv(toys(tmp_path / "x", None, 2), limits())
    envs.reset(seed=0)
    process = envs.workers._workers[1]._process
    assert process is not None
    process.kill()
    process.wait()
    envs.set_attr("at", 9)
    assert envs.get_attr("at") == (9, 9)
    envs.step(np.zeros((2, 1), np.float32))
    assert envs.lost.tolist() == [False, True]
    envs.close()


def test_a_worker_that_hangs_in_the_middle_of_an_answer_does_not_stop_the_trainer() -> None:
    workers = Workers([partial(Holder, 1)], limits())
    assert isinstance(workers.call("half_an_answer")[0], Lost)
    assert workers.call("add", [(2,)]) == [3]
    workers.close()


def test_time_in_which_the_trainer_itself_was_stopped_is_not_held_against_a_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    deadline = Deadline(5.0)
    clock[0] = 1000.0  # a suspended job
    assert deadline.next_slice() == 1.0
    for moment in (1001.0, 1002.0):
        clock[0] = moment
        deadline.next_slice()
    assert deadline.left == 1.0
    clock[0] = 1003.0
    deadline.next_slice()
    assert deadline.left == 0.0


def test_objects_can_be_built_again_in_their_process() -> None:
    workers = Workers([partial(Holder, 1), partial(Holder, 10)], limits())
    assert workers.call("add", [(1,), (1,)]) == [2, 11]
    pids = workers.pids
    workers.build_again()
    assert workers.call("add", [(0,), (0,)]) == [1, 10] and workers.pids == pids
    workers.close()


def test_stop_signals_are_for_the_trainer_not_for_its_workers() -> None:
    workers = Workers([partial(Holder, 1)], limits())
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(workers.pids[0], signum)
    assert workers.call("add", [(2,)]) == [3] and workers.losses == []
    workers.close()


def test_what_a_factory_refuses_is_the_users_error() -> None:
    with pytest.raises(ValueError, match=r"^environment.num_objects is -1; it must be at least 0$"):
        Workers([refuse], limits())


def test_a_factory_that_cannot_be_sent_is_refused() -> None:
    with pytest.raises(ValueError, match="functions that can be imported"):
        Workers([lambda: None], limits())


def test_workers_end_with_their_trainer_even_when_it_is_killed(tmp_path: Path) -> None:
    code = (
        "from functools import partial; from tests.resilience.toy_envs import Holder\n"
        "from tests.resilience.test_environments import limits\n"
        "from rl.envs.supervised import Workers\n"
        "w = Workers([partial(Holder, 1)] * 2, limits())\n"
        "print(*w.pids, flush=True); import time; time.sleep(60)"
    )
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=REPO)
    assert trainer.stdout is not None
    pids = [int(p) for p in trainer.stdout.readline().split()]
    assert len(pids) == 2
    trainer.kill()
    trainer.wait()
    deadline = time.monotonic() + 20
    while alive := [p for p in pids if _alive(p)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)


def _alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False
