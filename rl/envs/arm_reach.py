"""`ArmReach-v1`: a Franka arm moves its tool to a point; kinematics only, thousands of environments on any device.

Fixed by the id: 0.1 rad a step, 100 steps, tool within 5 cm for 5 consecutive steps is success, targets are reachable
points with z > 0.05 m and 0.3 to 0.75 m from the base. An episode ends by its time limit only (truncation), so its
`success` says whether it was reached and held at any time. Letters: E environments.

All environments step together and an episode always has 100 steps; with random phases (0 to 99 steps of the first
episode count as done) all that end at one step begin the same episode number. So the starts of one episode number are
drawn for all environments at once, from a generator of (seed, reset, episode): the stream is a function of the seed.
"""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from rl.envs import franka_kinematics as franka
from rl.envs.vector import check_state_keys
from rl.types import VectorStep

STEP_RADIANS = 0.1
STEP_SECONDS = 0.1  # so that joint velocities lie within 1 rad/s
HORIZON = 100
SUCCESS_DISTANCE = 0.05  # m
SUCCESS_STEPS = 5
GRIPPER_DISTANCE = 0.15  # m; the gripper closes by itself within it
MIN_TARGET_HEIGHT = 0.05  # m
TARGET_RADIUS = (0.3, 0.75)  # m from the base's origin
REACH_BONUS = 10.0
CANDIDATES = 8  # poses drawn at once for one target; a third is accepted
# Observation: joints 7 (rad), joint velocities 7 (rad/s), tool 3 (m), target 3 (m), distance 1 (m) [, reached 1].
JOINTS, VELOCITIES, TOOL, TARGET, DISTANCE = (
    slice(0, 7), slice(7, 14), slice(14, 17), slice(17, 20), slice(20, 21),
)  # fmt: skip


def observation_space(reach_bonus: bool) -> spaces.Box:
    """Box (21,) float32, with the `reached` flag (22,)."""
    low = [*franka.JOINT_LOW, *[-1.0] * 7, *[-1.5] * 3, *[-TARGET_RADIUS[1]] * 2, MIN_TARGET_HEIGHT, 0.0]
    high = [*franka.JOINT_HIGH, *[1.0] * 7, *[1.5] * 3, *[TARGET_RADIUS[1]] * 3, 3.0]
    if reach_bonus:
        low, high = [*low, 0.0], [*high, 1.0]
    return spaces.Box(np.array(low, np.float32), np.array(high, np.float32))


def sample_targets(count: int, generator: torch.Generator) -> Tensor:
    """(count, 3) float32 tool positions of uniformly drawn joint positions, as far as the task allows them."""
    low, high = franka.joint_limits()
    targets, missing = torch.empty(count, 3), torch.arange(count)
    while len(missing):
        N = len(missing)
        q = low[:, None] + (high - low)[:, None] * torch.rand(7, CANDIDATES * N, generator=generator)
        points = franka.tool_position(q)
        radius = points.norm(dim=0)
        allowed = (points[2] > MIN_TARGET_HEIGHT) & (radius > TARGET_RADIUS[0]) & (radius < TARGET_RADIUS[1])
        allowed = allowed.view(CANDIDATES, N)
        first = allowed.int().argmax(0)
        found = allowed.any(0)
        chosen = points.view(3, CANDIDATES, N)[:, first, torch.arange(N)]
        targets[missing[found]] = chosen[:, found].t()
        missing = missing[~found]
    return targets


class ArmReach:
    """Implements `rl.envs.vector.VectorEnv`. `infos` of a step: success, distance (m), gripper_closed; (E,) each.

    The reward is minus the distance after the step (m). With `reach_bonus` the first step within 5 cm gives +10 and
    the observation says whether that has happened: without the flag the reward would not be Markov.
    """

    max_episode_steps: int | None = HORIZON
    resumes_exactly = True

    def __init__(
        self, num_envs: int, device: torch.device | str = "cpu", *, seed: int = 0,
        random_phase: bool = True, reach_bonus: bool = False,
    ) -> None:  # fmt: skip
        """`random_phase`: first episodes begin at a random step of their 100, so that ends are spread over time;
        evaluation wants False. Raises ValueError for num_envs below 1 and a negative seed."""
        if num_envs < 1:
            raise ValueError(f"num_envs is {num_envs}; it must be at least 1")
        self.num_envs, self.device = num_envs, torch.device(device)
        self.random_phase, self.reach_bonus = random_phase, reach_bonus
        self.observation_space = observation_space(reach_bonus)
        self.action_space = spaces.Box(-1.0, 1.0, (franka.NUM_JOINTS,), np.float32)
        self._low, self._high = franka.joint_limits(self.device)
        home = torch.tensor([franka.HOME])
        self._home = torch.cat([home, torch.zeros(1, 7), franka.tool_position(home.t()).t()], 1)  # (1, 17)
        self._seed, self._resets = _checked_seed(seed), 0
        self._time = 0  # steps since the last reset
        self._obs = self._starts = torch.empty(0)
        self._begun = self._held = torch.empty(0)
        self._lost: Tensor | None = None  # (E,) bool: arms whose simulator was lost in the last `_move`

    def reset(self, seed: int | None = None) -> Tensor:
        """(E, 21 or 22) float32."""
        if seed is not None:
            self._seed, self._resets = _checked_seed(seed), 0
        else:
            self._resets += 1
        self._time = 0
        phase = torch.zeros(self.num_envs, dtype=torch.int32)
        if self.random_phase:
            phase = torch.randint(HORIZON, (self.num_envs,), generator=self._generator(0), dtype=torch.int32)
        self._begun = -phase.to(self.device)  # time at which the running episode began
        self._held = torch.zeros(self.num_envs, dtype=torch.int32, device=self.device)  # steps within 5 cm; 5 stays
        self._obs = self._draw_starts(1)
        self._begin_episodes(torch.ones(self.num_envs, dtype=torch.bool, device=self.device))
        return self._obs

    def step(self, actions: Tensor) -> VectorStep:
        """`actions` (E, 7) in [-1, 1]: joint position changes in units of 0.1 rad."""
        if actions.shape != (self.num_envs, franka.NUM_JOINTS):
            raise ValueError(f"actions have shape {tuple(actions.shape)}, expected ({self.num_envs}, 7)")
        if self._obs.numel() == 0:
            raise ValueError("no episode is running: call reset() first")
        obs, q = self._obs, self._obs[:, JOINTS]
        moved, velocity = self._move(q, actions)
        tool = franka.tool_position(moved.t().contiguous())
        target = obs[:, TARGET]
        offset = tool - target.t()
        distance = (offset * offset).sum(0).sqrt_()
        near = distance < SUCCESS_DISTANCE
        success = self._held >= SUCCESS_STEPS
        held = ((self._held + 1) * near).masked_fill(success, SUCCESS_STEPS)
        reward, parts = -distance, [moved, velocity, tool.t(), target, distance[:, None]]
        if self.reach_bonus:
            reached = torch.maximum(obs[:, 21], near.float())
            reward = torch.add(reward, reached - obs[:, 21], alpha=REACH_BONUS)
            parts.append(reached[:, None])
        final = torch.cat(parts, 1)
        if self._time % HORIZON == 0:
            self._starts = self._draw_starts(2 + self._time // HORIZON)
        self._time += 1
        ended = self._time - self._begun == HORIZON
        if self._lost is not None:  # the episode is dropped and its number begun again
            ended = ended | self._lost
        self._begun = self._begun.masked_fill(ended, self._time)
        self._held = held.masked_fill(ended, 0)
        self._obs = torch.where(ended[:, None], self._starts, final)
        self._begin_episodes(ended)
        return VectorStep(
            observation=self._obs, next_observation=final, reward=reward,
            terminated=torch.zeros_like(ended), truncated=ended,
            valid=torch.ones_like(ended) if self._lost is None else ~self._lost, lost=self._lost,
            infos={
                "success": held >= SUCCESS_STEPS, "distance": distance, "gripper_closed": distance < GRIPPER_DISTANCE,
            },
        )  # fmt: skip

    def posture(self, index: int) -> tuple[Tensor, Tensor, bool]:
        """Joints (7,), target (3,) and whether the gripper is closed, of one environment; for pictures."""
        row = self._obs[index].cpu()
        return row[JOINTS], row[TARGET], bool(row[DISTANCE] < GRIPPER_DISTANCE)

    def state_dict(self) -> dict[str, Any]:
        return {
            "seed": self._seed, "resets": self._resets, "time": self._time,
            "observation": self._obs.cpu(), "begun": self._begun.cpu(), "held": self._held.cpu(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> Tensor:
        expected = {"seed", "resets", "time", "observation", "begun", "held"}
        check_state_keys(state, expected, type(self).__name__)
        shape = (self.num_envs, *self.observation_space.shape)
        if tuple(state["observation"].shape) != shape:
            raise ValueError(
                f"saved environment state is of {tuple(state['observation'].shape)}, this one of {shape}: use the "
                "number of environments and the reward of the saved run"
            )
        self._seed, self._resets, self._time = state["seed"], state["resets"], state["time"]
        self._obs, self._begun, self._held = (state[k].to(self.device) for k in ("observation", "begun", "held"))
        if self._time % HORIZON != 0:
            self._starts = self._draw_starts(2 + self._time // HORIZON)
        return self._obs

    def close(self) -> None:
        """Nothing to release."""

    def _move(self, q: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Joint positions and velocities, (E, 7) each, after one step from positions `q`."""
        moved = torch.add(q, actions.clamp(-1.0, 1.0), alpha=STEP_RADIANS)
        moved = moved.maximum(self._low).minimum(self._high)
        return moved, (moved - q).div_(STEP_SECONDS)

    def _begin_episodes(self, where: Tensor) -> None:
        """Hook of environments whose arms must be put in place; (E,) bool."""

    def _generator(self, episode: int) -> torch.Generator:
        """On the CPU, so that every device sees the same episodes. Number 0 is for the phases."""
        high, low = np.random.SeedSequence([self._seed, self._resets, episode]).generate_state(2)
        return torch.Generator().manual_seed(int(high) << 31 | int(low) >> 1)

    def _draw_starts(self, episode: int) -> Tensor:
        """First observations (E, 21 or 22) of episode number `episode` (from 1) of every environment."""
        targets = sample_targets(self.num_envs, self._generator(episode))
        home = self._home.expand(self.num_envs, -1)
        distance = (home[:, TOOL] - targets).norm(dim=1, keepdim=True)
        parts = [home, targets, distance]
        if self.reach_bonus:
            parts.append(torch.zeros_like(distance))
        return torch.cat(parts, 1).to(self.device)


def _checked_seed(seed: int) -> int:
    if seed < 0:
        raise ValueError(f"seed is {seed}; it must not be negative")
    return seed
