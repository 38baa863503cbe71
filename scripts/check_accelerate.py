"""Refuses accelerate configurations that contradict themselves, the command line or this machine.

check_accelerate.py FILE [NUM_PROCESSES]: prints flags for `accelerate launch`, one a line; a complaint in one line and
exit code 4 otherwise. NNODES, NODE_RANK, MASTER_ADDR and MASTER_PORT count as for launches without such a file.
"""

import importlib.util
import os
import sys
from typing import Any

from accelerate.commands.config.config_args import SageMakerConfig, load_config_from_file
from accelerate.utils import DistributedType

KINDS = (DistributedType.NO, DistributedType.MULTI_GPU, DistributedType.FSDP, DistributedType.DEEPSPEED)


def flags(path: str, given: int | None, env: dict[str, str], gpus: int) -> list[str]:
    """`given` processes on this node. Raises ValueError naming file, what is wrong and the remedy."""
    config = _read(path)
    kind = config.distributed_type
    if kind not in KINDS:
        raise ValueError(f"{path}: distributed_type {kind.value}; there are {', '.join(k.value for k in KINDS)}")
    if kind is DistributedType.DEEPSPEED and importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            f"{path} needs the package deepspeed, which is not installed: bash setup.sh deepspeed, or take "
            "configs/accelerate/fsdp2.yaml, which splits the same tensors without it"
        )
    nodes, place = _nodes(path, config, env)
    total = _processes(path, config, given, nodes)
    if kind is DistributedType.NO and total > 1:
        raise ValueError(f"{path}: distributed_type NO is one process, not {total}; take configs/accelerate/ddp.yaml")
    if not config.use_cpu and gpus > 0 and total // nodes > gpus:
        raise ValueError(f"{path}: {total // nodes} processes on this machine need as many GPUs; it has {gpus}")
    if kind is DistributedType.DEEPSPEED and nodes > 1:  # else accelerate wants one machine to log in to the others
        place = [*place, "--deepspeed_multinode_launcher", "standard"]
    return ["--num_processes", str(total), *place]


def _read(path: str) -> Any:
    try:
        config = load_config_from_file(path)
    except Exception as e:  # yaml, key and value errors of another package; raised again as the user's
        raise ValueError(f"{path} is no accelerate configuration: {' '.join(str(e).split())}") from e
    if isinstance(config, SageMakerConfig):
        raise ValueError(f"{path} is for SageMaker; set compute_environment: LOCAL_MACHINE")
    return config


def _nodes(path: str, config: Any, env: dict[str, str]) -> tuple[int, list[str]]:
    """Number of nodes and the flags that place this one among them."""
    named = int(env.get("NNODES", "1"))
    if config.num_machines > 1 and named > 1 and config.num_machines != named:
        raise ValueError(f"{path} says num_machines {config.num_machines}, NNODES says {named}; make them agree")
    nodes = max(config.num_machines, named)
    if nodes == 1:
        return 1, []
    if named > 1:
        port = env.get("MASTER_PORT", "29500")
        place = ["--machine_rank", env["NODE_RANK"], "--main_process_ip", env["MASTER_ADDR"]]
        return nodes, ["--num_machines", str(nodes), *place, "--main_process_port", port]
    if config.main_process_ip is None:
        raise ValueError(
            f"{path} is for {nodes} machines and does not say which one this is: start the same command on each with "
            f"NNODES={nodes}, NODE_RANK (0 to {nodes - 1}) and MASTER_ADDR (the address of node 0)"
        )
    return nodes, []


def _processes(path: str, config: Any, given: int | None, nodes: int) -> int:
    """Processes on all nodes."""
    filed = config.num_processes
    if filed == -1:
        if given is None:
            raise ValueError(f"{path} leaves the number of processes open: bash train.sh PHASE NUM_PROCESSES ...")
        return given * nodes
    if filed < 1:
        raise ValueError(f"{path}: num_processes is {filed}; write at least 1, or -1 for NUM_PROCESSES of train.sh")
    if filed % nodes:
        raise ValueError(f"{path}: num_processes {filed} cannot be shared by {nodes} machines; write a multiple")
    if given is not None and given * nodes != filed:
        raise ValueError(
            f"{path} says num_processes {filed}, the command line asks for {given} on each of {nodes} machines; give "
            "the same, or write -1 into the file"
        )
    return filed


def main() -> int:
    import torch

    given = int(sys.argv[2]) if len(sys.argv) > 2 and sys.argv[2] else None
    try:
        found = flags(sys.argv[1], given, dict(os.environ), torch.cuda.device_count())
    except ValueError as e:
        print(f"train.sh: {e}", file=sys.stderr)
        return 4
    print("\n".join(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
