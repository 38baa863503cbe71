"""What goes into a checkpoint, and the rule that it is plain data."""

from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rl.training.checkpoint_files import ReleasedBase

# Exactly these types pass torch.load(weights_only=True); subclasses (StrEnum, np.float64, defaultdict) do not.
_SCALARS = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
_CONTAINERS = (list, tuple, set)
_MAPPINGS = (dict, OrderedDict, Counter)
_TENSORS = (torch.Tensor, nn.Parameter)


@dataclass
class CheckpointState:
    """One rank's contribution. `model`, `training`, `metrics` and `peft_adapter` are those of rank 0."""

    model: dict[str, torch.Tensor]  # model.pt: state_dict of the unwrapped module
    training: dict[str, Any]  # training_state.pt: optimizer, schedule, counters, training config, metrics history
    metrics: dict[str, Any] = field(default_factory=dict)  # metrics.pt: recent snapshot
    per_rank: dict[str, Any] = field(default_factory=dict)  # gathered into training_state.pt: RNG, memory, carry-over
    rank_files: dict[str, Any] = field(default_factory=dict)  # name -> object, written as {name}_rank{r}.pt
    peft_adapter: Callable[[Path], None] | None = None  # writes adapter_config.json, adapter_model.safetensors
    base: ReleasedBase | None = None  # entries of `model` that published files hold unchanged: not written

    @property
    def stored_model(self) -> dict[str, torch.Tensor]:
        """`model` without what the base holds."""
        held = set() if self.base is None else set(self.base.entries)
        return {k: v for k, v in self.model.items() if k not in held}

    def host_copy(self, is_main: bool) -> "CheckpointState":
        """What this rank writes, in memory of its own on the host, so that training may go on."""
        rank_files = host_copy(self.rank_files)
        if not is_main:
            return CheckpointState(model={}, training={}, rank_files=rank_files)
        model, training, metrics = host_copy((self.stored_model, self.training, self.metrics))
        return replace(self, model=model, training=training, metrics=metrics, rank_files=rank_files)


def host_copy(value: Any) -> Any:
    """Plain data again, with no tensor or container of `value`; tensors that share memory still do."""
    storages: dict[tuple[torch.device, int], torch.UntypedStorage] = {}

    def tensor(item: torch.Tensor) -> torch.Tensor:
        own = item.untyped_storage()
        key = (own.device, own.data_ptr())
        if key not in storages:
            storages[key] = own.clone() if own.device.type == "cpu" else own.cpu()
        made = torch.empty(0, dtype=item.dtype)
        made.set_(storages[key], item.storage_offset(), item.size(), item.stride())
        return nn.Parameter(made, item.requires_grad) if type(item) is nn.Parameter else made

    def visit(item: Any) -> Any:
        if type(item) in _TENSORS:
            return tensor(item)
        if type(item) in _MAPPINGS:
            return type(item)({visit(k): visit(v) for k, v in item.items()})
        if type(item) in _CONTAINERS:
            return type(item)(visit(v) for v in item)
        return item

    return visit(value)


def plain_bytes(value: Any, where: str) -> int:
    """Size of the tensors in `value`; ValueError naming the first entry that could not be loaded back safely."""
    storages: dict[int, int] = {}

    def visit(item: Any, path: str) -> None:
        if type(item) in _TENSORS:
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif type(item) in _MAPPINGS:
            for k, v in item.items():
                visit(k, f"{path} (key {k!r})")
                visit(v, f"{path}.{k}")
        elif type(item) in _CONTAINERS:
            for i, v in enumerate(item):
                visit(v, f"{path}[{i}]")
        elif type(item) not in _SCALARS:
            kind = f"{type(item).__module__}.{type(item).__name__}"
            raise ValueError(f"checkpoint state {path} is a {kind}; store tensors, numbers, strings, lists and dicts")

    visit(value, where)
    return sum(storages.values())


def check_fit(module: nn.Module, state_dict: dict[str, torch.Tensor], source: str | Path) -> None:
    """Raises ValueError listing the keys and shapes that do not fit; both may be on the meta device."""
    own = module.state_dict()
    problems = {
        "missing": sorted(own.keys() - state_dict.keys()),
        "unexpected": sorted(state_dict.keys() - own.keys()),
        "of another shape": [
            f"{k} {tuple(state_dict[k].shape)} instead of {tuple(own[k].shape)}"
            for k in sorted(own.keys() & state_dict.keys())
            if state_dict[k].shape != own[k].shape
        ],
    }
    told = [f"{len(keys)} {kind} ({_abridged(keys)})" for kind, keys in problems.items() if keys]
    if told:
        raise ValueError(
            f"{source} belongs to another architecture than this model: keys {'; '.join(told)}. "
            "Use the model configuration it was trained with (config.yaml of its run)"
        )


def load_strict(module: nn.Module, state_dict: dict[str, torch.Tensor], source: str | Path) -> None:
    """`module.load_state_dict` that touches nothing unless every key and shape fits; else ValueError listing them."""
    check_fit(module, state_dict, source)
    module.load_state_dict(state_dict, strict=True)


def _abridged(keys: list[str], limit: int = 5) -> str:
    return ", ".join(keys[:limit]) + (f", and {len(keys) - limit} more" if len(keys) > limit else "")
