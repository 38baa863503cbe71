"""Environments by task id: the arm-reaching family, and everything gymnasium knows."""

import importlib
from dataclasses import dataclass

import gymnasium as gym
import torch

from rl.config import nearest
from rl.envs.vector import VectorEnv

# id -> "module:class"; imported only when chosen
ARM_TASKS = {
    "ArmReach-v1": "rl.envs.arm_reach:ArmReach",
    "ArmReachPhysics-v1": "rl.envs.arm_reach_physics:ArmReachPhysics",
    "VisionArmReach-v1": "rl.envs.vision_arm_reach:VisionArmReach",
}
PIXEL_TASKS = ("VisionArmReach-v1",)


@dataclass(frozen=True)
class TaskOptions:
    """What a task may be asked for; those that a task does not have are left at their defaults."""

    random_phase: bool = True  # arm tasks: first episodes begin somewhere within their 100 steps
    reach_bonus: bool = False  # arm tasks but vision
    image_size: int = 64  # vision
    frame_stack: int = 4  # vision
    render: bool = False  # gymnasium: `render()` gives pictures


def known_tasks() -> list[str]:
    """Ids that `make_vector_env` accepts; of gymnasium's the newest versions."""
    newest: dict[str, int] = {}
    for spec in gym.registry.values():
        if spec.namespace is None:
            newest[spec.name] = max(newest.get(spec.name, 0), spec.version or 0)
    return [*ARM_TASKS, *(f"{name}-v{version}" for name, version in sorted(newest.items()))]


def check_task(task: str) -> None:
    """Raises ValueError for an unknown id, with the nearest ones."""
    if task not in ARM_TASKS and task not in gym.registry:
        raise nearest(task, known_tasks(), "task")


def make_vector_env(
    task: str, num_envs: int, device: torch.device | str = "cpu", *, seed: int = 0, options: TaskOptions | None = None
) -> VectorEnv:
    """Raises ValueError for an unknown id, a package that is not installed, vision without a renderer and options that
    do not fit."""
    check_task(task)
    options = options or TaskOptions()
    if task not in ARM_TASKS:
        return _gymnasium(task, num_envs, device, seed, options)
    chosen: dict[str, bool | int] = {"random_phase": options.random_phase}
    if task in PIXEL_TASKS:
        chosen |= {"image_size": options.image_size, "frame_stack": options.frame_stack}
    else:
        chosen |= {"reach_bonus": options.reach_bonus}
    module, _, name = ARM_TASKS[task].partition(":")
    env: VectorEnv = getattr(importlib.import_module(module), name)(num_envs, device, seed=seed, **chosen)
    return env


def _gymnasium(task: str, num_envs: int, device: torch.device | str, seed: int, options: TaskOptions) -> VectorEnv:
    from rl.envs.gymnasium_adapter import GymnasiumEnv

    mode = "rgb_array" if options.render else None
    try:
        return GymnasiumEnv(lambda: gym.make(task, render_mode=mode), num_envs, device, seed=seed)
    except gym.error.DependencyNotInstalled as e:
        raise ValueError(f"task {task} needs a package that is not installed: {e}") from e
