"""State of the global random generators as data that `torch.load(weights_only=True)` accepts.

numpy arrays and the legacy `np.random.get_state()` tuple are refused by the restricted unpickler, so keys travel as
int64 tensors. Private generators (`np.random.Generator`) are saved by their owner through `generator_state`.
"""

import random
from typing import Any

import numpy as np
import torch

from rl.training.seeds import words_for

_NUMPY_KEYS = ("bit_generator", "key", "pos", "has_gauss", "gauss")


def seed_all(seed: int) -> None:
    """Seeds python, numpy and torch (CPU and every CUDA device), each from its own word of one SeedSequence."""
    for_python, for_numpy, for_torch = words_for(3, seed, "global")
    random.seed(for_python)
    np.random.seed(for_numpy)
    torch.manual_seed(for_torch)


def capture(device: torch.device) -> dict[str, Any]:
    """The four global generators of this process; `torch_cuda` is the generator of `device`, None on CPU."""
    numpy_state: dict[str, Any] = dict(np.random.get_state(legacy=False))
    return {
        "python": random.getstate(),
        "numpy": {
            "bit_generator": numpy_state["bit_generator"],
            "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
            "pos": int(numpy_state["state"]["pos"]),
            "has_gauss": int(numpy_state["has_gauss"]),
            "gauss": float(numpy_state["gauss"]),
        },
        "torch_cpu": torch.get_rng_state(),
        "torch_cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore(state: dict[str, Any], device: torch.device) -> list[str]:
    """Puts `capture`'s generators back; returns notes (a changed kind of device). A missing part raises ValueError."""
    missing = [k for k in ("python", "numpy", "torch_cpu", "torch_cuda") if k not in state]
    missing += [f"numpy.{k}" for k in _NUMPY_KEYS if "numpy" in state and k not in state["numpy"]]
    if missing:
        raise ValueError(f"checkpoint: random generator state lacks {', '.join(missing)}; it cannot be resumed exactly")
    version, internal, gauss_next = state["python"]
    random.setstate((version, tuple(internal), gauss_next))
    saved = state["numpy"]
    np.random.set_state(
        {
            "bit_generator": saved["bit_generator"],
            "state": {"key": saved["key"].numpy().astype(np.uint32), "pos": saved["pos"]},
            "has_gauss": saved["has_gauss"],
            "gauss": saved["gauss"],
        }
    )
    torch.set_rng_state(state["torch_cpu"].cpu())
    if device.type == "cuda" and state["torch_cuda"] is not None:
        torch.cuda.set_rng_state(state["torch_cuda"].cpu(), device)
    elif device.type == "cuda":
        return ["the checkpoint was written on a CPU: the CUDA generator starts from its seed"]
    elif state["torch_cuda"] is not None:
        return ["the checkpoint was written on a GPU: its CUDA generator state is not used on this CPU"]
    return []


def generator_state(generator: np.random.Generator) -> dict[str, Any]:
    """Plain data (ints, strings) of a private PCG64 generator; restored with `set_generator_state`."""
    return dict(generator.bit_generator.state)


def set_generator_state(generator: np.random.Generator, state: dict[str, Any]) -> None:
    """Undoes `generator_state`; a state of another bit generator raises ValueError."""
    own = type(generator.bit_generator).__name__
    if state["bit_generator"] != own:
        raise ValueError(f"checkpoint: generator state is of {state['bit_generator']}, this program uses {own}")
    generator.bit_generator.state = state
