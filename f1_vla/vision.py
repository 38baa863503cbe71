"""What the understanding expert sees: resize, SigLIP tower, projector.

Letters: N pictures, P patches, Dv width of the tower, d width of the understanding expert.
"""

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, SiglipVisionConfig, SiglipVisionModel

import kernels
from f1_vla.config import VisionConfig
from kernels import BlockMask

ATTENTION = "f1_kernels"  # name under which transformers finds `tower_attention`


@lru_cache(maxsize=16)
def _one_block(length: int, device: torch.device) -> BlockMask:
    return BlockMask.from_lengths([length], device=device)


def tower_attention(
    module: Any,
    query_BHLD: Tensor,
    key_BHLD: Tensor,
    value_BHLD: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """`kernels.attention` behind transformers' interface: every patch sees every patch. Gives (B, L, H, D)."""
    assert attention_mask is None and dropout == 0.0, "the tower has neither"
    q, k, v = (t.transpose(1, 2) for t in (query_BHLD, key_BHLD, value_BHLD))
    mask = _one_block(q.shape[1], q.device)
    return kernels.attention(q, k, v, mask, scale=scaling, backend=module.config.attention_backend), None


AttentionInterface.register(ATTENTION, tower_attention)


def resize_with_pad(img_N3hw: Tensor, width: int, height: int) -> Tensor:
    """Bilinear (half-pixel centres, no antialiasing), aspect kept, zeros on the left and top. Range unchanged."""
    h, w = img_N3hw.shape[-2:]
    if (h, w) == (height, width):
        return img_N3hw
    ratio = max(w / width, h / height)
    new_h, new_w = int(h / ratio), int(w / ratio)
    img = F.interpolate(img_N3hw, size=(new_h, new_w), mode="bilinear", align_corners=False)
    return F.pad(img, (width - new_w, 0, height - new_h, 0), value=0.0)


class Vision(nn.Module):
    """SigLIP without pooling head, and the multimodal projector."""

    def __init__(self, cfg: VisionConfig, und_width: int, pad: bool) -> None:
        super().__init__()
        self.cfg, self.pad = cfg, pad
        config = SiglipVisionConfig(
            hidden_size=cfg.hidden_size,
            intermediate_size=cfg.intermediate_size,
            num_hidden_layers=cfg.num_layers,
            num_attention_heads=cfg.num_heads,
            image_size=cfg.image_size,
            patch_size=cfg.patch_size,
            vision_use_head=False,
            attn_implementation=ATTENTION,
            attention_backend=cfg.attention_backend,
        )
        self.tower = SiglipVisionModel(config)
        self.projector = nn.Linear(cfg.hidden_size, und_width)

    def choose_backend(self, device: torch.device | str, dtype: torch.dtype) -> None:
        """Decides what the tower's attention takes. ValueError when the configured backend cannot run."""
        size = self.cfg.hidden_size // self.cfg.num_heads
        backend = kernels.choose_backend(self.cfg.attention_backend, device, dtype, size, layout="full")
        self.tower.config.attention_backend = backend

    def prepare(self, images_N3hw: Tensor) -> Tensor:
        """Pictures in [0, 1] of any size -> (N, 3, S, S) in [-1, 1]. ValueError: padding is off and sizes differ."""
        s = self.cfg.image_size
        if not self.pad and images_N3hw.shape[-2:] != (s, s):
            raise ValueError(
                f"vision expects {s}x{s} px pictures, got {tuple(images_N3hw.shape[-2:])}; "
                f"set environment.vlm_size={s} or vision_resize_with_padding=true"
            )
        return resize_with_pad(images_N3hw, s, s) * 2 - 1

    def features(self, images_N3hw: Tensor) -> Tensor:
        """Pictures in [0, 1] -> tower outputs (N, P, Dv)."""
        return self.tower(pixel_values=self.prepare(images_N3hw)).last_hidden_state

    def project(self, features_NPD: Tensor) -> Tensor:
        """(..., Dv) -> (..., d). Factor 1: the published scalings by sqrt(d) and 1/sqrt(d) cancel."""
        return self.projector(features_NPD)


def to_unit_float(images: Tensor) -> Tensor:
    """uint8 channel-last (..., h, w, 3) or float channel-first (..., 3, h, w) in [0, 1] -> float32 channel-first.

    ValueError for another dtype, layout or range (the range of float pictures costs one look at the values).
    """
    if images.dtype == torch.uint8:
        if images.shape[-1] != 3:
            raise ValueError(f"uint8 pictures must be channel-last (..., h, w, 3), got {tuple(images.shape)}")
        return images.movedim(-1, -3).float() / 255
    if not images.is_floating_point():
        raise ValueError(f"pictures must be uint8 in 0..255 or float in [0, 1], got {images.dtype}; convert them")
    if images.shape[-3] != 3:
        raise ValueError(f"float pictures must be channel-first (..., 3, h, w), got {tuple(images.shape)}")
    low, high = (x.item() for x in images.aminmax()) if images.numel() else (0.0, 0.0)
    if not (low >= 0 and high <= 1):  # false for nan, too
        raise ValueError(
            f"float pictures must lie in [0, 1], these lie in [{low:.3g}, {high:.3g}]; divide 0..255 by 255, map "
            "[-1, 1] with (x + 1) / 2, or pass uint8"
        )
    return images.float()
