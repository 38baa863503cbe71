"""From a task id to a running Isaac Lab environment; the only place that imports Isaac Lab."""

import contextlib
import importlib.util
import io
import logging
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import gymnasium as gym
import torch

from rl.config import IsaacLabConfig, is_isaac_task, nearest
from rl.sims.isaaclab import IsaacLabEnv
from rl.sims.isaaclab_assets import choose_asset_root

log = logging.getLogger(__name__)
INSTALL = "bash setup.sh isaaclab"
OLDEST = 3  # major version; 2.3 starts its simulator and chooses its physics in other ways
# Memory of one environment with its contacts and constraints, twice what Isaac-Ant-Direct takes on a CPU.
BYTES_PER_ENV = 300_000


def check_installed(task: str) -> None:
    """Raises ValueError with the command where Isaac Lab is missing in this interpreter or too old."""
    try:
        found = version("isaaclab")
    except PackageNotFoundError:
        raise ValueError(
            f"task {task} needs Isaac Lab, which has an environment of its own: install it once with `{INSTALL}` "
            "(Python 3.12, 9 GB) and start the task with train.sh, which picks that environment"
        ) from None
    if int(found.split(".")[0]) < OLDEST:
        raise ValueError(
            f"task {task}: the package isaaclab installed here is {found}, and Isaac Lab {OLDEST}.0 or newer is "
            f"needed; install that once with `{INSTALL}` (Python 3.12, 9 GB) and start the task with train.sh"
        )


def make(
    task: str, num_envs: int, device: torch.device | str, seed: int, cfg: IsaacLabConfig, random_phase: bool
) -> IsaacLabEnv:
    """Raises ValueError for a missing installation, an unknown task, one that needs Isaac Sim where that is not
    installed, a physics preset it does not have and a robot that is not there. Whatever fails, nothing stays open.
    """
    check_installed(task)
    if num_envs < 1:
        raise ValueError(f"num_envs is {num_envs}; it must be at least 1")
    log.info("Isaac Lab: %s", choose_asset_root(cfg.asset_root))
    said = io.StringIO()  # Isaac Lab and Warp print a lot
    try:
        with contextlib.redirect_stdout(said):
            env, close = _launch(task, num_envs, torch.device(device), seed, cfg)
    except FileNotFoundError as e:
        raise ValueError(
            f"{task} needs a file that is not there: {e}. This project builds cartpole, ant and Franka for itself; set "
            "isaaclab.asset_root to a folder with NVIDIA's assets for other robots"
        ) from e
    finally:
        log.debug("Isaac Lab said:\n%s", said.getvalue())
    try:
        env.reset(seed=seed)  # the very first reset draws other numbers than all later ones with its seed
        return IsaacLabEnv(env, cfg.action_limit, random_phase and cfg.random_phase, seed, close)
    except BaseException:
        env.close()
        close()
        raise


def _launch(
    task: str, num_envs: int, device: torch.device, seed: int, cfg: IsaacLabConfig
) -> tuple[Any, Callable[[], None]]:
    """The environment, unwrapped, and what closes the runtime around it."""
    env_cfg = configured(task, num_envs, device, seed, cfg)
    from isaaclab.app.sim_launcher import launch_simulation

    runtime = contextlib.ExitStack()
    runtime.enter_context(launch_simulation(env_cfg, {"device": env_cfg.sim.device, "headless": True}))
    try:
        return gym.make(task, cfg=env_cfg).unwrapped, runtime.close
    except BaseException as e:
        with contextlib.redirect_stderr(io.StringIO()):  # it prints the trace of what the caller says in a sentence
            runtime.__exit__(type(e), e, e.__traceback__)
        raise


def configured(task: str, num_envs: int, device: torch.device, seed: int, cfg: IsaacLabConfig) -> Any:
    """The task's configuration, ready to be made. Raises ValueError for what cannot be run here."""
    import isaaclab_tasks  # noqa: F401  registers the tasks
    from isaaclab.envs import DirectRLEnvCfg, ManagerBasedRLEnvCfg
    from isaaclab_tasks.utils import parse_env_cfg

    known = sorted(name for name in gym.registry if is_isaac_task(name))
    if task not in known:
        raise nearest(task, known, "task")
    place = f"cuda:{device.index or 0}" if device.type == "cuda" else "cpu"
    try:
        env_cfg = parse_env_cfg(task, device=place, num_envs=num_envs, overrides=[f"presets={cfg.physics}"])
    except ValueError as e:  # an unknown preset; the message lists those that exist
        refuse_without_isaac_sim(task, parse_env_cfg(task, device=place, num_envs=num_envs))
        raise ValueError(f"isaaclab.physics={cfg.physics} does not fit {task}: {e}") from e
    if not isinstance(env_cfg, DirectRLEnvCfg | ManagerBasedRLEnvCfg):
        raise ValueError(f"{task} is no task for one policy; choose a DirectRLEnv or ManagerBasedRLEnv task")
    refuse_without_isaac_sim(task, env_cfg)
    env_cfg.seed = seed
    if hasattr(env_cfg, "compute_final_obs"):
        env_cfg.compute_final_obs = True
    return env_cfg


def refuse_without_isaac_sim(task: str, env_cfg: Any) -> None:
    """Raises ValueError for a task that needs the full simulator where that is not installed."""
    from isaaclab.app.sim_launcher import scan

    if scan(env_cfg, {}).needs_kit and importlib.util.find_spec("isaacsim") is None:
        raise ValueError(
            f"{task}, set up like this, needs the full simulator (Isaac Sim: its PhysX or its renderer), which is not "
            "installed and needs an RTX GPU: `.venv-isaaclab/bin/pip install isaacsim`, or take a task that has the "
            f"preset {IsaacLabConfig().physics}"
        )
