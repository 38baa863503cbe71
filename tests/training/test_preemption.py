"""Stop signals in a real process."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys, time
from rl.training.preemption import StopFlag
flag = StopFlag(repeat_after_s=float(sys.argv[1]))
flag.install()
print("ready", flush=True)
while not flag.stop_requested():
    time.sleep(0.01)
print("stopping", flag.signal_name, flush=True)
sys.stdin.readline()  # the step in progress
print("saved", flush=True)
sys.exit(75)
"""


@pytest.fixture
def start():
    started = []

    def run(repeat_after_s: float) -> subprocess.Popen:
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", PROGRAM, str(repeat_after_s)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        return process

    yield run
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_stop_signal_lets_the_step_finish_even_when_the_launcher_repeats_it(signum: signal.Signals, start) -> None:
    process = start(repeat_after_s=3600)
    process.send_signal(signum)
    assert process.stdout.readline() == f"stopping {signum.name}\n"
    process.send_signal(signum)
    out, _ = process.communicate("\n", timeout=20)
    assert out == "saved\n" and process.returncode == 75


def test_a_second_signal_ends_the_process_at_once(start) -> None:
    process = start(repeat_after_s=0)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "stopping SIGTERM\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == -signal.SIGINT


def test_handlers_from_before_come_back() -> None:
    from rl.training.preemption import STOP_SIGNALS, StopFlag

    before = [signal.getsignal(s) for s in STOP_SIGNALS]
    flag = StopFlag()
    flag.install()
    assert [signal.getsignal(s) for s in STOP_SIGNALS] != before
    flag.restore()
    assert [signal.getsignal(s) for s in STOP_SIGNALS] == before and not flag.stop_requested()
