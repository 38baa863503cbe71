"""From a task id to a running Isaac Lab environment; the only place that imports Isaac Lab."""

import contextlib
import importlib.util
import io
import logging
import os
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import gymnasium as gym
import torch

from rl.config import IsaacLabConfig, is_isaac_task, nearest
from rl.sims import isaac_sim
from rl.sims.isaaclab import IsaacLabEnv
from rl.sims.isaaclab_assets import VARIABLE, choose_asset_root, given_root, robots_of

log = logging.getLogger(__name__)
INSTALL = "bash setup.sh isaaclab"
ISAAC_SIM_INDEX = "https://pypi.nvidia.com"  # which version goes with an Isaac Lab says that one's extra `isaacsim`
KITLESS = 3  # major version; the one before needs Isaac Sim, whose PhysX is its only physics
# Memory of one environment with its contacts and constraints, twice what Isaac-Ant-Direct takes on a CPU.
BYTES_PER_ENV = 300_000


def check_installed(task: str) -> int:
    """Major version of Isaac Lab. Raises ValueError with the command where it is missing in this interpreter."""
    try:
        return int(version("isaaclab").split(".")[0])  # from source, 2.3's package counts on its own: 0.47 and later
    except PackageNotFoundError:
        raise ValueError(
            f"task {task} needs Isaac Lab, which has an environment of its own: install it once with `{INSTALL}` "
            "(Python 3.12, 9 GB) and start the task with train.sh, which picks that environment"
        ) from None


def make(
    task: str, num_envs: int, device: torch.device | str, seed: int, cfg: IsaacLabConfig, random_phase: bool
) -> IsaacLabEnv:
    """Raises ValueError for a missing installation, an unknown task, one that needs Isaac Sim where that is not
    installed, a physics preset it does not have and a robot that is not there. Whatever fails, nothing stays open.
    """
    kitless = check_installed(task) >= KITLESS
    launch = _launch if kitless else _launch_in_isaac_sim
    if num_envs < 1:
        raise ValueError(f"num_envs is {num_envs}; it must be at least 1")
    said = io.StringIO()  # Isaac Lab and Warp print a lot
    try:
        with contextlib.redirect_stdout(said):
            env, close = launch(task, num_envs, torch.device(device), seed, cfg)
    except FileNotFoundError as e:
        raise ValueError(
            f"{task} needs a file that is not there: {e}. This project builds cartpole, ant and Franka for itself; set "
            "isaaclab.asset_root to a folder with NVIDIA's assets for other robots"
        ) from e
    finally:
        log.debug("Isaac Lab said:\n%s", said.getvalue())
    try:
        env.reset(seed=seed)  # the very first reset draws other numbers than all later ones with its seed
        # 2.3 does not read the variable.
        robots = robots_of(os.environ.get(VARIABLE) if kitless else given_root(cfg.asset_root))
        return IsaacLabEnv(env, cfg.action_limit, random_phase and cfg.random_phase, seed, close, robots)
    except BaseException:
        env.close()
        close()
        raise


def _launch(
    task: str, num_envs: int, device: torch.device, seed: int, cfg: IsaacLabConfig
) -> tuple[Any, Callable[[], None]]:
    """The environment, unwrapped, and what closes the runtime around it."""
    log.info("Isaac Lab: %s", choose_asset_root(cfg.asset_root))
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


def _launch_in_isaac_sim(
    task: str, num_envs: int, device: torch.device, seed: int, cfg: IsaacLabConfig
) -> tuple[Any, Callable[[], None]]:
    """The same with Isaac Lab 2.3: Isaac Sim comes first, there is one physics, and a task needs nothing else. Not
    run, see `isaac_sim`."""
    close = isaac_sim.start(place_name(device), given_root(cfg.asset_root))
    try:
        check_known(task)
        from isaaclab_tasks.utils import parse_env_cfg

        env_cfg = ready(task, parse_env_cfg(task, device=place_name(device), num_envs=num_envs), seed)
        env: Any = gym.make(task, cfg=env_cfg).unwrapped
        # Closing Isaac Sim stops its clock, upon which Isaac Lab would wait for it to be started again.
        env.sim._disable_app_control_on_stop_handle = True
    except BaseException:
        close()
        raise
    return env, close


def configured(task: str, num_envs: int, device: torch.device, seed: int, cfg: IsaacLabConfig) -> Any:
    """The task's configuration, ready to be made. Raises ValueError for what cannot be run here."""
    check_known(task)
    from isaaclab_tasks.utils import parse_env_cfg

    place = place_name(device)
    try:
        env_cfg = parse_env_cfg(task, device=place, num_envs=num_envs, overrides=[f"presets={cfg.physics}"])
    except ValueError as e:  # an unknown preset; the message lists those that exist
        refuse_without_isaac_sim(task, parse_env_cfg(task, device=place, num_envs=num_envs))
        raise ValueError(f"isaaclab.physics={cfg.physics} does not fit {task}: {e}") from e
    ready(task, env_cfg, seed)
    refuse_without_isaac_sim(task, env_cfg)
    return env_cfg


def place_name(device: torch.device) -> str:
    """As Isaac Lab calls it."""
    return f"cuda:{device.index or 0}" if device.type == "cuda" else "cpu"


def check_known(task: str) -> None:
    """Raises ValueError for an unknown task, with the nearest ones."""
    import isaaclab_tasks  # noqa: F401  registers the tasks

    known = sorted(name for name in gym.registry if is_isaac_task(name))
    if task not in known:
        raise nearest(task, known, "task")


def ready(task: str, env_cfg: Any, seed: int) -> Any:
    """`env_cfg` with what a training needs. Raises ValueError for a task of several agents."""
    from isaaclab.envs import DirectRLEnvCfg, ManagerBasedRLEnvCfg

    if not isinstance(env_cfg, DirectRLEnvCfg | ManagerBasedRLEnvCfg):
        raise ValueError(f"{task} is no task for one policy; choose a DirectRLEnv or ManagerBasedRLEnv task")
    env_cfg.seed = seed
    if hasattr(env_cfg, "compute_final_obs"):  # from 3.0 on
        env_cfg.compute_final_obs = True
    return env_cfg


def refuse_without_isaac_sim(task: str, env_cfg: Any) -> None:
    """Raises ValueError for a task that needs the full simulator where that is not installed."""
    from isaaclab.app.sim_launcher import scan

    if scan(env_cfg, {}).needs_kit and importlib.util.find_spec("isaacsim") is None:
        wanted = f"'isaaclab[isaacsim]=={version('isaaclab')}'"
        raise ValueError(
            f"{task}, set up like this, needs the full simulator (Isaac Sim: its PhysX or its renderer), which is not "
            f"installed and needs an RTX GPU: `{sys.executable} -m pip install {wanted} --extra-index-url "
            f"{ISAAC_SIM_INDEX}`, or take a task that has the preset {IsaacLabConfig().physics}"
        )
