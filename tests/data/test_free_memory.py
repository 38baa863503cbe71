"""What a process may still take: of the machine, and of the control groups around it, which are files here."""

from pathlib import Path

import psutil
import pytest
import torch

from rl.data import free_memory
from rl.data.free_memory import free_bytes, require_memory

CPU = torch.device("cpu")
MACHINE = 1000


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with 1,000 bytes left."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": MACHINE})())


def group(folder: Path, names: tuple[str, str, str], limit: str, used: int, files: int = 0) -> None:
    """A control group: `files` bytes of what is used are files that nobody has looked at for a while."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {files}\nactive_file 7\n")


def free(tmp_path: Path, lines: str) -> int:
    (tmp_path / "own").write_text(lines)
    return free_bytes(CPU, tmp_path / "own", tmp_path / "mount")


def test_without_control_groups_the_machine_counts(tmp_path: Path) -> None:
    assert free_bytes(CPU, tmp_path / "none", tmp_path) == MACHINE
    assert free(tmp_path, "0::/user.slice\n") == MACHINE


@pytest.mark.parametrize(
    ("names", "line", "root"),
    [(free_memory.V2, "0::/job/step\n", ""), (free_memory.V1, "9:pids:/x\n4:memory,hugetlb:/job/step\n", "memory")],
    ids=["v2", "v1"],
)
def test_the_limit_of_the_own_group_and_of_every_group_around_it_counts(
    tmp_path: Path, names: tuple[str, str, str], line: str, root: str
) -> None:
    job = tmp_path / "mount" / root / "job"
    group(job / "step", names, "500", 200)
    assert free(tmp_path, line) == 300
    group(job, names, "600", 450)
    assert free(tmp_path, line) == 150
    group(job, names, "600", 450, files=100)  # the kernel drops them when memory gets short
    assert free(tmp_path, line) == 250
    group(job, names, "600", 700)
    assert free(tmp_path, line) == 0
    group(job, names, "9223372036854771712", 450)  # how version 1 says that there is no limit
    group(job / "step", names, "5000", 200)
    assert free(tmp_path, line) == MACHINE


def test_a_group_without_limit_leaves_the_machine_to_the_process(tmp_path: Path) -> None:
    group(tmp_path / "mount", free_memory.V2, "max", 200)
    assert free(tmp_path, "0::/\n") == MACHINE


def test_in_a_container_whose_group_has_the_name_of_the_host_the_mounted_one_counts(tmp_path: Path) -> None:
    group(tmp_path / "mount" / "memory", free_memory.V1, "500", 100)
    assert free(tmp_path, "4:memory:/docker/3f2a\n0::/\n") == 400


def test_a_kernel_that_does_not_say_what_it_could_drop_is_believed(tmp_path: Path) -> None:
    group(tmp_path / "mount", free_memory.V2, "500", 100)
    (tmp_path / "mount" / "memory.stat").unlink()
    assert free(tmp_path, "0::/\n") == 400


def test_all_processes_of_a_machine_need_their_share_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(free_memory, "free_bytes", lambda device: MACHINE)
    require_memory(MACHINE, CPU, "the replay", "sac.buffer_size")
    require_memory(250, CPU, "the replay", "sac.buffer_size", processes=4)
    told = (
        r"the replay needs 1004 bytes on cpu \(251 for each of 4 processes on this machine\), where 1000 bytes are "
        r"free; lower sac\.buffer_size \(sac\.buffer_size=NUMBER on the command line\)"
    )
    with pytest.raises(ValueError, match=told):
        require_memory(251, CPU, "the replay", "sac.buffer_size", processes=4)
