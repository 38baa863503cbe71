"""PPO and A2C as a phase of the training loop, over any vector environment."""

import resource
import time
from typing import Any, cast

import torch
from torch import nn

from rl.algorithms.ppo import PPO, Parallel, SingleProcess
from rl.algorithms.ppo_rollout import Batch, RolloutActor
from rl.config import Config, MixedPrecision
from rl.envs.vector import VectorEnv
from rl.models.action_map import DeterministicPolicy
from rl.models.distributions import Gaussian
from rl.models.gr00t import GR00TActorCritic
from rl.training.checkpoint import CheckpointState, LoadedCheckpoint
from rl.training.errors import NumericalError
from rl.training.gr00t_training import Stages, check_base, make_policy, make_policy_optimizer, noted_base
from rl.training.parallel_utils import ParallelContext
from rl.training.seeds import seed_for
from rl.training.vector_phase import VectorPhase
from rl.types import TensorTree


class OnPolicyPhase(VectorPhase):
    """One iteration is a rollout of `ppo.n_steps` in every environment and one PPO update on it."""

    updates_per_iteration = 1
    greedy: DeterministicPolicy

    def __init__(
        self, cfg: Config, env: VectorEnv, ctx: ParallelContext, total: int, unit: str = "step", name: str = "ppo"
    ) -> None:
        """Collective. `total` units (environment steps over all ranks, or iterations) are what schedules anneal over.

        Raises ValueError for spaces, bounds or settings that do not go together.
        """
        ppo, seed = cfg.ppo, cfg.training.seed
        if ppo.compile and ctx.world_size > 1:
            raise ValueError("ppo.compile works in one process only; set it to false for several")
        super().__init__(env, ctx, seed, total, unit, name)
        self.cfg = cfg
        self.units_per_iteration = ppo.n_steps * env.num_envs * ctx.world_size if unit == "step" else 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_for(seed, 0, "policy"))  # the same on every rank
            policy = make_policy(cfg, env)
        self.policy = self.networks = policy.to(ctx.device)
        generator = torch.Generator(ctx.device).manual_seed(seed_for(seed, ctx.rank, name))
        self.actor = RolloutActor(
            ppo, policy, env.observation_space, env.action_space, env.num_envs, ctx.device, generator
        )
        micro, precision = cfg.training.gradient_accumulation_steps, cfg.training.mixed_precision
        parallel: Parallel = ctx
        wrapped, optimizer = cast(nn.Module, policy), make_policy_optimizer(cfg, policy)
        if ctx.world_size == 1 and micro == 1 and precision is MixedPrecision.no:
            # Accelerate would change nothing, and looks for packages at every step: a tenth of a small update.
            parallel = SingleProcess()
        else:
            wrapped, optimizer = ctx.prepare(policy, optimizer)
        self.ppo = PPO(ppo, policy, wrapped, optimizer, parallel, generator, micro)
        self.stages: Stages | None = None
        if isinstance(policy, GR00TActorCritic):
            self.stages = Stages(cfg, policy, optimizer, ctx.world_size)
        self.greedy = DeterministicPolicy(policy, self.actor.observation_norm, self.actor.action_map)
        self._batch: Batch | None = None
        self._begin()

    # --- one iteration ---------------------------------------------------------------------------------------------

    def collect(self, step: int) -> dict[str, float]:
        start = time.monotonic()
        for _ in range(self.cfg.ppo.n_steps):
            result = self.env.step(self.actor.act(self.ppo.parallel.autocast()))
            self.actor.record(result)
            self.statistics.add(result)
        self._batch = self.actor.finish(self.ctx.total, self.ppo.parallel.autocast())
        return self._numbers(start)

    def _start(self, observation: TensorTree) -> None:
        self.actor.start(observation)

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

    # --- checkpoints -----------------------------------------------------------------------------------------------

    def checkpoint(self) -> CheckpointState:
        state = CheckpointState(
            model=self.policy.state_dict(),
            training={"ppo": self.ppo.state_dict(), "statistics": self.actor.statistics(), "algorithm": self.name},
            per_rank={"actor": self.actor.state_dict(), "episodes": self.statistics.state_dict()},
        )
        if self.stages is not None:
            state.training["gr00t"] = self.stages.state_dict()
        return self._with_environments(state)

    def restore(self, saved: LoadedCheckpoint) -> None:
        """Raises ValueError for a checkpoint of another algorithm, architecture or GR00T's base."""
        check_base(self.policy, noted_base(saved.training), str(saved.saved.path))
        self._restore_networks(saved)
        if self.stages is not None:
            self.stages.load_state_dict(saved.training["gr00t"])
        self.ppo.load_state_dict(saved.training["ppo"])
        self.actor.load_statistics(saved.training["statistics"])
        if saved.per_rank is None:
            self.restart(saved.step)
            return
        self.actor.load_state_dict(saved.per_rank["actor"])
        self.statistics.load_state_dict(saved.per_rank["episodes"])
        if self.resumable:
            self.actor.resume(self.env.load_state_dict(saved.rank_file("environments")))

    def last_batch(self) -> dict[str, Any]:
        last = self.ppo.last
        return {} if last is None else {k: v for k, v in last._asdict().items() if v is not None}
