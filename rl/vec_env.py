"""The environments of one rank behind gymnasium's SyncVectorEnv, and what its autoreset hides.

Autoreset is SAME_STEP: the step that ends an episode already returns the first observation of the next one; the true
last observation is in `infos["final_obs"][i]` and its info in `infos["final_info"]`.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from rl.config import EnvironmentConfig, Isolation
from rl.envs.process_vector import ProcessVectorEnv
from rl.gym_wrapper import make_env

Factories = list[Callable[[], gym.Env[Any, Any]]]


def _sync(factories: Factories, config: EnvironmentConfig) -> SyncVectorEnv:
    return SyncVectorEnv(factories, autoreset_mode=AutoresetMode.SAME_STEP)


def _process(factories: Factories, config: EnvironmentConfig) -> SyncVectorEnv:
    return ProcessVectorEnv(factories, config.supervision)


# What `environment.isolation` chooses from.
BACKENDS: dict[Isolation, Callable[[Factories, EnvironmentConfig], SyncVectorEnv]] = {
    Isolation.sync: _sync,
    Isolation.process: _process,
}


def make_vector_env(
    config: EnvironmentConfig, phase: str, num_envs: int, *, rank: int = 0, seed: int = 0, **env_options: Any
) -> SyncVectorEnv:
    """`num_envs` environments with environment indices 0.. of this rank; `env_options` go to `F1RLEnv`.

    Raises ValueError for num_envs below 1.
    """
    if num_envs < 1:
        raise ValueError(f"num_envs is {num_envs}; it must be at least 1")
    factories: Factories = [
        partial(make_env, config, phase, rank=rank, seed=seed, env_index=i, **env_options) for i in range(num_envs)
    ]
    return BACKENDS[config.isolation](factories, config)


def lost_environments(envs: SyncVectorEnv) -> npt.NDArray[np.bool_]:
    """(E,) environments whose episode was lost in the last reset or step; only those in processes can be."""
    return envs.lost if isinstance(envs, ProcessVectorEnv) else np.zeros(envs.num_envs, np.bool_)


def failures(envs: SyncVectorEnv) -> int | None:
    """Environments lost so far; None where a loss would end this process."""
    return len(envs.workers.losses) if isinstance(envs, ProcessVectorEnv) else None


def true_next_observation(
    observations: dict[str, npt.NDArray[Any]], infos: dict[str, Any]
) -> dict[str, npt.NDArray[Any]]:
    """What each action led to: `observations` of a vector step with the final ones of ended episodes put back.

    The same object when no episode ended, else copies.
    """
    if "final_obs" not in infos:
        return observations
    restored = {key: value.copy() for key, value in observations.items()}
    for i in np.flatnonzero(infos["_final_obs"]):
        for key, value in infos["final_obs"][i].items():
            restored[key][i] = value
    return restored


def true_info(infos: dict[str, Any], key: str, num_envs: int) -> npt.NDArray[Any]:
    """`infos[key]` of a vector step, rows of ended episodes from `infos["final_info"]`; (num_envs, ...).

    A key of a nested info is written "outer/inner". Raises KeyError when an environment did not report it.
    """
    parts = [infos] if "final_info" not in infos else [infos, infos["final_info"]]
    seen = np.zeros(num_envs, np.bool_)
    result: npt.NDArray[Any] | None = None
    *outer, name = key.split("/")
    for part in parts:
        for level in outer:
            part = part.get(level, {})
        if name in part:
            rows = part[f"_{name}"]
            result = part[name].copy() if result is None else result
            result[rows] = part[name][rows]
            seen |= rows
    if result is None or not seen.all():
        raise KeyError(f"info '{key}' is missing for environments {np.flatnonzero(~seen).tolist()}")
    return result
