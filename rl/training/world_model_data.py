"""From episodes as pictures to world-model batches: frozen features once a frame, windows on demand.

Letters: E episodes, T steps, F = T + 1 frames, B batch, N cameras (head, wrist), M memory layers.
"""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from f1_vla.batch import F1Batch, FrameFeatures
from f1_vla.policy import F1Policy
from f1_vla.text import encode_instruction
from rl.data.episode_buffer import EpisodeFeatures
from rl.normalizers import Normalizer
from rl.types import EpisodeRecord

HEAD, WRIST = 0, 1  # camera order of the teacher view; the wrist-only view masks the head


class WorldModelData:
    """Encodes episodes with the frozen parts of a policy and dresses windows as `F1Batch`."""

    def __init__(self, policy: F1Policy, states: Normalizer, instruction: str, cache_vision: bool) -> None:
        """`cache_vision`: the vision tower is frozen, so store its outputs; else the pictures themselves."""
        self.policy, self.states, self.cache_vision = policy, states, cache_vision
        self.lang_tokens, self.lang_masks = encode_instruction(policy.cfg, instruction)

    def encode(self, record: EpisodeRecord, index: int, seen: FrameFeatures | None = None) -> EpisodeFeatures:
        """Features of one episode on the CPU; the memory states are zeros until they are computed.

        seen: what is known of the wrist frames already (vision (F, 1, P, width)), so that only the head is encoded.
        """
        cameras = torch.from_numpy(np.stack([record.head, record.wrist_vlm], 1))  # (F, N, h, w, 3) uint8
        if seen is None:
            frames = self.policy.encode_frames(torch.from_numpy(record.wrist), cameras if self.cache_vision else None)
        else:
            assert self.cache_vision and seen.vision is not None
            head = self.policy.encode_vision(cameras[:, HEAD : HEAD + 1])
            frames = replace(seen, vision=torch.cat([head, seen.vision], 1))
        vision = cameras.permute(0, 1, 4, 2, 3).contiguous() if frames.vision is None else frames.vision.half()
        memory = self.policy.cfg.memory
        return EpisodeFeatures(
            ids_FL=frames.ids.to("cpu", torch.int16),
            latents_FCPP=frames.latents.to("cpu", torch.float16),
            vision=vision.cpu(),
            actions_TA=torch.from_numpy(record.actions),
            states_FS=torch.from_numpy(record.states),
            memory_TMH=torch.zeros(
                record.actions.shape[0], memory.memory_num_layers, memory.memory_hidden, dtype=torch.float16
            ),
            index=index,
        )

    def batch(
        self, windows: dict[str, Tensor], head_visible_B: Tensor, action_known_B: Tensor | None = None
    ) -> F1Batch:
        """`F1Batch` of gathered windows on the policy's device.

        head_visible_B: bool (B,), False gives the wrist-only view. action_known_B: bool (B, T) or None for all known;
        False hides the action of the current slot.
        """
        device = self.policy.device
        w = {k: v.to(device, non_blocking=True) for k, v in windows.items()}
        B, T = w["reset"].shape
        cameras = torch.ones(B, T, 2, dtype=torch.bool, device=device)
        cameras[:, :, HEAD] = head_visible_B.to(device)[:, None]
        known = torch.ones_like(w["history_mask"])
        if action_known_B is not None:
            known[:, :, -1] = action_known_B.to(device)
        pictures = not self.cache_vision
        return F1Batch(
            lang_tokens=self.lang_tokens.to(device).expand(B, -1),
            lang_masks=self.lang_masks.to(device).expand(B, -1),
            camera_mask=cameras,
            history_ids=w["history_ids"],
            history_latents=w["history_latents"],
            history_mask=w["history_mask"],
            actions=w["actions"],
            action_known=known,
            state=self.states.normalize(w["state"]),
            vision=None if pictures else w["vision"].float(),
            images=w["vision"].float() / 255.0 if pictures else None,
            target_ids=w["target_ids"],
            target_latents=w["target_latents"],
            reset=w["reset"],
            valid=w["valid"],
        )


def initial_memory(windows: dict[str, Tensor], device: torch.device) -> Tensor:
    """Stored states (B, M, hidden) as the model takes them: (M, B, hidden) float32."""
    return windows["memory"].permute(1, 0, 2).contiguous().to(device)
