"""The gymnasium environments of F1-VLA: a simulator, the histories, and a view for each phase.

Teacher view: head camera in `image0`, wrist camera in `image1` and `image0_history`. Student view (phases student and
adversarial): wrist camera in `image0` and `image0_history`; the head camera is in `info["privileged"]["head"]` only.
"""

import dataclasses
from typing import Any

import cv2
import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium import spaces

from rl.config import EnvironmentConfig
from rl.envs.history import History
from rl.sims import make_simulator
from rl.types import Frame, Observation, StepReward

MAX_ACTION_DIM = 32
MAX_STATE_DIM = 32
PHASES = ("teacher", "student", "adversarial")
TASKS = ("random_exploration",)


def gpu_of(device: str) -> int | None:
    """`cuda:i` -> i, `cuda` -> 0, `cpu` -> None (software rendering first)."""
    kind, _, index = device.partition(":")
    if kind == "cpu" and not index:
        return None
    if kind == "cuda" and (not index or index.isdigit()):
        return int(index or 0)
    raise ValueError(f"device '{device}': write cpu, cuda or cuda:INDEX")


def area_resized(image: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Square picture at `size` px by area averaging; the same object when it has that size."""
    if image.shape[0] == size:
        return image
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), np.uint8)


class F1RLEnv(gym.Env[dict[str, Any], npt.NDArray[np.float32]]):
    """One robot at a table; episodes end by truncation only. Training computes intrinsic rewards in the collector, for
    all environments at once, and the reward here is 0; a single environment takes them from `teacher_policy`
    (`rl.training.step_reward.IntrinsicStepReward`), with the components in `info["reward_components"]`.

    An episode is a pure function of (seed, rank, env_index, episode index). The episode index starts at 0 and rises by
    one with every reset; `reset(options={"episode": n})` jumps, `reset(seed=s)` starts over with another seed.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 20}

    def __init__(
        self,
        task_config: EnvironmentConfig,
        phase: str = "teacher",
        teacher_policy: StepReward | None = None,
        history_length: int = 4,
        max_steps: int = 50,
        device: str = "cpu",
        action_scale: float | None = None,
        single_arm: bool = True,
        *,
        obs_img_stride: int = 1,
        seed: int = 0,
        rank: int = 0,
        env_index: int = 0,
        render_mode: str | None = None,
        scene_facts: bool = False,
    ) -> None:
        """Raises ValueError for values no environment can have. `action_scale` replaces the configured one (rad).

        scene_facts: `info["privileged"]` also has the simulator's `facts()`, for evaluation.
        """
        _check(task_config, phase, teacher_policy, max_steps, single_arm, render_mode)
        if action_scale is not None:
            task_config = dataclasses.replace(task_config, action_scale=action_scale)
        if task_config.action_scale <= 0:
            raise ValueError(f"action_scale is {task_config.action_scale} rad; it must be positive")
        self.task_config, self.phase, self.max_steps = task_config, phase, max_steps
        self.render_mode, self.teacher_policy = render_mode, teacher_policy
        self.sim = make_simulator(task_config, seed=seed, rank=rank, env_index=env_index, gpu=gpu_of(device))
        self.scene_facts = scene_facts
        if scene_facts:
            self.sim.watch_contacts = True
        self.action_dim, self.state_dim = self.sim.action_dim, self.sim.state_dim
        # True where a padded dimension is a real one.
        self.action_mask = np.arange(MAX_ACTION_DIM) < self.action_dim
        self.state_mask = np.arange(MAX_STATE_DIM) < self.state_dim
        wm = task_config.wm_size
        self._history = History(history_length, obs_img_stride, (wm, wm, 3), MAX_ACTION_DIM)
        self.action_space = spaces.Box(-1.0, 1.0, (MAX_ACTION_DIM,), np.float32)
        self.observation_space = _observation_space(task_config, phase, history_length, obs_img_stride)
        self.episode_index = -1  # of the running episode
        self.next_episode = 0  # what the next reset starts; writable (resume)
        self._steps = 0
        self._running = False
        self._head: npt.NDArray[np.uint8] | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Begins the next episode. Raises ValueError for unknown options."""
        super().reset(seed=seed)
        if seed is not None:
            self.sim.set_seed(seed)
            self.next_episode = 0
        options = options or {}
        if unknown := set(options) - {"episode"}:
            raise ValueError(f"reset options {sorted(unknown)} are unknown; there is: episode")
        if "episode" in options:
            self.next_episode = int(options["episode"])
        self.sim.reset(self.next_episode)
        self.episode_index, self.next_episode = self.next_episode, self.next_episode + 1
        self._steps, self._running = 0, True
        wrist = self._look()
        self._history.reset(area_resized(wrist, self.task_config.wm_size))
        if self.teacher_policy is not None:
            self.teacher_policy.begin(self._frame(wrist))
        return self._observe(wrist), self._info()

    def step(self, action: npt.NDArray[np.float32]) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Executes the real dims of `action` (32,) in [-1, 1]. Raises ValueError for a wrong shape, for numbers that
        are not finite and when no episode is running."""
        action = np.asarray(action)
        if action.shape != (MAX_ACTION_DIM,):
            raise ValueError(f"action has shape {action.shape}; this environment takes ({MAX_ACTION_DIM},)")
        if not self._running:
            raise ValueError("no episode is running: call reset() first")
        executed = np.zeros(MAX_ACTION_DIM, np.float32)
        executed[: self.action_dim] = self.sim.step(action[: self.action_dim])
        self._steps += 1
        truncated = self._steps >= self.max_steps
        self._running = not truncated
        wrist = self._look()
        self._history.append(executed, area_resized(wrist, self.task_config.wm_size))
        info = self._info()
        info["executed_action"] = executed
        reward = 0.0
        if self.teacher_policy is not None:
            reward, info["reward_components"] = self.teacher_policy.step(executed, self._frame(wrist))
        return self._observe(wrist), reward, False, truncated, info

    def render(self) -> npt.NDArray[np.uint8] | None:  # type: ignore[override]
        """Head and wrist camera side by side, (vlm, 2 vlm, 3) uint8; None unless render_mode is rgb_array."""
        if self.render_mode is None:
            return None
        if self.episode_index < 0:
            raise ValueError("nothing to render: call reset() first")
        size = self.task_config.vlm_size
        return np.concatenate([self.sim.render("head"), area_resized(self.sim.render("wrist"), size)], axis=1)

    def rebuild(self) -> None:
        """Drops the running episode and the scene; the next reset begins that episode again in a scene built anew."""
        self.sim.rebuild()
        self.next_episode = max(self.episode_index, 0)
        self._running = False

    def close(self) -> None:
        """Releases the simulator."""
        self.sim.close()

    def _look(self) -> npt.NDArray[np.uint8]:
        """Draws both cameras, each once; returns the wrist picture at its render size."""
        self._head = self.sim.render("head")
        return self.sim.render("wrist")

    def _frame(self, wrist: npt.NDArray[np.uint8]) -> Frame:
        assert self._head is not None
        config = self.task_config
        seen = area_resized(wrist, config.wm_size), area_resized(wrist, config.vlm_size)
        return Frame(self._head, *seen, self._state())

    def _state(self) -> npt.NDArray[np.float32]:
        state = np.zeros(MAX_STATE_DIM, np.float32)
        state[: self.state_dim] = self.sim.state()
        return state

    def _observe(self, wrist: npt.NDArray[np.uint8]) -> dict[str, Any]:
        assert self._head is not None
        view, state = self._history.view(), self._state()
        wrist = area_resized(wrist, self.task_config.vlm_size)
        cameras: Observation = {"image0": self._head, "image1": wrist} if self.phase == "teacher" else {"image0": wrist}
        return {
            **cameras,
            "image0_history": view.images,
            "history_mask": view.valid.astype(np.int8),
            "action_history": view.actions,
            "action_known": view.action_known.astype(np.int8),
            "state": state,
        }

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {"episode_index": self.episode_index}
        if self.phase != "teacher":
            info["privileged"] = {"head": self._head, **(self.sim.facts() if self.scene_facts else {})}
        return info


class TeacherEnv(F1RLEnv):
    """`F1RLEnv` in the teacher view."""

    def __init__(self, task_config: EnvironmentConfig, **kwargs: Any) -> None:
        super().__init__(task_config, "teacher", **kwargs)


class StudentEnv(F1RLEnv):
    """`F1RLEnv` in the student view."""

    def __init__(self, task_config: EnvironmentConfig, **kwargs: Any) -> None:
        super().__init__(task_config, "student", **kwargs)


def _check(
    config: EnvironmentConfig,
    phase: str,
    teacher_policy: Any,
    max_steps: int,
    single_arm: bool,
    render_mode: str | None,
) -> None:
    if not isinstance(config, EnvironmentConfig):
        raise ValueError(f"task_config is {type(config).__name__}; pass the `environment` block as EnvironmentConfig")
    if phase not in PHASES:
        raise ValueError(f"phase '{phase}' is unknown; there are: {', '.join(PHASES)}")
    if teacher_policy is not None and not all(callable(getattr(teacher_policy, n, None)) for n in ("begin", "step")):
        raise ValueError(
            f"teacher_policy is a {type(teacher_policy).__name__}; pass what has begin(frame) and step(action, frame), "
            "such as rl.training.step_reward.IntrinsicStepReward, or None"
        )
    if config.task_name not in TASKS:
        raise ValueError(f"environment.task_name '{config.task_name}' is unknown; there are: {', '.join(TASKS)}")
    if not (single_arm and config.single_arm):
        raise ValueError("single_arm is false; there is no two-armed embodiment, set environment.single_arm to true")
    if max_steps < 1:
        raise ValueError(f"max_steps is {max_steps}; it must be at least 1")
    if render_mode not in (None, "rgb_array"):
        raise ValueError(f"render_mode '{render_mode}' is unknown; there is: rgb_array")
    for name, size in [("vlm_size", config.vlm_size), ("wm_size", config.wm_size)]:
        if not 64 <= size <= 256:
            raise ValueError(f"environment.{name} is {size} px; it must lie between 64 and 256")


def _observation_space(config: EnvironmentConfig, phase: str, slots: int, stride: int) -> spaces.Dict:
    vlm, wm = config.vlm_size, config.wm_size
    picture = spaces.Box(0, 255, (vlm, vlm, 3), np.uint8)
    cameras: dict[str, spaces.Space[Any]] = {"image0": picture}
    if phase == "teacher":
        cameras["image1"] = picture
    return spaces.Dict(
        {
            **cameras,
            "image0_history": spaces.Box(0, 255, (slots, wm, wm, 3), np.uint8),
            "history_mask": spaces.MultiBinary(slots),
            "action_history": spaces.Box(-stride, stride, (slots, MAX_ACTION_DIM), np.float32),
            "action_known": spaces.MultiBinary(slots),
            "state": spaces.Box(-np.inf, np.inf, (MAX_STATE_DIM,), np.float32),
        }
    )
