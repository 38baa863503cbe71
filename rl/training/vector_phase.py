"""What phases over a vector environment share, on-policy or off: restarts, numbers of a collection, resuming."""

import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rl.data.episode_statistics import EpisodeStatistics
from rl.envs.vector import VectorEnv
from rl.training.checkpoint import CheckpointState, LoadedCheckpoint, load_strict
from rl.training.parallel_utils import ParallelContext
from rl.training.seeds import seed_for
from rl.types import TensorTree


class Greedy(Protocol):
    """The deterministic policy: raw observations (B, ...) -> actions for the environment."""

    def begin(self, ended: Tensor | None = None) -> None: ...
    def __call__(self, observation: TensorTree) -> Tensor: ...


class VectorPhase(ABC):
    """A subclass adds how it collects, learns and saves, and sets `networks` and `greedy` before `_begin`."""

    networks: nn.Module  # equal on all ranks; what the model file of a checkpoint holds
    greedy: Greedy

    def __init__(self, env: VectorEnv, ctx: ParallelContext, seed: int, total: int, unit: str, name: str) -> None:
        """`total` units are what schedules go over; `name` is written into checkpoints."""
        self.env, self.ctx, self.seed = env, ctx, seed
        self.total, self.unit, self.name = total, unit, name
        self.statistics = EpisodeStatistics(env.num_envs)

    def _begin(self) -> None:
        self.restart(0)
        self.resumable = self._environment_state() is not None

    def restart(self, step: int) -> None:
        """All environments begin afresh; the episodes that follow are a function of (seed, rank, step)."""
        self._start(self.env.reset(seed_for(self.seed, self.ctx.rank, "episodes", step) >> 32))
        self.statistics.begin()

    @abstractmethod
    def _start(self, observation: TensorTree) -> None:
        """New episodes begin everywhere with these observations (E, ...)."""

    def _numbers(self, start: float, **more: float) -> dict[str, float]:
        """Collective. Of the collection begun at `start` (time.monotonic), with `more` of it, means over ranks."""
        before = self.statistics.episodes
        steps = self.statistics.flush()
        line = {**self.statistics.means(), **self.statistics.losses(), "env_steps": float(steps), **more}
        line["episodes"] = float(self.statistics.episodes - before)
        line["env_steps_per_s"] = steps / (time.monotonic() - start)
        line = self.ctx.mean(line)
        for sums in {"env_steps", "env_steps_per_s", "environment_failures", "episodes"} & line.keys():
            line[sums] *= self.ctx.world_size
        for count in ("env_steps", "episodes"):
            line[count] = round(line[count])
        return line

    @torch.no_grad()
    def act(self, observation: TensorTree) -> Tensor:
        """Deterministic actions for raw observations (B, ...); `greedy.begin` tells an LSTM of new episodes."""
        return self.greedy(observation)

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def boundary(self, step: int) -> None:
        """Environments that cannot be saved begin afresh here, in the uninterrupted run, too."""
        if not self.resumable:
            self.restart(step)
        self.ctx.assert_ranks_equal(self.networks, f"parameters at {self.unit} {step}")

    def media(self, run_dir: Path, step: int, last: bool) -> None:  # noqa: B027
        """Videos belong to the play command."""

    def _with_environments(self, state: CheckpointState) -> CheckpointState:
        if self.resumable:
            state.rank_files["environments"] = self._environment_state()
        return state

    def _restore_networks(self, saved: LoadedCheckpoint) -> None:
        """Raises ValueError for a checkpoint of another algorithm or architecture."""
        algorithm = saved.training.get("algorithm")
        if algorithm != self.name:
            raise ValueError(
                f"{saved.saved.path} is a checkpoint of {algorithm or 'another program'}, not of {self.name}"
            )
        load_strict(self.networks, saved.model, saved.saved.path)

    def _environment_state(self) -> dict[str, Any] | None:
        """None for environments that cannot be saved."""
        try:
            return self.env.state_dict()
        except ValueError:
            return None

    def close(self) -> None:
        self.env.close()
