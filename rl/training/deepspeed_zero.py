"""DeepSpeed's ZeRO: optimizer states and gradients (stage 2), and parameters, too (stage 3), are split over the ranks
(Rajbhandari et al. 2020).

DeepSpeed sees the trained parameters only: frozen ones stay whole on every rank, because phases use them outside the
wrapped forward. Clipping, finite checks and the schedule are this project's own, as for every other way to scale, and
checkpoints hold torch's AdamW state of whole tensors. The package is optional (`bash setup.sh deepspeed`); the pinned
version is the one whose layout of gradients and states `_share` knows.
"""

import importlib.util
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

MOMENTS = ("exp_avg", "exp_avg_sq")
GROUP = "group"  # in a part's group: which one of the whole optimizer it belongs to
LARGEST_BUCKET = 500_000_000  # numbers reduced at once; DeepSpeed's default, whatever the size of the model


def check_installed() -> None:
    """Raises ValueError with the command that installs the package."""
    if importlib.util.find_spec("deepspeed") is None:
        raise ValueError(
            "the accelerate configuration asks for DeepSpeed, which is not installed: bash setup.sh deepspeed, or take "
            "configs/accelerate/fsdp2.yaml, which splits the same tensors without it"
        )


class _Trained(nn.Module):
    """Holds the split parameters of a module and calls it. DeepSpeed gathers what a module holds for its forward."""

    def __init__(self, module: nn.Module, split: list[nn.Parameter]) -> None:
        super().__init__()
        for i, p in enumerate(split):
            self.register_parameter(f"p{i}", p)
        self._whole = [module]  # in a list, so that it is no submodule

    def train(self, mode: bool = True) -> "_Trained":
        self._whole[0].train(mode)
        return super().train(mode)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._whole[0](*args, **kwargs)


class Zero:
    """One module and its AdamW under ZeRO. `engine` replaces the module in training, `optimizer` the optimizer."""

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, stage: int, device: torch.device,
        accumulation: int = 1, autocast: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        """Collective. autocast: dtype of the forward, when it is not that of the parameters (float32)."""
        os.environ.setdefault("DS_ACCELERATOR", device.type)
        import deepspeed
        from deepspeed.utils import logger

        logger.setLevel(logging.WARNING)
        # Compiled at first use on a CPU, under a lock file that a killed run leaves for ever; gloo does the same.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        # DeepSpeed calls torch by names that torch 2.13 has replaced.
        warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if other := {p.dtype for p in parameters} - {torch.float32}:
            raise ValueError(f"DeepSpeed: trained parameters must be float32, some are {sorted(map(str, other))}")
        self.stage = stage
        self.split: list[nn.Parameter] = [p for p in parameters if p.dim() > 0]
        self.gates: list[nn.Parameter] = [p for p in parameters if p.dim() == 0]  # DeepSpeed cannot send one number
        bucket = min(LARGEST_BUCKET, sum(p.numel() for p in self.split))
        settings: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,  # counts nothing here: batches are not DeepSpeed's
            "gradient_accumulation_steps": accumulation,
            "gradient_clipping": 0.0,
            "zero_optimization": {"stage": stage, "reduce_bucket_size": bucket},
        }
        if autocast is not None:  # no module in the list: gradients are reduced in float32
            name = str(autocast).removeprefix("torch.")
            settings["torch_autocast"] = {"enabled": True, "dtype": name, "lower_precision_safe_modules": []}
        self.optimizer = ZeroOptimizer(self, optimizer)
        self.engine, *_ = deepspeed.initialize(
            model=_Trained(module, self.split), optimizer=self.optimizer.base, config=settings,
            dist_init_required=False,
        )  # fmt: skip

    @contextmanager
    def whole(self, changing: bool = False) -> Iterator[None]:
        """Collective. Inside, every rank has whole parameters; what rank 0 writes there stays with `changing`."""
        from deepspeed import zero

        with zero.GatheredParameters(self.split, modifier_rank=0 if changing else None):
            yield

    def load(self, load: Callable[[], None]) -> None:
        """Collective. `load` writes the parameters, on every rank."""
        with self.whole(changing=True):
            load()
        self.engine.optimizer.refresh_fp32_params()

    def backward(self, loss: Tensor, last: bool) -> None:
        """Collective. last: of the accumulation, so that gradients are complete afterwards."""
        self.engine.set_gradient_accumulation_boundary(last)
        self.engine.backward(loss)
        if last:
            for p in self.gates:
                if p.grad is not None:
                    dist.all_reduce(p.grad)
                    p.grad /= dist.get_world_size()

    @torch.no_grad()
    def clip_grad_norm(self, parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
        """Collective. As torch's function of that name: the norm over all ranks before clipping."""
        chosen = list(parameters)
        shares = [g for p in chosen if p.dim() > 0 and (g := self._share(p)) is not None]
        copied = [p.grad for p in chosen if p.dim() == 0 and p.grad is not None]
        square = torch.zeros((), device=self.engine.device)
        for g in shares:
            square += g.square().sum()
        dist.all_reduce(square)
        for g in copied:
            square += g.square()
        norm = square.sqrt()
        if own := [*shares, *copied]:
            torch._foreach_mul_(own, (max_norm / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def _share(self, p: nn.Parameter) -> Tensor | None:
        """This rank's part of the averaged gradient, the memory that the step reads; None when it has none of it."""
        from deepspeed.utils import safe_get_local_grad

        if self.stage == 3:
            return safe_get_local_grad(p)
        mapping = p._hp_mapping  # type: ignore[attr-defined]
        return None if mapping is None else mapping.get_lp_grad_fragment(p._index_in_param_group)  # type: ignore[attr-defined]


class ZeroOptimizer(torch.optim.Optimizer):
    """The AdamW that DeepSpeed splits and that of the gates, with the interface and the state_dict of one AdamW."""

    def __init__(self, zero: Zero, whole: torch.optim.Optimizer) -> None:
        # Not super().__init__: parameters and states belong to the two inside, whose steps read these groups.
        self.zero, self.defaults = zero, whole.defaults
        self.sizes = [len(group["params"]) for group in whole.param_groups]
        self.parameters: list[nn.Parameter] = [p for group in whole.param_groups for p in group["params"]]
        self.base, self.gates = _part(whole, zero.split), _part(whole, zero.gates)
        self.param_groups = [g for part in (self.base, self.gates) if part is not None for g in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Collective."""
        assert closure is None
        self.zero.engine.step()
        if self.gates is not None:
            self.gates.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """DeepSpeed drops its gradients in the step."""
        if self.gates is not None:
            self.gates.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Collective. What torch.optim.AdamW would return for the whole parameters, in memory of its own."""
        from deepspeed.utils import safe_get_full_optimizer_state

        state: dict[int, dict[str, Tensor]] = {}
        if self.base.state:  # none before the first step
            self._link()
        for i, p in enumerate(self.parameters):
            if p.dim() == 0:
                if own := self.gates.state.get(p):
                    state[i] = {k: v.clone() for k, v in own.items()}
            elif self.base.state:
                step = next(iter(self.base.state.values()))["step"]
                moments = {name: safe_get_full_optimizer_state(p, name).clone() for name in MOMENTS}
                state[i] = {"step": step.clone(), **moments}
        settings = {g[GROUP]: {k: v for k, v in g.items() if k not in ("params", GROUP)} for g in self.param_groups}
        first = [sum(self.sizes[:i]) for i in range(len(self.sizes))]
        groups = [{**settings[i], "params": list(range(f, f + self.sizes[i]))} for i, f in enumerate(first)]
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Collective. Takes what `state_dict` returned on any number of ranks, or torch.optim.AdamW's in one process.

        Raises ValueError for another optimizer's state.
        """
        saved, state = state_dict["param_groups"], state_dict["state"]
        if [len(group["params"]) for group in saved] != self.sizes:
            raise ValueError("the optimizer state in the checkpoint belongs to other parameters than those trained now")
        for group in self.param_groups:
            group.update({k: v for k, v in saved[group[GROUP]].items() if k != "params"})
        steps = {float(state[i]["step"]) for i, p in enumerate(self.parameters) if p.dim() > 0 and i in state}
        if len(steps) > 1:
            raise ValueError(f"DeepSpeed: all parameters must have had the same number of updates, not {sorted(steps)}")
        if steps or self.base.state:
            self._allocate(max(steps, default=0.0))
        for i, p in enumerate(self.parameters):
            own = {k: v.to(p.device) if k != "step" else v for k, v in state[i].items()} if i in state else {}
            if p.dim() == 0:
                self.gates.state[p] = own
            elif self.base.state:
                for name in MOMENTS:
                    self._write(p, own.get(name), name)

    def _allocate(self, step: float) -> None:
        split = self.zero.engine.optimizer
        third = self.zero.stage == 3
        for flat in split.fp32_partitioned_groups_flat if third else split.single_partition_of_fp32_groups:
            entry = self.base.state[flat]
            for name in MOMENTS:
                entry.setdefault(name, torch.zeros_like(flat, requires_grad=False))
            entry["step"] = torch.tensor(step)
        self._link()

    def _link(self) -> None:
        """DeepSpeed itself links parameters and moments of all groups after the step of the first one."""
        if self.zero.stage == 2:
            split = self.zero.engine.optimizer
            split._hp_optimizer_states_linked = False
            split._lazy_init_hp_params_optimizer_state()

    def _write(self, p: nn.Parameter, value: Tensor | None, name: str) -> None:
        """This rank's part of a whole moment; None: zeros."""
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if self.zero.stage == 2:
            safe_set_full_optimizer_state(p, torch.zeros_like(p) if value is None else value, name)
            return
        size, n = p.ds_tensor.numel(), p.ds_numel  # type: ignore[attr-defined]
        padded = torch.zeros(size * dist.get_world_size(), device=self.zero.engine.device)
        if value is not None:
            padded[:n] = value.flatten()
        rank = dist.get_rank()
        safe_set_local_optimizer_state(p, padded[rank * size : (rank + 1) * size], name)


def _part(whole: torch.optim.Optimizer, chosen: list[nn.Parameter]) -> Any:
    """An AdamW of the chosen parameters with the settings of their groups; None when there are none."""
    ids, groups = {id(p) for p in chosen}, []
    for i, group in enumerate(whole.param_groups):
        if own := [p for p in group["params"] if id(p) in ids]:
            groups.append({**group, "params": own, GROUP: i})
    return torch.optim.AdamW(groups) if groups else None
