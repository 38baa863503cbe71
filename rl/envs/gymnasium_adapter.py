"""Gymnasium environments behind the project's vector interface, whatever their autoreset.

| mode      | a step that ends an episode returns    | afterwards                            | here                    |
| SAME_STEP | the first observation, last in `infos` | goes on                               | both are told apart     |
| NEXT_STEP | the last observation                   | one step that ignores its action      | that row is not `valid` |
| DISABLED  | the last observation                   | waits for `reset(options=reset_mask)` | reset at once           |
"""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor

from rl.config import SupervisionConfig
from rl.envs.process_vector import ProcessVectorEnv
from rl.envs.vector import cannot_save
from rl.types import TensorTree, VectorStep

Array = npt.NDArray[Any]
ArrayTree = Array | dict[str, Array]


class GymnasiumEnv:
    """Implements `rl.envs.vector.VectorEnv` on a `SyncVectorEnv`; one copy to the device a step.

    The inner state of an environment cannot be saved. Without `processes`, one that crashes takes this process along.
    """

    resumes_exactly = False

    def __init__(
        self, make: Callable[[], gym.Env[Any, Any]], num_envs: int, device: torch.device | str = "cpu", *,
        seed: int = 0, autoreset: AutoresetMode = AutoresetMode.SAME_STEP, processes: SupervisionConfig | None = None,
    ) -> None:  # fmt: skip
        """`make` builds one environment. `processes`: each in a supervised process of its own (SAME_STEP autoreset);
        None: all in this one. Raises ValueError for num_envs below 1, a negative seed and spaces that are not Box,
        Discrete, MultiDiscrete (actions) or Box and Dict of Box (observations)."""
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; it must be at least 1")
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must not be negative")
        if processes is None:
            self._envs = SyncVectorEnv([make] * num_envs, autoreset_mode=autoreset)
        else:
            assert autoreset is AutoresetMode.SAME_STEP
            self._envs = ProcessVectorEnv([make] * num_envs, processes)
        self.num_envs, self.device = num_envs, torch.device(device)
        self.autoreset = autoreset
        self.observation_space = self._envs.single_observation_space
        self.action_space = self._envs.single_action_space
        _check_spaces(self.observation_space, self.action_space)
        spec = self._envs.envs[0].spec
        self.max_episode_steps = None if spec is None else spec.max_episode_steps
        self._seed, self._restarts = seed, -1
        self._resetting = np.zeros(num_envs, np.bool_)  # the next step is the reset step of NEXT_STEP

    def reset(self, seed: int | None = None) -> TensorTree:
        if seed is not None:
            self._seed, self._restarts = seed, -1
        self._restarts += 1
        seeds = np.random.SeedSequence([self._seed, self._restarts]).generate_state(self.num_envs)
        observation, _ = self._envs.reset(seed=[int(s) >> 1 for s in seeds])
        self._resetting[:] = False
        return self._to_device(observation)

    def step(self, actions: Tensor) -> VectorStep:
        """`actions` as `VectorEnv` says; (E,) or (E, ...)."""
        valid = ~self._resetting
        observation, reward, terminated, truncated, infos = self._envs.step(self._to_numpy(actions))
        truncated = truncated & ~terminated
        ended = terminated | truncated
        final: ArrayTree = observation
        if self.autoreset is AutoresetMode.NEXT_STEP:
            self._resetting = ended
        elif ended.any() and self.autoreset is AutoresetMode.SAME_STEP:
            final = _with_rows(observation, infos["final_obs"], ended)
        elif ended.any():
            observation, _ = self._envs.reset(options={"reset_mask": ended})
        following = self._to_device(observation)
        lost = self._envs.lost if isinstance(self._envs, ProcessVectorEnv) else None
        if lost is not None:
            valid = valid & ~lost
        return VectorStep(
            observation=following,
            next_observation=following if final is observation else self._to_device(final),
            reward=torch.from_numpy(reward.astype(np.float32)).to(self.device),
            terminated=torch.from_numpy(terminated).to(self.device),
            truncated=torch.from_numpy(truncated).to(self.device),
            valid=torch.from_numpy(valid).to(self.device),
            infos={},
            lost=None if lost is None else torch.from_numpy(lost.copy()).to(self.device),
        )

    def render(self) -> npt.NDArray[np.uint8]:
        """Picture (H, W, 3) of the first environment, which must have been made with render_mode rgb_array."""
        picture = self._envs.envs[0].render()
        if picture is None:
            raise ValueError("this environment draws nothing: make it with render_mode rgb_array")
        return np.asarray(picture, np.uint8)

    def state_dict(self) -> dict[str, Any]:
        raise cannot_save("a gymnasium environment")

    def load_state_dict(self, state: dict[str, Any]) -> TensorTree:
        raise cannot_save("a gymnasium environment")

    def close(self) -> None:
        self._envs.close()

    def _to_device(self, value: ArrayTree) -> TensorTree:
        if isinstance(value, dict):
            return {k: _tensor(v, self.device) for k, v in value.items()}
        return _tensor(value, self.device)

    def _to_numpy(self, actions: Tensor) -> Array:
        """The array `SyncVectorEnv` wants; Box actions are clipped to their bounds."""
        array = actions.detach().cpu().numpy()
        expected = (self.num_envs, *(self.action_space.shape or ()))
        if array.shape != expected:
            raise ValueError(f"actions have shape {array.shape}, expected {expected}")
        if isinstance(self.action_space, gym.spaces.Box):
            return np.clip(array, self.action_space.low, self.action_space.high)
        return array


def _check_spaces(observation: gym.Space[Any], action: gym.Space[Any]) -> None:
    if not isinstance(action, gym.spaces.Box | gym.spaces.Discrete | gym.spaces.MultiDiscrete):
        raise ValueError(f"action space {action} is not supported; there are Box, Discrete and MultiDiscrete")
    if isinstance(action, gym.spaces.Discrete) and action.start != 0:
        raise ValueError(f"action space {action} does not begin at 0; wrap the environment so that it does")
    parts = observation.values() if isinstance(observation, gym.spaces.Dict) else [observation]
    if not all(isinstance(p, gym.spaces.Box) for p in parts):
        raise ValueError(f"observation space {observation} is not supported; there are Box and Dict of Box")


def _tensor(value: Array, device: torch.device) -> Tensor:
    """A tensor of its own memory; float64 becomes float32."""
    tensor = torch.tensor(value, device=device)
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _with_rows(observation: ArrayTree, rows: Array, where: npt.NDArray[np.bool_]) -> ArrayTree:
    """Copy of `observation` (E, ...) with `rows[i]`, one observation, wherever `where`."""
    indices = [int(i) for i in np.flatnonzero(where)]
    if isinstance(observation, dict):
        return {k: _replaced(v, {i: rows[i][k] for i in indices}) for k, v in observation.items()}
    return _replaced(observation, {i: rows[i] for i in indices})


def _replaced(values: Array, rows: dict[int, Array]) -> Array:
    values = values.copy()
    for i, row in rows.items():
        values[i] = row
    return values
