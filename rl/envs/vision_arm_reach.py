"""`VisionArmReach-v1`: ArmReach seen by three cameras. The target is in the pictures only.

A critic may be shown more than the actor (asymmetric actor-critic, Pinto et al. 2017): it is not needed to act.

Letters: E environments, N frames of the stack, C = 9 channels of a frame (front, side, top; RGB each), H = W pixels.
"""

from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from rl.config import SupervisionConfig
from rl.envs import arm_reach
from rl.envs import franka_kinematics as franka
from rl.envs.arm_reach import ArmReach
from rl.envs.supervised_sims import SupervisedArmScene
from rl.envs.vector import check_state_keys
from rl.types import ARM_CAMERAS, PRIVILEGED, PictureSpace, TensorTree, VectorStep

CHANNELS = 3 * len(ARM_CAMERAS)
BODY = slice(0, 17)  # of an ArmReach observation: joints, velocities, tool; what the robot knows of itself


def observation_space(image_size: int, frame_stack: int, privileged_critic: bool) -> spaces.Dict:
    """Without a scene that can draw."""
    whole = arm_reach.observation_space(reach_bonus=False)
    seen: dict[str, spaces.Space] = {
        "pixels": PictureSpace(ARM_CAMERAS, frame_stack, image_size, image_size),
        "state": spaces.Box(whole.low[BODY], whole.high[BODY]),
    }
    return spaces.Dict(seen | ({PRIVILEGED: whole} if privileged_critic else {}))


class VisionArmReach:
    """Implements `rl.envs.vector.VectorEnv`.

    Observation: `pixels` (E, N * 9, H, W) uint8, oldest frame first, at the start of an episode the first frame
    repeated; `state` (E, 17) float32, joints, velocities and tool; with `privileged_critic` also `critic` (E, 21), the
    observation of ArmReach with the target in it. One scene draws all environments in turn.
    """

    max_episode_steps: int | None = arm_reach.HORIZON
    resumes_exactly = True

    def __init__(
        self, num_envs: int, device: torch.device | str = "cpu", *, seed: int = 0, random_phase: bool = True,
        image_size: int = 64, frame_stack: int = 4, privileged_critic: bool = False,
        processes: SupervisionConfig | None = None,
    ) -> None:  # fmt: skip
        """`processes`: the scene lives in a supervised process of its own.

        Raises ValueError when nothing can draw, for a frame_stack below 1, and what ArmReach and ArmScene raise.
        """
        if frame_stack < 1:
            raise ValueError(f"frame_stack is {frame_stack}; it must be at least 1")
        self._arm = ArmReach(num_envs, "cpu", seed=seed, random_phase=random_phase)
        self.num_envs, self.device = num_envs, torch.device(device)
        gpu = self.device.index or 0 if self.device.type == "cuda" else None
        self._scene = _scene(image_size, gpu, processes)
        self._shape = (frame_stack, CHANNELS, image_size, image_size)
        self._privileged_critic = privileged_critic
        self.observation_space = observation_space(image_size, frame_stack, privileged_critic)
        self.action_space = self._arm.action_space
        self._stack = torch.empty(0)

    def reset(self, seed: int | None = None) -> TensorTree:
        state = self._arm.reset(seed)
        self._stack = self._repeated(self._draw(state))
        return self._observation(state, self._stack)

    def step(self, actions: Tensor) -> VectorStep:
        """As ArmReach."""
        step = self._arm.step(actions.cpu())
        final, first = step.next_observation, step.observation
        assert isinstance(final, Tensor) and isinstance(first, Tensor)
        final_stack = torch.cat([self._stack[:, 1:], self._draw(final)[:, None]], 1)
        self._stack = final_stack
        if bool(step.truncated.any()):
            self._stack = final_stack.clone()
            self._stack[step.truncated] = self._repeated(self._draw(first[step.truncated]))
        seen = self._observation(first, self._stack)
        return VectorStep(
            observation=seen,
            next_observation=seen if self._stack is final_stack else self._observation(final, final_stack),
            reward=step.reward.to(self.device), terminated=step.terminated.to(self.device),
            truncated=step.truncated.to(self.device), valid=step.valid.to(self.device),
            infos={k: v.to(self.device) for k, v in step.infos.items()},
        )  # fmt: skip

    def posture(self, index: int) -> tuple[Tensor, Tensor, bool]:
        """As ArmReach."""
        return self._arm.posture(index)

    def state_dict(self) -> dict[str, Any]:
        return {"arm": self._arm.state_dict(), "stack": self._stack}

    def load_state_dict(self, state: dict[str, Any]) -> TensorTree:
        check_state_keys(state, {"arm", "stack"}, type(self).__name__)
        if tuple(state["stack"].shape[1:]) != self._shape:
            raise ValueError(
                f"saved pictures are {tuple(state['stack'].shape[1:])}, this task draws {self._shape}: use the "
                "--image_size and --frame_stack of the saved run"
            )
        arm = self._arm.load_state_dict(state["arm"])
        self._stack = state["stack"].clone()
        return self._observation(arm, self._stack)

    def close(self) -> None:
        self._scene.close()

    def _draw(self, states: Tensor) -> Tensor:
        """Newest frames (E, C, H, W) uint8 of ArmReach observations (E, 21)."""
        frames = []
        for row in states.numpy():
            closed = row[arm_reach.DISTANCE][0] < arm_reach.GRIPPER_DISTANCE
            pictures = self._scene.draw(row[: franka.NUM_JOINTS], row[arm_reach.TARGET], bool(closed))
            frames.append(torch.from_numpy(pictures).permute(0, 3, 1, 2).reshape(self._shape[1:]))
        return torch.stack(frames)

    def _repeated(self, frames: Tensor) -> Tensor:
        """(E, N, C, H, W) of one frame each."""
        return frames[:, None].expand(-1, *self._shape).contiguous()

    def _observation(self, state: Tensor, stack: Tensor) -> TensorTree:
        seen = {"pixels": stack.flatten(1, 2).to(self.device), "state": state[:, BODY].to(self.device)}
        return seen | {PRIVILEGED: state.to(self.device)} if self._privileged_critic else seen


def _scene(image_size: int, gpu: int | None, processes: SupervisionConfig | None) -> Any:
    if processes is not None:
        return SupervisedArmScene(image_size, gpu, processes)
    from rl.sims.arm_scene import ArmScene  # a simulator is loaded only when it is chosen

    return ArmScene(image_size, gpu)
