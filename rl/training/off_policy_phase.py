"""Learning from replay, with SAC, FastSAC or the diffusion policy, as a phase of the training loop.

Letters: E environments, A action dims.
"""

import logging
import time
from typing import Any, Protocol

import gymnasium as gym
import torch
from torch import Tensor, nn

from rl.algorithms.diffusion import DiffusionPolicy
from rl.algorithms.sac import SAC
from rl.config import Config, MixedPrecision, OffPolicyConfig, ReplayDtype, Warmup
from rl.data.free_memory import require_memory
from rl.data.replay import Replay, ReplayBatch
from rl.data.replay_layout import as_dict, layout_of, replay_bytes
from rl.envs.vector import VectorEnv
from rl.models.actor_critic import is_privileged
from rl.models.bounded_actions import BoundedActions
from rl.training.checkpoint import CheckpointState, LoadedCheckpoint
from rl.training.errors import NumericalError
from rl.training.parallel_utils import ParallelContext
from rl.training.seeds import seed_for
from rl.training.vector_phase import VectorPhase
from rl.types import TensorTree

log = logging.getLogger(__name__)


class Learner(Protocol):
    """What is trained; `rl.algorithms.sac.SAC` is one. Actions are in [-1, 1]."""

    generator: torch.Generator | None

    @property
    def networks(self) -> nn.Module:
        """Everything a checkpoint of the policy holds; its forward is the deterministic policy."""
        ...

    def act(self, observation: TensorTree, deterministic: bool = False) -> Tensor: ...
    def observe(self, observation: TensorTree, valid: Tensor | None = None) -> None: ...
    def set_progress(self, share: float) -> dict[str, float]: ...
    def update(self, batch: ReplayBatch) -> dict[str, Tensor]: ...
    def advice(self, metrics: dict[str, float]) -> str | None: ...
    def share_statistics(self) -> None: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any]) -> None: ...


ALGORITHMS = {"sac": "sac", "fastsac": "sac", "dit": "diffusion"}  # name -> block of the configuration


class GreedyPolicy(nn.Module):
    """Raw observations (B, ...) -> the best actions (B, A) for the environment; for evaluation, play and export."""

    def __init__(self, networks: nn.Module, actions: BoundedActions) -> None:
        super().__init__()
        self.networks, self.actions = networks, actions

    def begin(self, ended: Tensor | None = None) -> None:
        """Nothing to forget between episodes."""

    def forward(self, observation: TensorTree) -> Tensor:
        return self.actions.to_environment(self.networks(observation))


class OffPolicyPhase(VectorPhase):
    """One iteration is `vector_steps` steps of every environment, and their gradient steps once learning has begun."""

    greedy: GreedyPolicy

    def __init__(
        self, cfg: Config, env: VectorEnv, ctx: ParallelContext, total: int, unit: str = "step", name: str = "sac",
        frame_stack: int = 1,
    ) -> None:  # fmt: skip
        """`total` units (environment steps over all ranks, or iterations) are what schedules fall over.

        `name` is a key of ALGORITHMS, `frame_stack` how many frames a picture of the observation consists of. Raises
        ValueError for spaces, bounds or settings that do not go together and for a replay that does not fit.
        """
        if name not in ALGORITHMS:
            raise ValueError(f"algorithm '{name}' does not learn from replay; there are {', '.join(ALGORITHMS)}")
        self.settings: OffPolicyConfig = cfg.sac if ALGORITHMS[name] == "sac" else cfg.diffusion
        super().__init__(env, ctx, cfg.training.seed, total, unit, name)
        self.block = ALGORITHMS[name]
        self.actions = bounded_actions(self.block, name, self.settings, env).to(ctx.device)
        self.learner = self._make_learner(cfg)
        self.replay = make_replay(self.block, self.settings, env, self.actions.dim, ctx, frame_stack)
        steps = self.settings.vector_steps * env.num_envs * ctx.world_size
        self.units_per_iteration = steps if unit == "step" else 1
        self.networks = self.learner.networks
        self.greedy = GreedyPolicy(self.networks, self.actions)
        self._advised = False
        self._last: ReplayBatch | None = None
        self._begin()

    def _make_learner(self, cfg: Config) -> Learner:
        ctx, precision = self.ctx, cfg.training.mixed_precision
        if precision is MixedPrecision.fp16:
            raise ValueError(f"training.mixed_precision fp16: {self.name} has bf16 or no")
        if self.settings.batch_size % ctx.world_size:
            raise ValueError(
                f"{self.block}.batch_size {self.settings.batch_size} is not a multiple of {ctx.world_size} processes"
            )
        common: dict[str, Any] = {
            "device": ctx.device,
            "generator": torch.Generator(ctx.device).manual_seed(seed_for(self.seed, ctx.rank, self.name)),
            "autocast": torch.bfloat16 if self.settings.amp or precision is MixedPrecision.bf16 else None,
            "total": ctx.total,
            "world_size": ctx.world_size,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(self.seed, 0, "policy"))  # the same on every rank
            space, dim = self.env.observation_space, self.actions.dim
            if isinstance(space, gym.spaces.Dict) and any(map(is_privileged, space.spaces)):
                raise ValueError(f"{self.name.upper()} shows actor and critic the same, this task does not; use PPO")
            if self.block == "sac":
                return SAC(cfg.sac, space, dim, **common)
            return DiffusionPolicy(cfg.diffusion, space, dim, **common)

    # --- collecting ------------------------------------------------------------------------------------------------

    def _seen(self) -> int:
        """Environment steps in the replay so far, over all ranks."""
        return self.replay.steps * self.env.num_envs * self.ctx.world_size

    @property
    def updates_per_iteration(self) -> int:
        """One round of gradient steps, none before the replay has seen `learning_starts` steps."""
        return int(self._seen() >= self.settings.learning_starts and self.settings.updates_per_step > 0)

    def collect(self, step: int) -> dict[str, float]:
        start, finished = time.monotonic(), self.statistics.episodes
        finite = torch.ones((), device=self.ctx.device)
        for _ in range(self.settings.vector_steps):
            action = self._explore()
            result = self.env.step(self.actions.to_environment(action))
            self.replay.add(action, result)
            self.learner.observe(result.observation)
            self.statistics.add(result)
            finite *= all_finite(result.reward) * all_finite(result.observation)
            self.observation = result.observation
        self.learner.share_statistics()
        line = self._numbers(start, finite=float(finite))
        self._report(finished)
        if line.pop("finite") < 1:  # in a replay it would outlive this run in every checkpoint
            raise NumericalError(f"{self.name}: an environment gave a reward or an observation that is not finite")
        return line

    def _explore(self) -> Tensor:
        """Actions (E, A) in [-1, 1]."""
        if self._seen() < self.settings.learning_starts and self.settings.warmup is Warmup.random:
            shape = (self.env.num_envs, self.actions.dim)
            return 2 * torch.rand(shape, generator=self.learner.generator, device=self.ctx.device) - 1
        return self.learner.act(self.observation)

    def _start(self, observation: TensorTree) -> None:
        self.observation = observation
        self.replay.begin(observation)

    def _report(self, finished: int) -> None:
        every, now = self.settings.report_episodes, self.statistics.episodes
        if every and now // every > finished // every:
            last = list(self.statistics.returns)[-10:]
            log.info("episode %d: average of the last %d returns %.2f", now, len(last), sum(last) / len(last))

    # --- learning --------------------------------------------------------------------------------------------------

    def update(self, progress: float) -> dict[str, float]:
        """The gradient steps for the vector steps just collected; metrics are means over them."""
        start = time.monotonic()
        rates = self.learner.set_progress(progress / self.total)
        rows = self.settings.batch_size // self.ctx.world_size
        count = self.settings.updates_per_step * self.settings.vector_steps
        sums: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for _ in range(count):
            self._last = self.replay.sample(rows, self.learner.generator)
            for key, value in self.learner.update(self._last).items():
                sums[key] = sums[key] + value if key in sums else value
                counts[key] = counts.get(key, 0) + 1
        values = torch.stack([v.float() for v in sums.values()]).tolist()  # the only wait for the device
        numbers = self.ctx.mean({k: v / counts[k] for k, v in zip(sums, values, strict=True)})
        if numbers.pop("finite") < 1:
            raise NumericalError(
                f"{self.name}: a gradient is not finite, its step was left out. Lower {self.block}.critic_lr or look "
                "at the rewards, and continue from the last checkpoint with --auto_resume"
            )
        if not self._advised and (advice := self.learner.advice(numbers)):
            log.warning("%s", advice)
            self._advised = True
        shown = {"learning_rate": rates["actor"]} | {f"learning_rate_{name}": rate for name, rate in rates.items()}
        return {**numbers, **shown, "updates_per_s": count / (time.monotonic() - start)}

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def checkpoint(self) -> CheckpointState:
        assert self.learner.generator is not None
        state = CheckpointState(
            model=self.networks.state_dict(),
            training={"learner": self.learner.state_dict(), "algorithm": self.name},
            per_rank={"episodes": self.statistics.state_dict(), "generator": self.learner.generator.get_state()},
            rank_files={"replay": self.replay.state_dict()},
        )
        return self._with_environments(state)

    def restore(self, saved: LoadedCheckpoint) -> None:
        """Raises ValueError for a checkpoint of another algorithm or architecture.

        With another number of processes the replay starts empty and is filled before learning goes on.
        """
        self._restore_networks(saved)
        self.learner.load_state_dict(saved.training["learner"])
        if saved.per_rank is None:
            log.warning("the replay of %s is of another number of processes: it starts empty", saved.saved.path.name)
            return
        assert self.learner.generator is not None
        self.replay.load_state_dict(saved.rank_file("replay"))
        self.statistics.load_state_dict(saved.per_rank["episodes"])
        self.learner.generator.set_state(saved.per_rank["generator"])
        if self.resumable:
            self.observation = self.env.load_state_dict(saved.rank_file("environments"))

    def last_batch(self) -> dict[str, Any]:
        return {} if self._last is None else vars(self._last)


def all_finite(tree: TensorTree) -> Tensor:
    """1.0 when every number is one, else 0.0; on the device, without waiting for it."""
    parts = [t for t in as_dict(tree).values() if t.is_floating_point()]
    return torch.stack([t.isfinite().all() for t in parts]).all().float() if parts else torch.ones(())


def bounded_actions(block: str, name: str, cfg: OffPolicyConfig, env: VectorEnv) -> BoundedActions:
    """Raises ValueError for discrete actions and for bounds that are missing."""
    return BoundedActions.of(env.action_space, cfg.action_low, cfg.action_high, name.upper(), block)


def make_replay(
    block: str, cfg: OffPolicyConfig, env: VectorEnv, action_dim: int, ctx: ParallelContext, frame_stack: int
) -> Replay:
    """The share of one process of `buffer_size`; its memory is logged, and refused when it is not there."""
    stored = torch.bfloat16 if cfg.replay_dtype is ReplayDtype.bfloat16 else torch.float32
    layout = layout_of(env.observation_space, stored, frame_stack)
    slots = -(-cfg.buffer_size // (env.num_envs * ctx.world_size)) + frame_stack
    what = f"{block}: replay of {cfg.buffer_size} transitions ({slots} slots for each of {env.num_envs} environments)"
    needed = replay_bytes(layout, action_dim, slots, env.num_envs)
    sharing = 1 if env.device.type == "cuda" else ctx.local_world_size  # every process has a GPU of its own
    require_memory(needed, env.device, what, f"{block}.buffer_size", sharing)
    return Replay(layout, action_dim, env.num_envs, slots, env.device, cfg.gamma, cfg.n_step)
