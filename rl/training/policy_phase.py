"""A phase that also evaluates: the deterministic policy at intervals, and its best state kept.

Counts environment steps (`train.sh arm`) or iterations (`train.sh rl`) around a phase that counts steps.
"""

import logging
import math
import resource
import time
from pathlib import Path
from typing import Any, cast

import torch

from rl import config as rl_config
from rl.config import Config
from rl.envs import registry
from rl.envs.vector import VectorEnv
from rl.sims.isaaclab import IsaacLabEnv
from rl.training import policies
from rl.training.checkpoint import CheckpointState, LoadedCheckpoint, save_plain
from rl.training.parallel_utils import ParallelContext
from rl.training.policies import AlgorithmPhase
from rl.training.policy_evaluation import Evaluation, evaluate

log = logging.getLogger(__name__)
MAX_EVAL_ENVS = {"VisionArmReach-v1": 10, "ArmReachPhysics-v1": 20}
DEFAULT_EVAL_ENVS = 100
GYMNASIUM_EVAL_ENVS = 10
RENAMED = {"return": "episode_return", "length": "episode_length", "success": "success_rate"}
BEST = "best_model.pt"


class PolicyPhase:
    """Implements `rl.training.loop.Phase`."""

    def __init__(
        self, cfg: Config, run: str, ctx: ParallelContext, total: int, run_path: Path, started: float | None = None
    ) -> None:  # fmt: skip
        """Collective. `total` units; `started`: time.monotonic() when the command began, None: now.

        Raises ValueError for whatever the environment or the algorithm refuses.
        """
        self.started = time.monotonic() if started is None else started
        self.cfg, self.run, self.ctx, self.run_path = cfg, run, ctx, run_path
        self.block = rl_config.policy_run(cfg, run)
        self.name, self.unit = run, "step" if run == "arm" else "iteration"
        per_iteration = policies.steps_per_iteration(cfg, run, ctx.world_size)
        self._steps = 1 if run == "arm" else per_iteration  # environment steps of a unit
        self.units_per_iteration = per_iteration // self._steps
        env = policies.make_env(cfg, run, policies.num_envs(cfg, run), ctx.device, cfg.training.seed)
        try:
            policies.require_memory(cfg, run, env, ctx)
            self.inner: AlgorithmPhase = policies.build_phase(cfg, run, env, ctx, total * self._steps)
        except BaseException:  # a simulator left open would keep its processes
            env.close()
            raise
        self.policy = policies.acting(self.inner)
        self.training_seconds = 0.0  # of collecting and learning alone
        self._seconds_before = 0.0  # `wall_seconds` of the processes that this one continues
        self.step = 0  # units, the running iteration's once it has collected
        self.env_steps = 0
        self.episodes = 0  # finished, over all environments and processes
        self.curve: list[dict[str, Any]] = []  # what evaluations found
        self.best: dict[str, Any] | None = None  # the entry of `curve` whose weights are kept

    @property
    def updates_per_iteration(self) -> int:
        return self.inner.updates_per_iteration

    @property
    def wall_seconds(self) -> float:
        """Seconds the run has taken, with set-up, evaluations and checkpoints, in all its processes; of one that was
        killed, up to the checkpoint from which the next one went on."""
        return self._seconds_before + time.monotonic() - self.started

    def collect(self, step: int) -> dict[str, float]:
        numbers: dict[str, float] = {}
        if self.ctx.is_main and step > 0 and self._due(step):
            numbers = self.evaluate_here()
        start = time.monotonic()
        found = self.inner.collect(step * self._steps)
        self.training_seconds += time.monotonic() - start
        self.step = step + self.units_per_iteration
        self.env_steps += int(found["env_steps"])
        numbers |= {"memory_gb": self._memory_gb(), "save_due": float(self._count(int(found.pop("episodes"))))}
        return {RENAMED.get(k, k): v for k, v in found.items()} | numbers

    def update(self, progress: float) -> dict[str, float]:
        start = time.monotonic()
        numbers = self.inner.update(progress * self._steps)
        self.training_seconds += time.monotonic() - start
        return numbers

    def _count(self, finished: int) -> bool:
        """Counts episodes; True when they make a checkpoint due."""
        before, self.episodes = self.episodes, self.episodes + finished
        every = self.block.save_every_episodes
        if every is None:
            return False
        if not self.inner.resumable:
            every *= self.inner.env.num_envs * self.ctx.world_size
        return self.episodes // every > before // every

    def _due(self, step: int) -> bool:
        every = rl_config.intervals(self.cfg, self.run).evaluate
        return step // every > (step - self.units_per_iteration) // every

    def evaluate_here(self) -> dict[str, float]:
        """On rank 0, always the same episodes, once at a step; keeps the weights when they did best."""
        if not self.curve or self.curve[-1]["step"] != self.step:
            self._evaluate()
        entry = self.curve[-1]
        success = entry["success_rate"]
        return {"eval_return": entry["mean_return"], "eval_success": math.nan if success is None else success}

    def _evaluate(self) -> None:
        result = self.evaluation(self.block.eval_episodes, self.block.eval_seed)
        simulator = self._only_simulator()
        if simulator is not None:
            self.inner.restart(self.step * self._steps)
        entry = {"step": self.step, "env_steps": self.env_steps, **result.numbers()}
        self.curve.append(entry)
        if self.best is None or _score(entry) > _score(self.best):
            self.best = entry
            run = {"run": self.run, "algorithm": self.block.algorithm, "task": rl_config.task_of(self.cfg, self.run)}
            run |= {} if simulator is None else {"robots": simulator.robots}
            save_plain({**policies.weights(self.inner), **run, "evaluation": entry}, self.run_path / BEST)
        success = entry["success_rate"]
        log.info(
            "evaluation at %s %d: return %.3f%s", self.unit, self.step, entry["mean_return"],
            "" if success is None else f", success {success:.3f}",
        )  # fmt: skip

    def evaluation(self, episodes: int, seed: int) -> Evaluation:
        """The deterministic policy in environments of its own; random streams of training go on as if nothing was.

        Where a process has one simulator only, in the training's environments, whose episodes then have to begin anew.
        """
        task = rl_config.task_of(self.cfg, self.run)
        most = MAX_EVAL_ENVS.get(task, DEFAULT_EVAL_ENVS if "ArmReach" in task else GYMNASIUM_EVAL_ENVS)
        simulator = self._only_simulator()
        if simulator is not None:
            env: VectorEnv = simulator.evaluating()
            episodes = max(episodes, env.num_envs)
        else:
            count = min(most, episodes)
            env = policies.make_env(self.cfg, self.run, count, self.ctx.device, seed, training=False)
        generator = policies.generator_of(self.inner)
        kept = None if generator is None else generator.get_state()
        if generator is not None:
            generator.manual_seed(seed)
        try:
            return evaluate(self.policy, env, episodes, seed)
        finally:
            env.close()
            if generator is not None and kept is not None:
                generator.set_state(kept)

    def _only_simulator(self) -> IsaacLabEnv | None:
        """Environments of a task of which a process has one simulator only; None for all other tasks."""
        if registry.one_simulator(rl_config.task_of(self.cfg, self.run)):
            return cast(IsaacLabEnv, self.inner.env)
        return None

    def _memory_gb(self) -> float:
        """The most in use so far: of the GPU, else of the process."""
        if self.ctx.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.ctx.device) / 2**30
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20

    # --- the rest of a phase ---------------------------------------------------------------------------------------

    def boundary(self, step: int) -> None:
        self.inner.boundary(step * self._steps)

    def media(self, run_dir: Path, step: int, last: bool) -> None:
        """At the end evaluates the last policy, so that the last checkpoint knows it. Videos belong to play."""
        if last:
            self.evaluate_here()

    def checkpoint(self) -> CheckpointState:
        state = self.inner.checkpoint()
        simulator = self._only_simulator()
        state.training |= {
            "policy_run": {
                "run": self.run, "algorithm": self.block.algorithm, "task": rl_config.task_of(self.cfg, self.run),
                "seconds": self.training_seconds, "wall_seconds": self.wall_seconds, "env_steps": self.env_steps,
                "episodes": self.episodes,
                "curve": self.curve, "best": self.best,
                "simulator_steps": None if simulator is None else simulator.steps_taken,
                "robots": None if simulator is None else simulator.robots,
            },
        }  # fmt: skip
        return state

    def restore(self, saved: LoadedCheckpoint) -> None:
        """Raises ValueError for a checkpoint of another algorithm or task."""
        own = check_origin(saved.training, self.run, self.cfg, str(saved.saved.path))
        simulator = self._only_simulator()
        if simulator is not None:
            simulator.steps_taken = own.get("simulator_steps", 0)  # runs of earlier versions began their curricula anew
            simulator.compare_robots(own.get("robots"))
        self.inner.restore(saved)
        self.training_seconds, self.env_steps = own["seconds"], own["env_steps"]
        self.episodes = own.get("episodes", 0)  # runs of earlier versions did not count them
        # Checkpoints from before it was counted have the time of training only.
        self._seconds_before = own.get("wall_seconds", own["seconds"])
        self.step = saved.training["loop"]["step"]
        self.curve = own["curve"]
        # Not where a run is continued in another directory, which has no such weights.
        self.best = own["best"] if (self.run_path / BEST).is_file() else None

    def last_batch(self) -> Any:
        return self.inner.last_batch()

    def close(self) -> None:
        self.inner.close()


def _score(entry: dict[str, Any]) -> tuple[float, float]:
    """Success first, where the task has one."""
    success = entry["success_rate"]
    return (0.0 if success is None else success, entry["mean_return"])


def check_origin(training: dict[str, Any], run: str, cfg: Config, source: str) -> dict[str, Any]:
    """What `PolicyPhase.checkpoint` noted about itself. Raises ValueError for another algorithm or task."""
    if "policy_run" not in training:
        raise ValueError(f"{source} was not written by train.sh arm or train.sh rl")
    own: dict[str, Any] = training["policy_run"]
    wanted = {"algorithm": rl_config.policy_run(cfg, run).algorithm, "task": rl_config.task_of(cfg, run)}
    for key, value in wanted.items():
        if own[key] != value:
            raise ValueError(
                f"{source} is a checkpoint of {own[key]}, not of {value}; give the same {key}, or another --output_dir"
            )
    return own
