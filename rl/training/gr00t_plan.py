"""`train.sh plan gr00t`: memory of the run of arm or rl that the same flags would start."""

import contextlib
import json
from dataclasses import asdict

import gymnasium as gym
import torch

from rl import config as rl_config
from rl.config import Config
from rl.envs import registry, vision_arm_reach
from rl.envs.arm_reach import ArmReach
from rl.training import cli, gr00t_memory, policies
from rl.training.gr00t_training import check_stages


def plan(args: cli.Args) -> None:
    """Prints, and writes for --json. Raises ValueError for settings, a task and spaces that the run would refuse."""
    cfg, run, processes = args.config, args.run, args.num_processes or 1
    assert run is not None
    g, task = cfg.gr00t, rl_config.task_of(cfg, run)
    if g.backend == "none":
        g.backend = "stub"  # the plan is about GR00T
    policies.check_settings(cfg, run)
    check_stages(cfg, processes)
    policies.prefer_small_machine(cfg, run)
    device = device_of(cfg)
    memory = gr00t_memory.planned(cfg, device, spaces_of(cfg, run), processes)
    stages = ", ".join(g.stages) or "none"
    print(f"GR00T {g.backend} of size {g.size}, {g.dtype}, stages {stages}, adapters of rank {g.lora_rank}")
    print(f"train.sh {run} on {task}, {cfg.ppo.num_envs} environments of {cfg.ppo.n_steps} steps, "
          f"{gr00t_memory.rows_of_an_update(cfg)} decisions at once, {device}")  # fmt: skip
    if rl_config.is_isaac_task(task):
        print("its observations are known once its simulator runs: planned for 32 numbers, a camera and 7 actions")
    print("\n".join(memory.lines()))
    if processes > 1:
        print(f"all {processes} processes: {processes * memory.total / gr00t_memory.GB:.2f} GB")
    if device.type == "cuda" and not torch.cuda.is_available():
        print("not compared with what is free: no GPU here")
    else:
        lacking = memory.shortage(device, processes)
        print(f"DOES NOT FIT: {lacking}; {gr00t_memory.REMEDY}" if lacking else f"fits what is free here on {device}")
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        result = asdict(memory) | {"total": memory.total, "num_processes": processes, "task": task}
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def device_of(cfg: Config) -> torch.device:
    """On which the run would be."""
    name = cfg.training.device
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name)


def spaces_of(cfg: Config, run: str) -> tuple[gym.Space, gym.Space]:
    """Of the observations and actions of the run's task, from one environment. Raises ValueError for an unknown
    task and one that cannot be opened here."""
    task = rl_config.task_of(cfg, run)
    if rl_config.is_isaac_task(task):
        return gr00t_memory.planned_robot()
    registry.check_task(task)
    if task in registry.PIXEL_TASKS:  # whose cameras need a renderer
        arm = cfg.arm
        seen = vision_arm_reach.observation_space(arm.image_size, arm.frame_stack, arm.privileged_critic)
        return seen, ArmReach(1).action_space
    env = policies.make_env(cfg, run, 1, torch.device("cpu"), cfg.training.seed)
    with contextlib.closing(env):
        return env.observation_space, env.action_space
