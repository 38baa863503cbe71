"""Runs a function under several gloo ranks on this machine and returns what each rank returned."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

REPO = Path(__file__).resolve().parents[2]


def run_ranks(
    function: Callable[..., Any],
    world_size: int,
    tmp_path: Path,
    timeout_s: float = 60,
    group_timeout_s: float = 30,
    **kwargs: Any,
) -> list:
    """`function(world, **kwargs)` of an importable file on `world_size` ranks; JSON results in rank order.

    A failing rank raises AssertionError with the output of all ranks.
    """
    module_file = Path(sys.modules[function.__module__].__file__ or "").resolve()
    request = {
        "file": str(module_file), "function": function.__name__, "kwargs": kwargs, "results": str(tmp_path),
        "group_timeout_s": group_timeout_s,
    }  # fmt: skip
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"),
        *(__file__, json.dumps(request)),
    ]
    env = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, f"ranks failed with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return [json.loads((tmp_path / f"result_rank{r}.json").read_text()) for r in range(world_size)]


def _main() -> None:
    from rl.config import TrainingConfig
    from rl.training.parallel_utils import ParallelContext
    from rl.training.process_end import end_process

    request = json.loads(sys.argv[1])
    spec = importlib.util.spec_from_file_location("rank_functions", request["file"])
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    world = ParallelContext.create(TrainingConfig(device="cpu"), timeout_s=request["group_timeout_s"])
    result = getattr(module, request["function"])(world, **request["kwargs"])
    (Path(request["results"]) / f"result_rank{world.rank}.json").write_text(json.dumps(result))
    world.close()
    end_process(0)


if __name__ == "__main__":
    _main()
