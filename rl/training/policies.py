"""From a configuration to what learns or acts: PPO and A2C, SAC and FASTSAC, DIT."""

from typing import Any

import torch
from torch import Tensor, nn

from rl import config as rl_config
from rl.algorithms.diffusion import DiffusionNetworks, SingleDraw
from rl.algorithms.ppo_minibatches import minibatch_sizes
from rl.config import BLOCKS, Config, Isolation, MixedPrecision, ObservationNorm
from rl.envs import registry
from rl.envs.registry import TaskOptions
from rl.envs.vector import VectorEnv
from rl.training import gr00t_memory
from rl.training.checkpoint import load_strict
from rl.training.gr00t_training import base_of, check_base
from rl.training.off_policy_phase import GreedyPolicy, OffPolicyPhase
from rl.training.on_policy_phase import OnPolicyPhase
from rl.training.parallel_utils import ParallelContext, local_processes
from rl.training.policy_evaluation import Policy

AlgorithmPhase = OnPolicyPhase | OffPolicyPhase
MIN_GPU_ENVS = 512  # fewer environments do not pay for a GPU


def task_options(cfg: Config, *, training: bool = True, render: bool = False) -> TaskOptions:
    """What a run asks of its task, by whichever command it was started, and where its simulators live.

    training: False for evaluations and play, where episodes are whole and rewards those of the task.
    """
    arm = cfg.arm
    return TaskOptions(
        random_phase=training, reach_bonus=arm.reach_bonus, image_size=arm.image_size, frame_stack=arm.frame_stack,
        privileged_critic=arm.privileged_critic, render=render, isaaclab=cfg.isaaclab,
        atari=cfg.atari if training else cfg.atari.measured(),
        processes=cfg.environment.supervision if cfg.environment.isolation is Isolation.process else None,
        local_processes=local_processes(),
    )  # fmt: skip


def num_envs(cfg: Config, run: str) -> int:
    """Environments per process."""
    return settings(cfg, run).num_envs


def settings(cfg: Config, run: str) -> Any:
    """Block of the algorithm of `run`."""
    return getattr(cfg, BLOCKS[rl_config.policy_run(cfg, run).algorithm])


def steps_per_iteration(cfg: Config, run: str, world_size: int) -> int:
    """Environment steps of one iteration of the training loop, over all environments and processes."""
    block = settings(cfg, run)
    on_policy = BLOCKS[rl_config.policy_run(cfg, run).algorithm] == "ppo"
    return (block.n_steps if on_policy else block.vector_steps) * block.num_envs * world_size


def check_settings(cfg: Config, run: str) -> None:
    """What the configuration alone gives away about the updates of `run`. Raises ValueError naming the key."""
    algorithm, micro_batches = rl_config.policy_run(cfg, run).algorithm, cfg.training.gradient_accumulation_steps
    _check_gr00t(cfg, algorithm, rl_config.task_of(cfg, run))
    if BLOCKS[algorithm] == "ppo":
        minibatch_sizes(cfg.ppo, cfg.ppo.n_steps, cfg.ppo.num_envs, micro_batches)
    elif micro_batches > 1:
        raise ValueError(
            f"--gradient_accumulation_steps (training.gradient_accumulation_steps) is {micro_batches}, but {algorithm} "
            f"takes every batch whole; leave it out, or lower {BLOCKS[algorithm]}.batch_size"
        )


def _check_gr00t(cfg: Config, algorithm: str, task: str) -> None:
    backend, precision = cfg.gr00t.backend, cfg.training.mixed_precision
    if backend != "none" and BLOCKS[algorithm] != "ppo":
        raise ValueError(
            f"gr00t.backend={backend} is the actor-critic of PPO and A2C, {algorithm} would ignore it; choose "
            "--algorithm PPO, or gr00t.backend=none"
        )
    if backend not in ("none", "stub") and rl_config.is_isaac_task(task):
        raise ValueError(
            f"gr00t.backend={backend} does not run on {task}: Isaac Lab's environment exercises GR00T with the stub "
            "only; set gr00t.backend=stub"
        )
    if cfg.gr00t.state_names is not None and cfg.ppo.observation_norm is not ObservationNorm.none:
        raise ValueError(
            f"gr00t.state_names scales the state by the checkpoint's statistics, ppo.observation_norm="
            f"{cfg.ppo.observation_norm.value} would scale it before; set ppo.observation_norm=none, or leave "
            "gr00t.state_names out"
        )
    if backend != "none" and cfg.gr00t.dtype == "float16" and precision is not MixedPrecision.fp16:
        raise ValueError(
            f"gr00t.dtype=float16 needs the scaled loss of --mixed_precision fp16 (it is {precision.value}), or small "
            "gradients become zero; set both, or gr00t.dtype=bfloat16"
        )


def prefer_small_machine(cfg: Config, run: str) -> None:
    """Where the network is small, observations are numbers and environments are few: the CPU instead of `auto`, and
    one thread instead of all cores (more cost more in waiting than they give)."""
    task = rl_config.task_of(cfg, run)
    if registry.shows_pictures(task):
        return
    transformer = rl_config.policy_run(cfg, run).algorithm == "DIT" or cfg.gr00t.backend != "none"
    if cfg.training.device == "auto" and num_envs(cfg, run) < MIN_GPU_ENVS and not transformer:
        cfg.training.device = "cpu"
    # Counts on the CPU only. GR00T's own code would add gradients on several threads in an order that changes.
    if cfg.training.num_threads == 0:
        cfg.training.num_threads = 1


def make_env(cfg: Config, run: str, count: int, device: torch.device, seed: int, **options: Any) -> VectorEnv:
    """`count` environments of the run's task; `options` as in `task_options`."""
    task = rl_config.task_of(cfg, run)
    return registry.make_vector_env(task, count, device, seed=seed, options=task_options(cfg, **options))


def require_memory(cfg: Config, run: str, env: VectorEnv, ctx: ParallelContext) -> None:
    """Raises ValueError, before anything big is allocated, where GR00T would not fit."""
    if cfg.gr00t.backend != "none" and BLOCKS[rl_config.policy_run(cfg, run).algorithm] == "ppo":
        spaces = env.observation_space, env.action_space
        gr00t_memory.require(cfg, spaces, ctx.device, ctx.world_size, ctx.local_world_size)


def build_phase(cfg: Config, run: str, env: VectorEnv, ctx: ParallelContext, total: int) -> AlgorithmPhase:
    """Collective. The phase that trains the algorithm of `run` for `total` environment steps over all processes.

    Raises ValueError for spaces and settings that do not go together and for a replay that does not fit.
    """
    algorithm = rl_config.policy_run(cfg, run).algorithm
    if BLOCKS[algorithm] == "ppo":
        return OnPolicyPhase(cfg, env, ctx, total, name=algorithm.lower())
    stack = cfg.arm.frame_stack if rl_config.task_of(cfg, run) in registry.PIXEL_TASKS else 1
    return OffPolicyPhase(cfg, env, ctx, total, name=algorithm.lower(), frame_stack=stack)


def acting(phase: AlgorithmPhase) -> Policy:
    """The deterministic policy of a phase."""
    return Policy(phase.act, phase.greedy.begin)


def generator_of(phase: AlgorithmPhase) -> torch.Generator | None:
    """The random stream that acting takes from."""
    return phase.actor.generator if isinstance(phase, OnPolicyPhase) else phase.learner.generator


def weights(phase: AlgorithmPhase) -> dict[str, Any]:
    """What `load_weights` needs to act again: parameters, statistics of normalisers, GR00T's base (sha256)."""
    if isinstance(phase, OnPolicyPhase):
        model, statistics = phase.policy.state_dict(), phase.actor.statistics()
        return {"model": model, "statistics": statistics, "base": base_of(phase.policy)}
    return {"model": phase.learner.networks.state_dict(), "statistics": {}, "base": None}


def load_weights(
    phase: AlgorithmPhase, model: dict[str, Tensor], statistics: dict[str, Any], base: str | None, source: str
) -> None:
    """Raises ValueError for another architecture, and for another base (`gr00t_training.check_base`)."""
    if isinstance(phase, OnPolicyPhase):
        check_base(phase.policy, base, source)
        load_strict(phase.policy, model, source)
        phase.actor.load_statistics(statistics)
    else:
        load_strict(phase.learner.networks, model, source)


def exportable(phase: AlgorithmPhase) -> nn.Module:
    """The deterministic policy as a function of observations alone; of the diffusion policy one draw, not the best."""
    if isinstance(phase, OffPolicyPhase) and isinstance(phase.learner.networks, DiffusionNetworks):
        return GreedyPolicy(SingleDraw(phase.learner.networks), phase.actions)
    return phase.greedy


def check_exportable(cfg: Config, run: str) -> None:
    """Raises ValueError where the deterministic policy is no function of the observation alone."""
    algorithm = rl_config.policy_run(cfg, run).algorithm
    if BLOCKS[algorithm] == "ppo" and cfg.gr00t.backend != "none":
        raise ValueError("GR00T is exported by its own tools; leave --export out")
    if BLOCKS[algorithm] == "ppo" and cfg.ppo.network.lstm:
        raise ValueError("a policy with an LSTM keeps a state between calls and cannot be exported; leave --export out")
