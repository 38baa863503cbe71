"""Intrinsic rewards of one environment, step by step: for users' own loops over `StudentEnv(teacher_policy=...)`.

Training scores whole episodes of all environments together (`reward_model`), which is many times faster.
"""

import numpy as np
import torch
from torch import Tensor

from f1_vla.ensemble import mean_over_scales
from rl.config import StudentConfig
from rl.data.episode_buffer import EpisodeFeatures, window_of
from rl.data.intrinsic import ReturnScale, action_rate, memory_divergence, reward_components, total_reward
from rl.training.reward_model import KINDS, RewardModel
from rl.types import EpisodeRecord, FloatArray, Frame


class IntrinsicStepReward:
    """`StepReward` by the frozen policy of `model`. One decision is one step here, whatever `chunk_exec_steps` says."""

    def __init__(
        self, model: RewardModel, student: StudentConfig, action_mask: Tensor, scale: ReturnScale | None = None
    ) -> None:
        """action_mask bool (A,). scale: of a student run, brings components to the size that training saw; None: raw.

        Raises ValueError for a model with a stride, whose target is not known one step later.
        """
        if model.policy.cfg.obs_img_stride != 1:
            raise ValueError(
                f"arch.obs_img_stride is {model.policy.cfg.obs_img_stride}: rewards step by step need 1, because the "
                "predicted frame must be the next one"
            )
        self.model, self.student, self.mask, self.scale = model, student, action_mask, scale
        self._episode: EpisodeFeatures | None = None
        self._wrist = self._full = torch.zeros(0)

    def begin(self, frame: Frame) -> None:
        self._episode = self._encode(frame)
        self._wrist = self._full = self.model.policy.initial_memory_state(1)

    def step(self, action: FloatArray, frame: Frame) -> tuple[float, dict[str, float]]:
        """Raises ValueError before `begin`."""
        if self._episode is None:
            raise ValueError("IntrinsicStepReward.step before begin: an episode begins with begin(frame)")
        self._episode = _appended(self._episode, action, self._encode(frame))
        t = self._episode.num_steps - 1
        window = window_of(self._episode, t, 1, self.model.policy.cfg.n_obs_img_steps, 1)
        windows = {k: v[None] for k, v in window.items()}
        self.model.policy.eval()
        out, wrist = self.model.unroll(windows, 1, self._wrist, head=False)
        _, full = self.model.unroll(windows, 1, self._full, head=True)
        device = self._wrist.device
        self._wrist, self._full = (s[:, -1].permute(1, 0, 2).contiguous().to(device) for s in (wrist, full))
        uncertainty = {k: mean_over_scales(out[k], self.model.sizes) for k in KINDS if k in out}
        last = self._episode.actions_TA[None, -2:]
        raw = reward_components(
            self.student.rewards, memory_divergence(full, wrist), uncertainty, last[:, -1:], self.mask,
            self.student.ppo.gamma, chunk=1,
        )  # fmt: skip
        if t > 0:
            raw["action_rate"] = action_rate(last, self.mask)[:, -1:]
        scaled = raw if self.scale is None else self.scale.scaled(raw)
        return float(total_reward(self.student.rewards, raw, scaled)), {k: float(v) for k, v in raw.items()}

    def _encode(self, frame: Frame) -> EpisodeFeatures:
        """An episode of one frame and no action."""
        pictures = (frame.head[None], frame.wrist[None], frame.wrist_vlm[None], frame.state[None])
        nothing = np.zeros((0, len(self.mask)), np.float32)
        return self.model.data.encode(EpisodeRecord(*pictures, nothing, 0, 0), 0)


def _appended(episode: EpisodeFeatures, action: FloatArray, newest: EpisodeFeatures) -> EpisodeFeatures:
    """The episode with one action and the frame it led to."""
    parts = {
        name: torch.cat([getattr(episode, name), getattr(newest, name)])
        for name in ("ids_FL", "latents_FCPP", "vision", "states_FS")
    }
    actions = torch.cat([episode.actions_TA, torch.from_numpy(action)[None]])
    memory = torch.cat([episode.memory_TMH, torch.zeros(1, *episode.memory_TMH.shape[1:], dtype=torch.float16)])
    return EpisodeFeatures(**parts, actions_TA=actions, memory_TMH=memory, index=episode.index)
