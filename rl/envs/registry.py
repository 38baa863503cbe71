"""Environments by task id: the arm-reaching family, Isaac Lab's, Atari games and everything gymnasium knows."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import gymnasium as gym
import torch

from rl.config import AtariConfig, IsaacLabConfig, SupervisionConfig, is_isaac_task, nearest
from rl.data.free_memory import is_out_of_memory, require_memory
from rl.envs import atari
from rl.envs.vector import VectorEnv
from rl.sims import isaaclab_launch

# id -> "module:class"; imported only when chosen
ARM_TASKS = {
    "ArmReach-v1": "rl.envs.arm_reach:ArmReach",
    "ArmReachPhysics-v1": "rl.envs.arm_reach_physics:ArmReachPhysics",
    "VisionArmReach-v1": "rl.envs.vision_arm_reach:VisionArmReach",
}
PIXEL_TASKS = ("VisionArmReach-v1",)
SIMULATED_TASKS = ("ArmReachPhysics-v1", "VisionArmReach-v1")  # the other one is a few lines of torch


@dataclass(frozen=True)
class TaskOptions:
    """What a task may be asked for; those that a task does not have are left at their defaults."""

    random_phase: bool = True  # arm tasks: first episodes begin somewhere within their 100 steps
    reach_bonus: bool = False  # arm tasks but vision
    image_size: int = 64  # vision
    frame_stack: int = 4  # vision
    privileged_critic: bool = False  # vision
    render: bool = False  # gymnasium: `render()` gives pictures
    atari: AtariConfig = field(default_factory=AtariConfig)  # Atari games
    processes: SupervisionConfig | None = None  # simulators in supervised processes; None: in this one
    isaaclab: IsaacLabConfig = field(default_factory=IsaacLabConfig)  # Isaac Lab
    local_processes: int = 1  # Isaac Lab: processes on this machine that make as many environments


def known_tasks() -> list[str]:
    """Ids that `make_vector_env` accepts; of gymnasium's the newest versions, games once they are registered."""
    newest: dict[str, int] = {}
    for spec in gym.registry.values():
        if spec.namespace is None:
            newest[spec.name] = max(newest.get(spec.name, 0), spec.version or 0)
    games = [task for task, spec in gym.registry.items() if spec.namespace == "ALE"]
    return [*ARM_TASKS, *(f"{name}-v{version}" for name, version in sorted(newest.items())), *games]


def check_task(task: str) -> None:
    """Raises ValueError for an unknown id, with the nearest ones, and for a game without ale_py; for an id of Isaac Lab
    (known once it is imported) only where that is not installed."""
    if is_isaac_task(task):
        isaaclab_launch.check_installed(task)
        return
    if task not in gym.registry and atari.is_game(task):
        atari.register_games(task)
    if task not in ARM_TASKS and task not in gym.registry:
        raise nearest(task, known_tasks(), "task")


def shows_pictures(task: str) -> bool:
    """Observations are pictures, which small networks do not read."""
    return task in PIXEL_TASKS or atari.is_game(task)


def make_vector_env(
    task: str, num_envs: int, device: torch.device | str = "cpu", *, seed: int = 0, options: TaskOptions | None = None
) -> VectorEnv:
    """Raises ValueError for an unknown id, a package that is not installed, vision without a renderer and options that
    do not fit."""
    options = options or TaskOptions()
    if is_isaac_task(task):
        return _isaaclab(task, num_envs, device, seed, options)
    check_task(task)
    if task not in ARM_TASKS:
        return _gymnasium(task, num_envs, device, seed, options)
    chosen: dict[str, Any] = {"random_phase": options.random_phase}
    if task in PIXEL_TASKS:
        chosen |= {
            "image_size": options.image_size, "frame_stack": options.frame_stack,
            "privileged_critic": options.privileged_critic,
        }  # fmt: skip
    else:
        chosen |= {"reach_bonus": options.reach_bonus}
    if task in SIMULATED_TASKS:
        chosen |= {"processes": options.processes}
    module, _, name = ARM_TASKS[task].partition(":")
    env: VectorEnv = getattr(importlib.import_module(module), name)(num_envs, device, seed=seed, **chosen)
    return env


def one_simulator(task: str) -> bool:
    """A process can have the environments of this task only once: evaluations play in those of the training."""
    return is_isaac_task(task)


def _isaaclab(task: str, num_envs: int, device: torch.device | str, seed: int, options: TaskOptions) -> VectorEnv:
    """Raises ValueError, besides for what `isaaclab_launch.make` refuses, for more environments than fit the memory."""
    if options.processes is not None:
        raise ValueError(f"task {task}: Isaac Lab runs in the training's process; set environment.isolation=sync")
    isaaclab_launch.check_installed(task)
    place, what = torch.device(device), f"{num_envs} environments of {task}"
    sharing = 1 if place.type == "cuda" else options.local_processes  # every process has a GPU of its own
    require_memory(num_envs * isaaclab_launch.BYTES_PER_ENV, place, what, "rl.num_envs", sharing)
    try:
        return isaaclab_launch.make(task, num_envs, place, seed, options.isaaclab, options.random_phase)
    except (RuntimeError, MemoryError) as e:  # the estimate is one
        if is_out_of_memory(e):
            raise ValueError(f"{what} do not fit the memory ({e}); lower rl.num_envs (--num_envs)") from e
        raise


def _gymnasium(task: str, num_envs: int, device: torch.device | str, seed: int, options: TaskOptions) -> VectorEnv:
    from rl.envs.gymnasium_adapter import GymnasiumEnv

    mode = "rgb_array" if options.render else None
    try:
        make: Callable[[], gym.Env] = partial(gym.make, gym.spec(task), render_mode=mode)
        if atari.is_game(task):
            make = partial(atari.make_game, gym.spec(task), options.atari, mode)
        return GymnasiumEnv(make, num_envs, device, seed=seed, processes=options.processes)
    except gym.error.DependencyNotInstalled as e:
        remedy = ""
        if "mujoco" in str(e).lower():  # gymnasium's own advice would bring a version it was not made for
            remedy = "; here: .venv/bin/python -m pip install -r requirements/mujoco.txt"
        raise ValueError(f"task {task} needs a package that is not installed: {e}{remedy}") from e
