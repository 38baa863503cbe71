"""The whole policy. Everything that is trained is reached through `F1Policy.forward(batch, mode=...)`.

Letters: B batch, T steps of a window, M frames, N cameras, P patches, L tokens of a frame, C latent channels, d width
of an expert, Su tokens of the understanding stream, X conditioning inputs.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from f1_vla import memory as mem
from f1_vla.acting import joint_losses, predict_images, sample_actions
from f1_vla.batch import F1Batch, FrameFeatures
from f1_vla.config import F1Config
from f1_vla.flow import Flow
from f1_vla.latent_head import Look
from f1_vla.tokenizer import MultiScaleVQVAE
from f1_vla.trunk import Trunk
from f1_vla.vision import Vision, to_unit_float
from f1_vla.window import memory_window, teacher_forced_window
from f1_vla.world_model import WorldModel

MODES = ("world_model_window", "world_model", "memory_only", "joint", "actions", "predict_images", "write_memory")


@dataclass(frozen=True)
class Published:
    """Files whose entries a policy was filled with; names as in `weights.base_entries`."""

    files: tuple[Path, ...]  # absolute
    entries: frozenset[str]


def make_memory(cfg: F1Config) -> mem.Memory | None:
    """The memory of the configuration, with initial weights; None when it is switched off."""
    if not cfg.memory.memory_enabled:
        return None
    out = cfg.tokenizer.z_channels if cfg.memory.memory_project_to_vae_dim else cfg.trunk.gen.hidden_size
    width = cfg.trunk.und.hidden_size + cfg.trunk.gen.hidden_size
    return mem.Memory(cfg.memory, width, cfg.max_action_dim, cfg.max_state_dim, out)


class F1Policy(nn.Module):
    """See `forward` for the modes; `f1_vla.builders.build_policy` makes one."""

    def __init__(self, cfg: F1Config) -> None:
        super().__init__()
        cfg.validate()
        self.cfg = cfg
        t, tok = cfg.trunk, cfg.tokenizer
        self.trunk = Trunk(t)
        self.vision = Vision(cfg.vision, t.und.hidden_size, cfg.vision_resize_with_padding)
        self.text_embedding = nn.Embedding(t.text_vocab_size, t.und.hidden_size)
        self.tokenizer = MultiScaleVQVAE(tok)
        self.world_model = WorldModel(cfg)
        self.flow = Flow(t.act.hidden_size, cfg.max_action_dim, cfg.max_state_dim)
        self.memory = make_memory(cfg)
        self.published: Published | None = None  # where the weights came from; None: random, or from no file

    @property
    def device(self) -> torch.device:
        return self.world_model.embed.weight.device

    def train(self, mode: bool = True) -> "F1Policy":
        """The tokenizer stays in eval mode."""
        super().train(mode)
        self.tokenizer.eval()
        return self

    def initial_memory_state(self, batch_size: int) -> Tensor:
        """Zeros (num_layers, B, hidden): the state before the first frame of an episode."""
        return mem.initial_state(self.cfg.memory, batch_size, self.device)

    # --- the one entry ------------------------------------------------------------------------------------------------

    def forward(
        self, batch: F1Batch, mode: str, initial_memory_state: Tensor | None = None, **options: Any
    ) -> dict[str, Any]:
        """Runs one mode; every result holds "memory_state" unless noted.

        world_model_window: T teacher-forced steps with the memory carried through; options memory_backprop=True,
            return_logits=False, uncertainty=False. Gives loss, nll, correct, metrics (see f1_vla.window).
        world_model: the same with T == 1 (another T is an error).
        memory_only: carries the memory over T steps without predicting (burn-in). Gives memory_state, memory_states.
        joint: roll-out and action head of the published training (T == 1); options sampling, noise, time,
            world_model_loss_ratio. Gives loss, wm_loss, action_loss and their parts.
        actions: samples a chunk (T == 1); options sampling, noise, num_steps. The memory is not written: do that with
            write_memory once the action is known. Gives actions, chain, times, foresight.
        predict_images: rolls out the next frame (T == 1); options sampling, num_scales. Gives images, ids, logits.
        write_memory: options memory_features (from actions) and action (B, A).
        ValueError: unknown mode, initial_memory_state None or of a wrong shape, a field of the batch that is missing or
        of another size.
        """
        if mode not in MODES:
            raise ValueError(f"mode '{mode}' is unknown; use one of {', '.join(MODES)}")
        batch.check(self.cfg)
        h = mem.check_state(self.cfg.memory, initial_memory_state, batch.size, f"forward(mode='{mode}')")
        if mode not in ("world_model_window", "memory_only") and batch.steps != 1:
            raise ValueError(
                f"forward(mode='{mode}') takes one step, the batch has {batch.steps}; use batch.window(t, t+1)"
            )
        if mode in ("world_model_window", "world_model"):
            return teacher_forced_window(self, batch, h, **options)
        if mode == "memory_only":
            return memory_window(self, batch, h)
        if mode == "joint":
            return joint_losses(self, batch, h, **options)
        if mode == "actions":
            return sample_actions(self, batch, h, **options)
        if mode == "predict_images":
            return predict_images(self, batch, h, **options)
        return {"memory_state": self.write_memory(self.reset_memory(batch, h, 0), batch=batch, **options)}

    def forward_with_world_model(self, batch: F1Batch, **options: Any) -> dict[str, Any]:
        """Thin name for the teacher-forced world model. Under DDP call the wrapped module's forward instead."""
        return self(batch, mode="world_model_window", **options)

    def predict_images_only(self, batch: F1Batch, **options: Any) -> dict[str, Any]:
        """Thin name for forward(mode="predict_images")."""
        return self(batch, mode="predict_images", **options)

    @torch.no_grad()
    def encode_frames(self, wm_images: Tensor, vlm_images: Tensor | None = None) -> FrameFeatures:
        """Frozen computations of M frames.

        wm_images (M, ...) one picture of the tokenizer's size; vlm_images (M, N, ...) the cameras of the understanding
        expert, any size. Either uint8 channel-last or float channel-first in [0, 1].
        """
        with torch.autocast(self.device.type, enabled=False):
            wm = to_unit_float(wm_images.to(self.device)) * 2 - 1
            latents = self.tokenizer.encode_latent(wm)
            ids = torch.cat(self.tokenizer.quantize.quantize(latents)[0], 1)
        vision = None if vlm_images is None else self.encode_vision(vlm_images)
        return FrameFeatures(ids=ids, latents=latents, vision=vision)

    @torch.no_grad()
    def encode_vision(self, vlm_images: Tensor) -> Tensor:
        """Tower outputs (M, N, P, Dv) of pictures as `encode_frames` takes them."""
        with torch.autocast(self.device.type, enabled=False):
            x = to_unit_float(vlm_images.to(self.device))
            if x.ndim != 5:
                raise ValueError(f"camera pictures must be (frames, cameras, ...), got {tuple(vlm_images.shape)}")
            return self.vision.features(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    # --- inputs of the streams ----------------------------------------------------------------------------------------

    def und_inputs(self, batch: F1Batch) -> tuple[Tensor, Tensor]:
        """Camera tokens in order, then language: (B, T, Su, d) and validity (B, T, Su)."""
        features = batch.vision
        if features is None:
            images = to_unit_float(
                batch.require("images", "the understanding stream (neither vision nor images given)")
            )
            features = self.vision.features(images.flatten(0, 2)).unflatten(0, images.shape[:3])
        cameras = self.vision.project(features)  # (B, T, N, P, d)
        B, T, _, P, d = cameras.shape
        words = self.text_embedding(batch.lang_tokens) * math.sqrt(d)
        words = words.to(cameras.dtype)[:, None].expand(B, T, -1, d)
        camera_valid = batch.camera_mask.repeat_interleave(P, dim=2)
        word_valid = batch.lang_masks[:, None].expand(B, T, -1)
        return torch.cat([cameras.flatten(2, 3), words], 2), torch.cat([camera_valid, word_valid], 2)

    def var_inputs(self, ids: Tensor) -> Tensor:
        """Next-scale inputs (..., L-1, C) of token ids (..., L), by the frozen tokenizer in float32."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return self.tokenizer.ids_to_var_input(ids.flatten(0, -2)).unflatten(0, ids.shape[:-1])

    def condition_inputs(self, batch: F1Batch) -> Tensor:
        """What the action and state conditioning reads: (B*T, X)."""
        flat = (x.flatten(0, 1) for x in (batch.actions, batch.action_known, batch.history_mask, batch.state))
        return self.world_model.condition_inputs(*flat)

    def gen_prefix(self, batch: F1Batch, condition: Tensor | None) -> Tensor:
        """gen prefix of every step (B*T, L, d); memory and aligned features are added step by step."""
        return self.world_model.embed_prefix(self.var_inputs(batch.history_ids.flatten(0, 1)), condition)

    def condition(self, inputs: Tensor) -> Tensor | None:
        return None if self.world_model.condition is None else self.world_model.condition(inputs)

    def look(self, batch: F1Batch, condition_inputs: Tensor) -> Look | None:
        """The latent head's view of every step (B*T rows), before the memory; None without a latent head."""
        if self.world_model.latent_head is None:
            return None
        latents = batch.require("history_latents", "the latent head").flatten(0, 1)
        return self.world_model.latent_head.look(latents, condition_inputs)

    def predict_latent(self, look: Look, states: Tensor) -> Tensor:
        """(N, C, P, P) from a look of N rows and the memory states (num_layers, N, hidden) that its steps read."""
        assert self.world_model.latent_head is not None
        return self.world_model.latent_head.predict(look, None if self.memory is None else states[-1])

    def add_memory(self, gen: Tensor, h: Tensor) -> Tensor:
        """Adds the memory to the embedded history vectors: tokens 1..L-1 of the gen stream (token 0 is sos)."""
        if self.memory is None:
            return gen
        shift = self.world_model.memory_shift(self.memory.read(h)).to(gen.dtype)
        index = torch.arange(gen.shape[1], device=gen.device)
        is_history = (index >= 1) & (index < self.world_model.num_tokens)
        return torch.addcmul(gen, shift, is_history.to(gen.dtype)[None, :, None])

    def pool(self, und: Tensor, und_valid: Tensor, gen_prefix: Tensor) -> Tensor:
        """Mean over valid und tokens and over the gen prefix: (B, und + gen width). Neither sees the target frame."""
        w = und_valid.to(und.dtype)[..., None]
        return torch.cat([(und * w).sum(1) / w.sum(1).clamp(min=1), gen_prefix.mean(1)], -1)

    def write_memory(self, h: Tensor, memory_features: Tensor, action: Tensor, batch: F1Batch, step: int = 0) -> Tensor:
        return h if self.memory is None else self.memory.write(h, memory_features, action, batch.state[:, step])

    def reset_memory(self, batch: F1Batch, h: Tensor, step: int) -> Tensor:
        return h if batch.reset is None else mem.reset_rows(h, batch.reset[:, step])

    def blocks(self, und_tokens: int, slots: int) -> Tensor:
        """int32 (1, Su + L + slots - 1): block ids of und, gen prefix and the inputs of slots 1.. ."""
        wm = self.world_model
        und = torch.zeros(und_tokens, dtype=torch.int32, device=self.device)
        return torch.cat([und, wm.prefix_blocks(), wm.slot_blocks(1, slots - 1)])[None]
