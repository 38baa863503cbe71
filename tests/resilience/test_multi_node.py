"""Two network namespaces as two machines: they train together, one is lost with everything on it, both go on."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launch.test_launch import REPO
from tests.resilience.test_restart import SCRIPT, SUPERVISE, TIMEOUT_S, toy


class Node:
    """A network namespace with one address."""

    def __init__(self, name: str, address: str) -> None:
        self.name, self.address = name, address

    def start(self, rank: int, work: Path, *flags: str) -> subprocess.Popen[str]:
        """Six steps of tests/training/toy_run.py with one rank here; rank 1 waits in step 4, the first time."""
        env = {
            "NNODES": "2", "NODE_RANK": str(rank), "MASTER_ADDR": "10.77.0.1", "MASTER_PORT": "29511",
            "GLOO_SOCKET_IFNAME": "wire", "TOY_SAVE_EVERY": "2", "TOY_TIMEOUT_S": str(TIMEOUT_S),
            "TOY_FAULTS": "wait:1:4", "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        arguments = [str(work / "run"), "6", "0", str(work / "run.hash"), *flags]
        command = ["bash", "-c", SCRIPT, "bash", "launch", "1", "tests.training.toy_run", *arguments]
        whole = [sys.executable, str(SUPERVISE), "3", "--backoff", "0.1", "--", *command]
        return subprocess.Popen(
            ["ip", "netns", "exec", self.name, *whole], cwd=REPO, env=os.environ | env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def lose(self) -> None:
        """Everything that runs here is gone at once."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        for pid in found.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


@pytest.fixture
def nodes() -> Iterator[list[Node]]:
    tag = uuid.uuid4().hex[:6]
    names = [f"node{i}-{tag}" for i in range(2)]

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True, text=True)

    try:
        try:
            for name in names:
                ip("netns", "add", name)
        except (OSError, subprocess.CalledProcessError) as e:
            why = e.stderr.strip() if isinstance(e, subprocess.CalledProcessError) else e
            pytest.skip(f"network namespaces are not permitted here: {why}")
        ip("link", "add", "wire", "netns", names[0], "type", "veth", "peer", "name", "wire", "netns", names[1])
        for i, name in enumerate(names):
            ip("-n", name, "addr", "add", f"10.77.0.{i + 1}/24", "dev", "wire")
            for device in ("wire", "lo"):
                ip("-n", name, "link", "set", device, "up")
        found = [Node(name, f"10.77.0.{i + 1}") for i, name in enumerate(names)]
        yield found
        for node in found:
            node.lose()
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_lost_node_comes_back_and_nothing_of_the_result_differs(nodes: list[Node], tmp_path: Path) -> None:
    code, output = toy(tmp_path, "straight", 0)
    assert code == 0, output
    first = [node.start(rank, tmp_path) for rank, node in enumerate(nodes)]
    deadline = time.monotonic() + TIMEOUT_S
    while not (tmp_path / "run.wait-1-4").exists():
        assert time.monotonic() < deadline and first[0].poll() is None
        time.sleep(0.1)
    nodes[1].lose()  # in step 4; checkpoint-2 is the newest
    first[1].communicate(timeout=TIMEOUT_S)
    again = nodes[1].start(1, tmp_path, "--auto_resume")  # what a job manager does
    for process in (first[0], again):
        output, _ = process.communicate(timeout=TIMEOUT_S)
        assert process.returncode == 0, output
    assert (tmp_path / "run.hash").read_text() == (tmp_path / "straight.hash").read_text()
    lines = [(tmp_path / run / "episode_metrics.jsonl").read_text() for run in ("straight", "run")]
    assert lines[0] == lines[1]
