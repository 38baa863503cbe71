"""PPO and A2C as a phase of the training loop, over any vector environment."""

import resource
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rl.algorithms.ppo import PPO
from rl.algorithms.ppo_rollout import Batch, RolloutActor
from rl.config import Config
from rl.data.episode_statistics import EpisodeStatistics
from rl.envs.vector import VectorEnv
from rl.models.action_map import DeterministicPolicy
from rl.models.distributions import Gaussian
from rl.models.gr00t import GR00TActorCritic
from rl.training.checkpoint import CheckpointState, LoadedCheckpoint, load_strict
from rl.training.errors import NumericalError
from rl.training.gr00t_training import Stages, make_policy, make_policy_optimizer
from rl.training.parallel_utils import ParallelContext
from rl.training.seeds import seed_for
from rl.types import TensorTree


class OnPolicyPhase:
    """One iteration is a rollout of `ppo.n_steps` in every environment and one PPO update on it."""

    updates_per_iteration = 1

    def __init__(
        self, cfg: Config, env: VectorEnv, ctx: ParallelContext, total: int, unit: str = "step", name: str = "ppo"
    ) -> None:
        """Collective. `total` units (environment steps over all ranks, or iterations) are what schedules anneal over.

        Raises ValueError for spaces, bounds or settings that do not go together.
        """
        ppo, seed = cfg.ppo, cfg.training.seed
        if ppo.compile and ctx.world_size > 1:
            raise ValueError("ppo.compile works in one process only; set it to false for several")
        self.cfg, self.env, self.ctx, self.total, self.unit, self.name = cfg, env, ctx, total, unit, name
        self.units_per_iteration = ppo.n_steps * env.num_envs * ctx.world_size if unit == "step" else 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(seed, 0, "policy"))  # the same on every rank
            policy = make_policy(cfg, env)
        self.policy = policy.to(ctx.device)
        generator = torch.Generator(ctx.device).manual_seed(seed_for(seed, ctx.rank, name))
        self.actor = RolloutActor(
            ppo, policy, env.observation_space, env.action_space, env.num_envs, ctx.device, generator
        )
        wrapped, optimizer = ctx.prepare(policy, make_policy_optimizer(cfg, policy))
        micro = cfg.training.gradient_accumulation_steps
        self.ppo = PPO(ppo, policy, wrapped, optimizer, ctx, generator, micro)
        self.stages: Stages | None = None
        if isinstance(policy, GR00TActorCritic):
            self.stages = Stages(cfg, policy, optimizer, ctx.world_size)
        self.greedy = DeterministicPolicy(policy, self.actor.observation_norm, self.actor.action_map)
        self.statistics = EpisodeStatistics(env.num_envs, ctx.device)
        self._batch: Batch | None = None
        self.restart(0)
        self._resumable = self._environment_state() is not None

    # --- one iteration ---------------------------------------------------------------------------------------------

    def collect(self, step: int) -> dict[str, float]:
        start = time.monotonic()
        for _ in range(self.cfg.ppo.n_steps):
            result = self.env.step(self.actor.act(self.ctx.autocast()))
            self.actor.record(result)
            self.statistics.add(result)
        self._batch = self.actor.finish(self.ctx.total, self.ctx.autocast())
        steps = self.statistics.flush()
        line = {**self.statistics.means(), **self.statistics.losses(), "env_steps": float(steps)}
        line["env_steps_per_s"] = steps / (time.monotonic() - start)
        line = self.ctx.mean(line)
        for sums in {"env_steps", "env_steps_per_s", "environment_failures"} & line.keys():
            line[sums] *= self.ctx.world_size
        line["env_steps"] = round(line["env_steps"])
        return line

    def update(self, progress: float) -> dict[str, float]:
        start = time.monotonic()
        assert self._batch is not None
        if self.stages is not None:
            self._batch = self.stages.advance(progress / self.total, self._batch)
        try:
            line = self.ppo.update(self._batch, progress / self.total)
        except FloatingPointError as e:
            raise NumericalError(
                f"{self.name} update after {progress:.0f} {self.unit}s: {e}; parameters are as before it. Lower "
                "ppo.learning_rate or ppo.max_grad_norm and continue from the last checkpoint with --auto_resume"
            ) from e
        self.actor.end_update(self.ctx.total)
        self._batch = None
        if isinstance(self.policy.distribution, Gaussian):
            line["action_std"] = float(self.policy.distribution.scale().mean())
        line["memory_gb"] = self._memory_gb()
        line["update_seconds"] = time.monotonic() - start
        return self.ctx.mean(line)

    def _memory_gb(self) -> float:
        """Most in use so far: of this process's GPU memory, or of the process on CPU."""
        if self.ctx.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.ctx.device) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    @torch.no_grad()
    def act(self, observation: TensorTree) -> Tensor:
        """Deterministic actions for raw observations (B, ...); `greedy.begin` tells an LSTM of new episodes."""
        actions: Tensor = self.greedy(observation)
        return actions

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def boundary(self, step: int) -> None:
        """Environments that cannot be saved begin afresh here, in the uninterrupted run, too."""
        if not self._resumable:
            self.restart(step)
        self.ctx.assert_ranks_equal(self.policy, f"parameters at {self.unit} {step}")

    def media(self, run_dir: Path, step: int, last: bool) -> None:
        """Videos belong to the play command."""

    def checkpoint(self) -> CheckpointState:
        state = CheckpointState(
            model=self.policy.state_dict(),
            training={"ppo": self.ppo.state_dict(), "statistics": self.actor.statistics(), "algorithm": self.name},
            per_rank={"actor": self.actor.state_dict(), "episodes": self.statistics.state_dict()},
        )
        if self.stages is not None:
            state.training["gr00t"] = self.stages.state_dict()
        if self._resumable:
            state.rank_files["environments"] = self._environment_state()
        return state

    def restore(self, saved: LoadedCheckpoint) -> None:
        """Raises ValueError for a checkpoint of another algorithm or architecture."""
        algorithm = saved.training.get("algorithm")
        if algorithm != self.name:
            raise ValueError(
                f"{saved.saved.path} is a checkpoint of {algorithm or 'another program'}, not of {self.name}"
            )
        load_strict(self.policy, saved.model, saved.saved.path)
        if self.stages is not None:
            self.stages.load_state_dict(saved.training["gr00t"])
        self.ppo.load_state_dict(saved.training["ppo"])
        self.actor.load_statistics(saved.training["statistics"])
        if saved.per_rank is None:
            self.restart(saved.step)
            return
        self.actor.load_state_dict(saved.per_rank["actor"])
        self.statistics.load_state_dict(saved.per_rank["episodes"])
        if self._resumable:
            self.actor.resume(self.env.load_state_dict(saved.rank_file("environments")))

    def last_batch(self) -> dict[str, Any]:
        last = self.ppo.last
        return {} if last is None else {k: v for k, v in last._asdict().items() if v is not None}

    def close(self) -> None:
        self.env.close()

    def restart(self, step: int) -> None:
        """All environments begin afresh; the episodes that follow are a function of (seed, rank, step)."""
        seed = seed_for(self.cfg.training.seed, self.ctx.rank, "episodes", step) >> 32
        self.actor.start(self.env.reset(seed))
        self.statistics.begin()

    def _environment_state(self) -> dict[str, Any] | None:
        """None for environments that cannot be saved."""
        try:
            return self.env.state_dict()
        except ValueError:
            return None
