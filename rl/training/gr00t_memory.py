"""What GR00T takes of a device's memory, part by part, before anything is allocated for training.

Every term is a sum over tensors that a run makes (rl.training.gr00t_activations has those of a pass). On a CPU, where
`return_freed_memory` gives freed tensors back, a process stays within it; its libraries come on top, on a GPU what its
caching allocator holds in reserve (10 to 20 %), and everywhere the simulator's own memory.
"""

import ctypes
import dataclasses
import math
from dataclasses import dataclass

import gymnasium as gym
import numpy as np
import torch
from torch import nn

from rl.algorithms.ppo_minibatches import minibatch_sizes
from rl.config import Config, Minibatches, OptimizerKind
from rl.data.free_memory import free_bytes
from rl.models import gr00t_backend, gr00t_real, gr00t_state
from rl.models.gr00t import GR00TActorCritic, trainable_of
from rl.models.gr00t_backend import part_of
from rl.training.gr00t_activations import Pass, half_copies, widest_product

GB = 1e9
REMEDY = (
    "lower ppo.minibatch_size or raise training.gradient_accumulation_steps (activations), lower num_envs (acting, "
    "rollout), train less (gr00t.stages, gr00t.lora_rank=16), or hold it in gr00t.dtype=bfloat16"
)
M_MMAP_THRESHOLD = -3  # of glibc's mallopt
GIVEN_BACK = 2 << 20  # bytes from which on a freed tensor goes back to the system


@dataclass
class Memory:
    """Bytes of one process. `parts`: name, parameters, of them trained at the end, bytes of weights."""

    parts: list[tuple[str, int, int, int]]
    gradients: int
    buckets: int  # in which several processes exchange gradients
    moments: int
    copy: int  # of what trains, to which an update returns that was not finite
    casts: int  # of what trains, in half precision, while a pass runs
    activations: int  # kept for the backward
    passing: int  # of one pass, on top of these
    rollout: int
    making: int  # on the host, while the weights are made; gone when training begins

    @property
    def weights(self) -> int:
        return sum(p[3] for p in self.parts)

    @property
    def update(self) -> int:
        """All but the weights."""
        held = self.gradients + self.buckets + self.moments + self.copy + self.rollout
        return held + self.casts + self.activations + self.passing

    @property
    def total(self) -> int:
        return self.weights + self.update

    def lines(self) -> list[str]:
        rows = [f"{'GR00T part':<12} {'parameters':>14} {'trained':>14} {'weights GB':>11}"]
        rows += [f"{n:<12} {count:>14,} {trained:>14,} {size / GB:>11.3f}" for n, count, trained, size in self.parts]
        buckets = f"exchanged {self.buckets / GB:.2f}, " if self.buckets else ""
        rows.append(
            f"memory of one process: weights {self.weights / GB:.2f} GB, gradients {self.gradients / GB:.2f}, {buckets}"
            f"Adam {self.moments / GB:.2f}, copy {self.copy / GB:.2f}, in half precision {self.casts / GB:.2f}, "
            f"activations {self.activations / GB:.2f}, passing {self.passing / GB:.2f}, rollout "
            f"{self.rollout / GB:.2f}, together {self.total / GB:.2f} GB; on the host while the weights are made "
            f"{self.making / GB:.2f} GB"
        )
        return rows

    def shortage(self, device: torch.device, processes: int = 1) -> str:
        """What `processes` on this machine lack before anything is made, and what helps; empty where nothing does.
        On a GPU every process has one of its own, while all make their weights on the host."""
        shared = processes if device.type == "cpu" else 1
        host, each = torch.device("cpu"), f" in {processes} processes" if processes > 1 else ""
        for what, needed, place in [
            ("to train", self.total * shared, device), ("while its weights are made", self.making * processes, host)
        ]:  # fmt: skip
            free = free_bytes(place)
            if needed > free:
                return f"GR00T needs {needed / GB:.2f} GB {what}{each}, and {free / GB:.2f} GB are free on {place}"
        return ""


def report(policy: GR00TActorCritic, cfg: Config, device: torch.device, processes: int = 1) -> Memory:
    """Of all stages, also those that have not begun. Works on the meta device: `device` is where the run will be."""
    model, g, ppo = policy.model, cfg.gr00t, cfg.ppo
    trained = {id(p) for stage in g.stages for p in trainable_of(model, stage, g)}
    parts: dict[str, list[int]] = {}
    for name, p in model.named_parameters():
        row = parts.setdefault(part_of(name), [0, 0, 0])
        row[0] += p.numel()
        row[1] += p.numel() if id(p) in trained else 0
        row[2] += p.numel() * p.element_size()
    heads: list[nn.Parameter] = [p for n, p in policy.named_parameters() if not n.startswith("model.")]
    count = sum(p.numel() for p in heads)
    parts["heads"] = [count, count, 4 * count]
    moving = 4 * sum(row[1] for row in parts.values())
    one = Pass(policy, cfg, device)
    rows = rows_of_an_update(cfg)
    kept, once = one.kept(g.stages)
    activations = rows * kept + once
    acting, shared = one.acting()
    # Fullest of: acting, the same pass at the beginning of an update, the beginning of its backward.
    most = max(max(ppo.num_envs, rows) * acting + shared, activations + rows * one.returning(g.stages))
    moments = 1 if ppo.optimizer is OptimizerKind.rmsprop else 2
    return Memory(
        parts=[(name, row[0], row[1], row[2]) for name, row in parts.items()],
        gradients=moving, buckets=moving if processes > 1 else 0, moments=moments * moving, copy=moving,
        casts=half_copies(policy, cfg, trained), activations=activations,
        passing=most - activations + widest_product(policy), rollout=rollout_bytes(policy, cfg),
        making=4 * sum(row[0] for row in parts.values()),
    )  # fmt: skip


def rows_of_an_update(cfg: Config) -> int:
    """Decisions that go through GR00T together when it learns: those of the largest micro-batch."""
    ppo, micro = cfg.ppo, max(cfg.training.gradient_accumulation_steps, 1)
    _, sizes = minibatch_sizes(ppo, ppo.n_steps, ppo.num_envs, micro)
    whole = ppo.n_steps if ppo.minibatches is Minibatches.by_environment else 1
    return math.ceil(max(sizes) * whole / micro)


def rollout_bytes(policy: GR00TActorCritic, cfg: Config) -> int:
    """Observations, decisions and their distributions of a rollout, of a minibatch, and of the step that waits."""
    ppo, space = cfg.ppo, policy.observation_space
    boxes = list(space.spaces.values()) if isinstance(space, gym.spaces.Dict) else [space]
    seen = sum(math.prod(box.shape or ()) * (1 if box.dtype == np.uint8 else 4) for box in boxes)
    decision = 4 * (policy.layout.width + policy.layout.dims + 1)
    rows = ppo.n_steps * ppo.num_envs
    drawn = rows if ppo.minibatches in (Minibatches.one_permutation, Minibatches.contiguous) else 0
    minibatch = max(drawn, rows_of_an_update(cfg) * max(cfg.training.gradient_accumulation_steps, 1))
    return (rows + minibatch) * (seen + decision) + 2 * ppo.num_envs * seen


def return_freed_memory() -> None:
    """Freed tensors of some size go back to the system at once, where the C library is glibc.

    Else its heap takes blocks of up to 32 MB after the first ones were freed, and what small blocks leave of it between
    them is lost: a fifth more than the tensors of an update of GR00T.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, GIVEN_BACK)


# --- before a run -----------------------------------------------------------------------------------------------------


def planned_robot() -> tuple[gym.spaces.Dict, gym.spaces.Box]:
    """Of the measurement, and of plans for a task whose spaces are known once its simulator runs only: observations of
    32 numbers and one camera of 256 x 256 px, 7 actions."""
    numbers, camera = gym.spaces.Box(-1, 1, (32,), np.float32), gym.spaces.Box(0, 255, (3, 256, 256), np.uint8)
    return gym.spaces.Dict({"state": numbers, "camera": camera}), gym.spaces.Box(-1, 1, (7,), np.float32)


def planned(
    cfg: Config, device: torch.device, spaces: tuple[gym.Space, gym.Space], processes: int = 1
) -> Memory:  # fmt: skip
    """Of weights of `gr00t.size`, of a checkpoint those of N1.7, laid out on the meta device, for `spaces` (of the
    observation, of the action). Raises ValueError for spaces that do not fit."""
    unnamed = dataclasses.replace(cfg.gr00t, action_names=None)  # names are those of a checkpoint's robot
    with torch.device("meta"):
        model = gr00t_backend.stub("n1.7" if cfg.gr00t.checkpoint is not None else cfg.gr00t.size)
        told = None if cfg.gr00t.state_names is None else gr00t_state.unread()
        policy = GR00TActorCritic(model, *spaces, unnamed, state_map=told)
    return report(policy, cfg, device, processes)


def require(cfg: Config, spaces: tuple[gym.Space, gym.Space], device: torch.device, processes: int, here: int) -> None:
    """Of a run of `processes`, of them `here` on this machine, before its weights are made. Raises ValueError with the
    remedy where they do not fit; says nothing of a backend that is not installed."""
    if cfg.gr00t.backend != "stub":
        try:
            gr00t_real.require(cfg.gr00t.backend)
        except gr00t_real.BackendMissingError:
            return
    lacking = planned(cfg, device, spaces, processes).shortage(device, here)
    if lacking:
        raise ValueError(f"{lacking}; {REMEDY}")
