"""The Euler loop of a policy that acts: step by step, compiled, or replayed as one CUDA graph.

At batch 1 the loop is launches, not arithmetic (about 15 kernels a layer and step), which a graph or a compiler saves.
Letters: B batch, Q actions of a chunk, A padded action dims, S padded state dims.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from f1_vla.acting import Denoised, HasCache, SuffixPlan, euler, plan_suffix, velocity
from f1_vla.config import DenoiseMode
from f1_vla.trunk import KVCache

if TYPE_CHECKING:
    from f1_vla.policy import F1Policy

Run = Callable[[Tensor, Tensor], Denoised]  # noise (B, Q, A), state (B, S)
Capture = Callable[[Callable[[], Denoised]], tuple[Denoised, Callable[[], None]]]


def cuda_capture(run: Callable[[], Denoised]) -> tuple[Denoised, Callable[[], None]]:
    """(outputs, replay) of a CUDA graph of `run`, which reads and writes the same memory at every replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):  # what is chosen or compiled at the first call must not be captured
            run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return outputs, graph.replay


@dataclass
class _Shape:
    """What is kept for calls of one shape: memory of keys and values, the plan, and what was made for them."""

    room: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    plan: SuffixPlan | None = None
    steps: int = 0
    run: Run | None = None


class Denoiser:
    """Prepares the loop once for each shape of call; without gradients only.

    Keys and values of a shape live in the same memory from call to call, so the cache in the result of an earlier call
    is overwritten. One validity pattern of the prefix is kept a shape: another one (a longer instruction, a camera that
    comes or goes) is prepared anew.
    """

    def __init__(
        self, policy: F1Policy, mode: DenoiseMode, compiler: str = "inductor", capture: Capture = cuda_capture
    ) -> None:
        """compiler: backend of torch.compile. ValueError: a CUDA graph is asked for off CUDA."""
        if mode is DenoiseMode.cuda_graph and policy.device.type != "cuda" and capture is cuda_capture:
            raise ValueError(
                f"denoise_mode=cuda_graph needs a CUDA device, the policy is on {policy.device}; use eager or compile"
            )
        self.policy, self.mode, self.compiler, self.capture = policy, mode, compiler, capture
        self.prepared = 0  # how often something was compiled or captured
        self._shapes: dict[tuple[Any, ...], _Shape] = {}

    def reserve(self, batch: int, capacity: int, device: torch.device) -> KVCache:
        """An empty cache, in the memory of its shape unless steps are eager."""
        if self.mode is DenoiseMode.eager:
            return KVCache.reserve(batch, capacity, device)
        return KVCache.reserve(batch, capacity, device, self._shape(batch, capacity).room)

    def _shape(self, batch: int, capacity: int) -> _Shape:
        kind = self.policy.device.type
        precision = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return self._shapes.setdefault((batch, capacity, precision), _Shape())

    def __call__(self, cached: HasCache, noise_BQA: Tensor, state_BS: Tensor, steps: int) -> Denoised:
        """What `acting.euler` gives."""
        plan = plan_suffix(self.policy, cached, noise_BQA.shape[1])
        if self.mode is DenoiseMode.eager or torch.is_grad_enabled():
            return euler(self._step(cached, plan, state_BS), noise_BQA, steps)
        shape = self._shape(len(noise_BQA), cached.cache.capacity)
        if shape.run is None or shape.steps != steps or not _same(shape.plan, plan):
            self.prepared += 1
            shape.plan, shape.steps = plan, steps
            self._step(cached, plan, state_BS)(noise_BQA, torch.ones(len(noise_BQA), device=noise_BQA.device))
            if self.mode is DenoiseMode.compile:
                shape.run = self._compiled(cached, plan, steps)
            else:
                shape.run = self._captured(cached, plan, noise_BQA.clone(), state_BS.clone(), steps)
        return shape.run(noise_BQA, state_BS)

    def _step(self, cached: HasCache, plan: SuffixPlan, state: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda x, time: velocity(self.policy, cached, state, x, time, plan)

    def _compiled(self, cached: HasCache, plan: SuffixPlan, steps: int) -> Run:
        def one(state: Tensor, x: Tensor, time: Tensor) -> Tensor:
            return velocity(self.policy, cached, state, x, time, plan)

        # Not as one full graph: the fa4 backend ends a graph at every attention.
        step = torch.compile(one, backend=self.compiler, dynamic=False)
        return lambda noise, state: euler(lambda x, time: step(state, x, time), noise, steps)

    def _captured(self, cached: HasCache, plan: SuffixPlan, noise: Tensor, state: Tensor, steps: int) -> Run:
        kind = self.policy.device.type
        precision, on = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)

        def body() -> Denoised:
            # Without autocast's cache of converted weights, which would be freed behind the graph's back.
            with torch.autocast(kind, dtype=precision, enabled=on, cache_enabled=False):
                return euler(self._step(cached, plan, state), noise, steps)

        outputs, replay = self.capture(body)

        def run(new_noise: Tensor, new_state: Tensor) -> Denoised:
            noise.copy_(new_noise)
            state.copy_(new_state)
            replay()
            return Denoised(*(t.clone() for t in outputs))

        return run


def _same(old: SuffixPlan | None, new: SuffixPlan) -> bool:
    """Whether both plans see the same tokens at the same positions. Waits for the device."""
    pairs = () if old is None else ((old.mask.k_valid, new.mask.k_valid), (old.mask.k_block, new.mask.k_block))
    return old is not None and all(a.shape == b.shape and bool(torch.equal(a, b)) for a, b in pairs)
