"""Memory that this process may still take, the refusal of what needs more, and the errors where it ran out.

In a container or a batch job the machine has more than the process may use: the kernel ends what exceeds the limit of
its control group, or of a group around it.
"""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

log = logging.getLogger(__name__)
# Names of limit and use in bytes, and of what of the use is files that the kernel drops when memory gets short.
V2 = ("memory.max", "memory.current", "inactive_file")
V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
# Plain RuntimeErrors of torch's CPU allocator, of CUDA and of Warp.
RAN_OUT = re.compile(r"DefaultCPUAllocator|CUDA error.*: out of memory|[Ff]ailed to allocate \d+ bytes")


def free_bytes(
    device: torch.device, own_groups: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> int:
    """Of the GPU; on CPU the smaller of what the machine and what the control groups of this process have left.

    own_groups: where the kernel says in which groups it is. mount: where their files are.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min([psutil.virtual_memory().available, *_left_in_groups(own_groups, mount)])


def require_memory(needed: int, device: torch.device, what: str, flag: str, processes: int = 1) -> None:
    """Logs what is about to be allocated; ValueError when `device` has not that much left.

    needed: bytes of each of `processes` that take them from the same memory. flag: what to lower.
    """
    free, total = free_bytes(device), needed * processes
    each = f" ({needed} for each of {processes} processes on this machine)" if processes > 1 else ""
    log.info("%s: %d bytes (%.2f GB)%s on %s, %.2f GB free", what, total, total / 1e9, each, device, free / 1e9)
    if total > free:
        raise ValueError(
            f"{what} needs {total} bytes on {device}{each}, where {free} bytes are free; lower {flag} "
            f"({flag}=NUMBER on the command line)"
        )


def is_out_of_memory(error: BaseException) -> bool:
    """True for the errors of torch, Python and Warp where memory of the GPU or the machine ran out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or RAN_OUT.search(str(error)) is not None


def _left_in_groups(own_groups: Path, mount: Path) -> Iterator[int]:
    """Bytes left in every limited group around this process; nothing where there are no control groups."""
    if not own_groups.is_file():
        return
    for line in own_groups.read_text(encoding="utf-8").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = mount, V2
        elif "memory" in controllers.split(","):
            root, names = mount / "memory", V1
        else:
            continue
        # In a container the path may be the host's, which is not mounted: what is, is the container's own group.
        group = root / path.strip("/")
        for folder in (group, *group.parents):
            left = _left(folder, *names)
            if left is not None:
                yield left
            if folder == root:
                break


def _left(folder: Path, limit: str, use: str, dropped: str) -> int | None:
    """Bytes left in one group, None where it is not limited or not there."""
    if not (folder / limit).is_file() or not (folder / use).is_file():
        return None
    most = (folder / limit).read_text(encoding="utf-8").strip()
    if most == "max":
        return None
    used, stat = int((folder / use).read_text(encoding="utf-8")), folder / "memory.stat"
    for line in stat.read_text(encoding="utf-8").splitlines() if stat.is_file() else ():
        name, value = line.split()
        used -= int(value) if name == dropped else 0
    return max(0, int(most) - used)
