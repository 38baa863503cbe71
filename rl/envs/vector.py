"""The one interface every trainer sees: E environments stepped together, tensors in, tensors out.

Simulators batched in torch (ArmReach) implement it themselves; gymnasium and Isaac Lab environments come through an
adapter, which hides their autoreset.
"""

from typing import Any, Protocol

import gymnasium as gym
import torch

from rl.types import TensorTree, VectorStep


class VectorEnv(Protocol):
    """E environments that reset themselves. Every returned tensor is fresh: callers may keep it.

    Actions of a Box space are float32 (E, ...) and are clipped to its bounds by the environment; those of a Discrete
    space are int64 (E,), of a MultiDiscrete space int64 (E, K).
    """

    num_envs: int
    device: torch.device
    observation_space: gym.Space[Any]  # of one environment
    action_space: gym.Space[Any]  # of one environment
    max_episode_steps: int | None  # steps after which an episode is truncated; None: no time limit
    resumes_exactly: bool  # False: the inner state cannot be saved, `state_dict` raises ValueError

    def reset(self, seed: int | None = None) -> TensorTree:
        """Begins new episodes in all environments; first observations (E, ...).

        The episodes that follow are a function of `seed`; None goes on with the stream of the last seed.
        """
        ...

    def step(self, actions: torch.Tensor) -> VectorStep:
        """Executes one action in each environment; where an episode ends, the next one has begun on return."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain data (tensors, numbers) from which `load_state_dict` continues exactly. Raises ValueError where
        `resumes_exactly` is False: then a phase resets at every checkpoint, with a seed of (seed, rank, step), so that
        a run that goes on and one that was resumed stay the same."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> TensorTree:
        """Undoes `state_dict`; returns the observations (E, ...) the policy sees next. ValueError for foreign data."""
        ...

    def close(self) -> None: ...


def cannot_save(what: str) -> ValueError:
    """The complaint of an environment whose inner state cannot be saved."""
    return ValueError(f"the inner state of {what} cannot be saved; its episodes begin anew at every checkpoint")


def check_state_keys(state: dict[str, Any], expected: set[str], what: str) -> None:
    """Raises ValueError when a saved environment state has other keys than this environment's."""
    if set(state) != expected:
        raise ValueError(f"{what}: saved state has {sorted(state)}, expected {sorted(expected)}; it is of another task")
