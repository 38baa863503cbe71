"""Isaac Lab environments (DirectRLEnv, ManagerBasedRLEnv) as the project's `rl.envs.vector.VectorEnv`.

Written for Isaac Lab 3.0, which runs without Isaac Sim on Newton physics, with or without a GPU; what 2.3 lacks is
noted below (that version was not run). Isaac Lab is imported by `make` only. It steps all environments of a process in
one simulator, of which there can be only one: evaluations play in the training's simulator (`evaluating`).

Isaac Lab resets ended environments inside `step` and then observes, writes rewards and flags into buffers that it uses
again, and gives actions no bounds. It is stepped in torch's inference mode, which makes its many small operations
cheaper by a twentieth; what leaves here are ordinary tensors. Letters: E environments.
"""

import logging
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor

from rl.types import TensorTree, VectorStep

log = logging.getLogger(__name__)
OBSERVED = "policy"  # observation group of the actor; the group "critic" holds what only the critic may see


class IsaacLabEnv:
    """Implements `VectorEnv`; tensors stay on the simulator's device and are copies."""

    resumes_exactly = False

    def __init__(
        self, env: Any, action_limit: float | None, random_phase: bool, seed: int,
        close: Callable[[], None] | None = None, robots: str = "unknown robots",
    ) -> None:  # fmt: skip
        """`env` is the Isaac Lab environment, unwrapped. `close` runs after the environment was closed. `robots` as in
        `isaaclab_assets.robots_of`.

        Raises ValueError for spaces it cannot serve.
        """
        self.env, self._random_phase, self._after_close, self.robots = env, random_phase, close, robots
        self.num_envs, self.device = int(env.num_envs), torch.device(env.device)
        self._length = int(env.max_episode_length)
        self.max_episode_steps: int | None = self._length
        self.step_seconds = float(env.step_dt)
        self.observation_space = observation_space(env.single_observation_space)
        self.action_space = bounded(env.single_action_space, action_limit)
        self._limit = action_limit if isinstance(self.action_space, gym.spaces.Box) else None
        self._finite_horizon = bool(env.cfg.is_finite_horizon)
        if not getattr(env.cfg, "compute_final_obs", False):  # before 3.0
            log.warning(
                "this Isaac Lab does not tell the last observation of an episode: the one before it stands in where "
                "time cut an episode (as rsl_rl does)"
            )
        self._seed, self._restarts = seed, -1
        self._last: TensorTree | None = None

    def reset(self, seed: int | None = None) -> TensorTree:
        if seed is not None:
            self._seed, self._restarts = seed, -1
        self._restarts += 1
        state = np.random.SeedSequence([self._seed, self._restarts]).generate_state(1)
        with torch.inference_mode():
            observation, _ = self.env.reset(seed=int(state[0]) >> 1)
            if self._random_phase:
                self.env.episode_length_buf = torch.randint_like(self.env.episode_length_buf, high=self._length)
        self._last = copied(observation)
        return self._last

    def step(self, actions: Tensor) -> VectorStep:
        """`actions` as `VectorEnv` says; (E,) or (E, ...)."""
        expected = (self.num_envs, *(self.action_space.shape or ()))
        if actions.shape != expected:
            raise ValueError(f"actions have shape {tuple(actions.shape)}, expected {expected}")
        if self._limit is not None:
            actions = actions.clamp(-self._limit, self._limit)
        with torch.inference_mode():
            observation, reward, terminated, truncated, extras = self.env.step(actions.to(self.device))
        following = copied(observation)
        ended = terminated | truncated
        # Rows of "final_obs" are of this step where an episode ended in it, and stale elsewhere.
        final = flat(extras["final_obs"]) if "final_obs" in extras else self._last
        assert final is not None, "step before reset"
        self._last = following
        if self._finite_horizon:  # its end of time belongs to the task: nothing comes after it
            terminated, truncated = ended, torch.zeros_like(ended)
        return VectorStep(
            observation=following,
            next_observation=_where(ended, final, following),
            reward=reward.float().clone(),
            terminated=terminated.clone(),
            truncated=truncated & ~terminated,
            valid=torch.ones_like(ended),
            infos={},
        )

    def evaluating(self) -> "IsaacLabEnv":
        """The same simulator for an evaluation: episodes begin at their beginning, and what `close` ends is only that
        the steps count for the task's curriculum.

        Afterwards the training begins its episodes anew.
        """
        return _Evaluating(self)

    @property
    def steps_taken(self) -> int:
        """Steps of the training so far, by which tasks with a curriculum change their rewards. To be set before the
        `reset` of a run that goes on."""
        return int(self.env.common_step_counter)

    @steps_taken.setter
    def steps_taken(self, steps: int) -> None:
        self.env.common_step_counter = steps

    def compare_robots(self, trained_with: str | None) -> None:
        """Warns where they are others than these; None where a run of an earlier version did not note them."""
        if trained_with not in (None, self.robots):
            log.warning(
                "this policy was trained with %s, but here are %s: returns differ. The variable ISAACSIM_ASSET_ROOT "
                "chooses the folder (the run's isaaclab.asset_root, if any, wins); `python -m rl.sims.isaaclab_assets` "
                "prints that of this project's", trained_with, self.robots,
            )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        raise ValueError("the inner state of Isaac Lab cannot be saved; its episodes begin anew at every checkpoint")

    def load_state_dict(self, state: dict[str, Any]) -> TensorTree:
        raise ValueError("the inner state of Isaac Lab cannot be saved; its episodes begin anew at every checkpoint")

    def close(self) -> None:
        """A second call does nothing."""
        self.env.close()
        if self._after_close is not None:
            self._after_close()
            self._after_close = None


class _Evaluating(IsaacLabEnv):
    """A view of another one's simulator."""

    def __init__(self, owner: IsaacLabEnv) -> None:
        self.__dict__.update(owner.__dict__)
        self._random_phase = False
        self._steps_before = owner.steps_taken

    def close(self) -> None:
        self.steps_taken = self._steps_before


def observation_space(space: gym.spaces.Dict) -> gym.Space[Any]:
    """The Box of the group `policy` where there is no other; else a Dict by group, or group_term for single terms.

    Raises ValueError for observations that are not numbers.
    """
    flat: dict[str, gym.Space[Any]] = {}
    for group, s in space.spaces.items():
        if isinstance(s, gym.spaces.Dict):
            flat |= {f"{group}_{term}": part for term, part in s.spaces.items()}
        else:
            flat[group] = s
    wrong = [name for name, s in flat.items() if not isinstance(s, gym.spaces.Box)]
    if wrong:
        raise ValueError(f"observations {', '.join(wrong)} are no Box; choose another task")
    return flat[OBSERVED] if set(flat) == {OBSERVED} else gym.spaces.Dict(flat)


def bounded(space: gym.Space[Any], limit: float | None) -> gym.Space[Any]:
    """A Box with bounds -limit and limit instead of its own; other spaces as they are."""
    if not isinstance(space, gym.spaces.Box) or limit is None:
        return space
    return gym.spaces.Box(-limit, limit, space.shape, np.float32)


def flat(observation: dict[str, Any]) -> TensorTree:
    """Isaac Lab's dict of groups, laid out as `observation_space` says; its own memory."""
    named: dict[str, Tensor] = {}
    for group, values in observation.items():
        if isinstance(values, dict):
            named |= {f"{group}_{term}": v for term, v in values.items()}
        else:
            named[group] = values
    return named[OBSERVED] if set(named) == {OBSERVED} else named


def copied(observation: dict[str, Any]) -> TensorTree:
    """The same in memory of ours."""
    tree = flat(observation)
    return tree.clone() if isinstance(tree, Tensor) else {k: v.clone() for k, v in tree.items()}


def _where(rows: Tensor, yes: TensorTree, no: TensorTree) -> TensorTree:
    """Rows of `yes` where `rows` (E,), else of `no`."""
    if isinstance(no, Tensor):
        assert isinstance(yes, Tensor)
        return torch.where(rows.view(-1, *[1] * (no.dim() - 1)), yes, no)
    assert isinstance(yes, dict)
    return {k: torch.where(rows.view(-1, *[1] * (v.dim() - 1)), yes[k], v) for k, v in no.items()}
