"""Processes of one training run: device, precision, wrapping, reductions. The only importer of accelerate and, with
`sharding.py` and `deepspeed_zero.py`, of torch.distributed.

Rank discipline: methods marked "collective" must be called by every rank, in the same order. In one process they
cost nothing. Works under `accelerate launch`, torchrun and plain python.
"""

import hashlib
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import nn

from rl.config import MixedPrecision, TrainingConfig
from rl.training import process_end, sharding
from rl.training.deepspeed_zero import Zero
from rl.training.seeds import seed_for
from rl.training.sharding import Split

__all__ = ["ParallelContext", "RankMismatchError", "parameter_hash", "seed_for"]

T = TypeVar("T")
DEFAULT_TIMEOUT_S = 600.0  # a collective that waits longer raises instead of hanging for ever


class RankMismatchError(RuntimeError):
    """Ranks that must hold equal values do not; training on would silently mix different models."""


def available_cores() -> int:
    """Cores this process may use (containers and taskset restrict them)."""
    return len(os.sched_getaffinity(0))


def local_processes() -> int:
    """Processes of the group on this machine, as the launcher says."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _tensor_bytes(tensor: torch.Tensor) -> bytes:
    # A copy: memory that numpy has seen cannot be given back by FSDP.
    return tensor.detach().cpu().clone().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def _named_tensors(module: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    inner = module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module
    yield from sorted([*inner.named_parameters(), *inner.named_buffers()])


def parameter_hash(module: nn.Module) -> str:
    """sha256 over names, dtypes, shapes and bytes of all parameters and buffers, in name order."""
    digest = hashlib.sha256()
    for name, tensor in _named_tensors(module):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(_tensor_bytes(tensor))
    return digest.hexdigest()


def _check_precision(cfg: TrainingConfig) -> None:
    """The accelerate configuration must not contradict ours. Raises ValueError."""
    wanted, own = os.environ.get("ACCELERATE_MIXED_PRECISION", "no"), str(cfg.mixed_precision.value)
    if wanted not in ("no", own):
        raise ValueError(
            f"the accelerate configuration says mixed_precision {wanted}, training.mixed_precision is {own}; give "
            f"--mixed_precision {wanted}, or write 'no' into the file"
        )


class ParallelContext:
    """What one rank knows about the group. Build with `create`, end with `close`."""

    def __init__(self, accelerator: Accelerator, split: Split = Split.nothing) -> None:
        self.accelerator = accelerator
        self.split = split  # what of a module is split over the ranks instead of copied to each
        self._shards: list[sharding.Sharded] = []
        self._zero: Zero | None = None
        self.rank: int = accelerator.process_index
        self.world_size: int = accelerator.num_processes
        self.local_rank: int = accelerator.local_process_index
        self.local_world_size = local_processes()  # of the group, on this machine
        self.is_main: bool = accelerator.is_main_process
        self.device: torch.device = accelerator.device

    @property
    def sharded(self) -> bool:
        return self.split is not Split.nothing

    @classmethod
    def create(
        cls, cfg: TrainingConfig, timeout_s: float = DEFAULT_TIMEOUT_S, find_unused_parameters: bool = False
    ) -> "ParallelContext":
        """Collective. Joins the group the launcher describes and sets torch's threads to cores / local processes.

        `find_unused_parameters`: for a model whose forward leaves trainable parameters out in some modes.
        """
        if cfg.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"training.device is '{cfg.device}'; use auto, cpu or cuda")
        if cfg.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("training.device is cuda, but torch finds no CUDA device; use --device cpu or auto")
        on_cpu = cfg.device == "cpu" or (cfg.device == "auto" and not torch.cuda.is_available())
        if on_cpu and cfg.mixed_precision == "fp16":
            raise ValueError("training.mixed_precision fp16 needs a GPU; use bf16 or no on the CPU")
        split = sharding.take_request(cfg)
        _check_precision(cfg)
        # Naming a backend outside a launcher makes Accelerate believe in a group that nobody started.
        launched = "LOCAL_RANK" in os.environ
        backend = ("gloo" if on_cpu else "nccl") if launched else None
        group = InitProcessGroupKwargs(backend=backend, timeout=timedelta(seconds=timeout_s))
        ddp = DistributedDataParallelKwargs(find_unused_parameters=find_unused_parameters)
        threads = cfg.num_threads if cfg.num_threads > 0 else max(1, available_cores() // local_processes())
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # else Accelerate picks its own number and warns
        accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision=str(cfg.mixed_precision.value),
            gradient_accumulation_steps=cfg.gradient_accumulation_steps,
            step_scheduler_with_optimizer=False,
            kwargs_handlers=[group, ddp],
        )
        if on_cpu:
            torch.set_num_threads(threads)
        return cls(accelerator, split if accelerator.num_processes > 1 else Split.nothing)

    def abandon(self) -> None:
        """After a failure: waits for nobody; the process then ends without freeing the group (`process_end`)."""
        if dist.is_initialized():
            process_end.keep(dist.group.WORLD)

    def close(self) -> None:
        """Leaves the group, so that a later `create` in the same process starts afresh. Not a barrier."""
        if dist.is_initialized():
            process_end.keep(dist.group.WORLD)
            dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        assert PartialState._shared_state == {}

    # --- training --------------------------------------------------------------------------------------------------

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """Collective. Wraps model and optimizer; schedules are stepped by us (a prepared one steps once a process).

        A module that is split stays itself, but its parameters are other objects afterwards.
        """
        if not self.sharded:
            return self.accelerator.prepare(model, optimizer)
        if self.split.by_deepspeed:
            assert self._zero is None  # one trained module a run
            steps = self.accelerator.gradient_accumulation_steps
            autocast = torch.bfloat16 if self.accelerator.mixed_precision == MixedPrecision.bf16.value else None
            self._zero = Zero(model.to(self.device), optimizer, self.split.value, self.device, steps, autocast)
            return self._zero.engine, self._zero.optimizer
        self._shards.append(sharding.Sharded(model.to(self.device), optimizer, self.device, self.world_size))
        return model, self.accelerator.prepare(optimizer)

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Collective. Inside, parameters of split modules are whole on every rank, and one rank alone may call them
        (with FSDP a state_dict is split nevertheless). Nothing where modules are not split."""
        with ExitStack() as stack:
            for shard in self._shards:
                stack.enter_context(shard.whole())
            if self._zero is not None:
                stack.enter_context(self._zero.whole())
            yield

    def gathered(self, state: dict[str, Any]) -> dict[str, Any]:
        """Collective, inside `whole`. A state_dict, or any tree of them, with whole tensors, whatever the number of
        ranks."""
        found: dict[str, Any] = sharding.gathered(state) if self.sharded else state
        return found

    def load_whole(
        self, module: nn.Module, state: dict[str, torch.Tensor], load: Callable[[dict[str, torch.Tensor]], None]
    ) -> None:
        """Collective. `load(state)` into a module that may be split; undoes `gathered`."""
        if self._zero is not None:
            self._zero.load(lambda: load(state))
        else:
            load(sharding.split_like(module.state_dict(), state) if self.sharded else state)

    def load_optimizer(self, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Collective. `optimizer.load_state_dict` of whole tensors, on any number of ranks."""
        if self.split is Split.fsdp:
            sharding.load_optimizer(optimizer, state)
        else:
            optimizer.load_state_dict(state)

    def unwrap(self, model: nn.Module) -> nn.Module:
        """The module inside, for its state_dict; never for a training forward."""
        return self.accelerator.unwrap_model(model)

    def accumulate(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Context of one micro-batch; gradients are reduced and applied at every accumulation boundary."""
        if self._zero is not None:  # has its own way to leave a micro-batch unreduced, see `backward`
            return self.accelerator.accumulate()
        return self.accelerator.accumulate(model)

    def no_sync(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Context of training forwards whose results are thrown away: no backward follows, nothing is reduced."""
        return self.accelerator.no_sync(model)

    @property
    def sync_gradients(self) -> bool:
        """True in the micro-batch that ends an accumulation: clip, check and step only then."""
        return self.accelerator.sync_gradients

    def autocast(self) -> AbstractContextManager[Any]:
        return self.accelerator.autocast()

    def backward(self, loss: torch.Tensor) -> None:
        """Collective (gradient reduction)."""
        if self._zero is not None:
            self._zero.backward(loss, self.sync_gradients)
        else:
            self.accelerator.backward(loss)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Collective. Mean over ranks of gradients that were computed outside the wrapped forward."""
        for p in parameters if self.world_size > 1 else ():
            if p.grad is not None:
                dist.all_reduce(p.grad)
                p.grad /= self.world_size

    def clip_grad_norm(
        self, parameters: Iterable[nn.Parameter], max_norm: float, again: bool = False
    ) -> torch.Tensor:  # fmt: skip
        """Norm of all gradients before clipping, a scalar tensor on the device.

        again: other gradients of this step were clipped before, which took the scale of fp16 out of these, too.
        """
        if self._zero is not None:
            return self._zero.clip_grad_norm(parameters, max_norm)
        clip = nn.utils.clip_grad_norm_ if again and self.scaled else self.accelerator.clip_grad_norm_
        norm = clip(list(parameters), max_norm)
        assert norm is not None
        whole_norm: torch.Tensor = sharding.gathered(norm)
        return whole_norm

    @property
    def scaled(self) -> bool:
        """Losses are scaled for the half-precision gradients of fp16."""
        return self.accelerator.scaler is not None

    def overflowed(self, norm: torch.Tensor) -> torch.Tensor:
        """1.0 where a gradient norm, as `clip_grad_norm` gave it, is not finite and the scale of fp16 may be why: the
        coming step then changes nothing and lowers the scale. Else 0.0, also at a scale of 1 and below."""
        scaler = self.accelerator.scaler
        if scaler is None:
            return torch.zeros_like(norm)
        return ((scaler.scale(torch.ones_like(norm)) > 1) & ~norm.isfinite()).float()

    def precision_state(self) -> dict[str, Any]:
        """State of the gradient scaler of fp16 (empty for other precisions), for the checkpoint."""
        scaler = self.accelerator.scaler
        return {} if scaler is None else scaler.state_dict()

    def load_precision_state(self, state: dict[str, Any]) -> None:
        """Undoes `precision_state`; the precision must be the one it was saved with."""
        scaler = self.accelerator.scaler
        if (scaler is None) != (not state):
            raise ValueError("checkpoint: fp16 scaler state and training.mixed_precision do not fit together")
        if scaler is not None:
            scaler.load_state_dict(state)

    # --- agreement -------------------------------------------------------------------------------------------------

    def _reduce(self, values: list[float], op: dist.ReduceOp.RedOpType) -> list[float]:
        if self.world_size == 1:
            return values
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(tensor, op=op)
        return tensor.tolist()

    def total(self, vector: torch.Tensor) -> torch.Tensor:
        """Collective: sum over ranks of a tensor on the device; in one process the tensor itself."""
        if self.world_size > 1:
            vector = vector.clone()
            dist.all_reduce(vector, op=dist.ReduceOp.SUM)
        return vector

    def all_true(self, flag: bool) -> bool:
        """Collective: True when every rank says True."""
        return bool(self._reduce([float(flag)], dist.ReduceOp.MIN)[0])

    def any_rank(self, flag: bool) -> bool:
        """Collective: True when at least one rank says True."""
        return bool(self._reduce([float(flag)], dist.ReduceOp.MAX)[0])

    def mean(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Collective: mean over ranks of each entry, in float64; ranks with other keys raise RankMismatchError."""
        names = sorted(metrics)
        fingerprint = float(zlib.crc32("\n".join(names).encode()))
        low = self._reduce([fingerprint], dist.ReduceOp.MIN)[0]
        high = self._reduce([fingerprint], dist.ReduceOp.MAX)[0]
        if low != high:
            raise RankMismatchError(f"ranks report different metrics; rank {self.rank} has {names}")
        total = self._reduce([float(metrics[n]) for n in names], dist.ReduceOp.SUM)
        return {n: v / self.world_size for n, v in zip(names, total, strict=True)}

    def gather_objects(self, value: T) -> list[T]:
        """Collective: the (small, picklable) value of every rank, in rank order, on all ranks."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def broadcast_object(self, value: T, source: int = 0) -> T:
        """Collective: the value of rank `source` on all ranks."""
        if self.world_size == 1:
            return value
        holder: list[Any] = [value]
        dist.broadcast_object_list(holder, src=source)
        return holder[0]

    def barrier(self) -> None:
        """Collective."""
        if self.world_size > 1:
            dist.barrier()

    def assert_ranks_equal(self, module: nn.Module, what: str) -> None:
        """Collective: raises RankMismatchError on all ranks, naming the first differing rank and tensor."""
        if self.world_size == 1:
            return
        with self.whole():
            self._assert_ranks_equal(module, what)

    def _assert_ranks_equal(self, module: nn.Module, what: str) -> None:
        hashes = self.gather_objects(parameter_hash(module))
        other = next((r for r, h in enumerate(hashes) if h != hashes[0]), None)
        if other is None:
            return
        mine = [(n, str(t.dtype), tuple(t.shape), zlib.crc32(_tensor_bytes(t))) for n, t in _named_tensors(module)]
        tables = self.gather_objects(mine)
        # The tables differ because the hashes do; one may also be a prefix of the other.
        pairs = zip([*tables[0], ("end",)], [*tables[other], ("end",)], strict=False)
        name = next((a[0] for a, b in pairs if a != b), "end")
        raise RankMismatchError(f"{what}: rank {other} differs from rank 0, first at '{name}'")

    def seed_for(self, seed: int, *stream: int | str) -> int:
        """63-bit seed of a random stream of this rank."""
        return seed_for(seed, self.rank, *stream)
