"""Aligned conditioning and latent regression for the world model (an extra; the published model has none).

A small convolutional network looks at the tokenizer latents of the history, modulated by actions, state and memory. It
yields (a) a feature map that is pooled to every scale and added to the output tokens' embeddings, and (b) a prediction
of the next frame's latent, trained by regression. A token's code is the nearest one to what is left of the latent, so
the squared distance between the codes and what is left of the *predicted* latent is a prior for its logits. Nothing is
warped. With `latent_head_logit_scale` 0 and the zero-initialised output layers it has no effect until trained.

Letters: N samples, C latent channels, P latent side, W width, D trunk width, L tokens, V codes.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _FiLMBlock(nn.Module):
    """Pre-norm residual block whose scale and shift come from the condition (Perez et al. 2018)."""

    def __init__(self, width: int, cond: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.film = nn.Linear(cond, 4 * width)
        nn.init.normal_(self.film.weight, std=0.02)
        nn.init.zeros_(self.film.bias)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        s1, b1, s2, b2 = self.film(cond)[:, :, None, None].chunk(4, dim=1)
        h = self.conv1(F.silu(self.norm(x) * (1 + s1) + b1))
        return x + self.conv2(F.silu(h * (1 + s2) + b2))


@dataclass
class Look:
    """What the head makes of history, actions and state before the memory is read; rows may be steps of a window."""

    last_NCPP: Tensor  # newest latent of the history
    map_NWPP: Tensor
    condition_NW: Tensor
    features_NLD: Tensor  # added to the embedded output tokens

    def predicts(self, latent_NCPP: Tensor) -> "Aligned":
        return Aligned(latent_NCPP, self.features_NLD)


@dataclass
class Aligned:
    """What the latent head says about one frame; zero effect until trained."""

    latent: Tensor  # (N, C, P, P) predicted latent of the next frame
    features: Tensor  # (N, L, D) added to the embedded output tokens


class LatentHead(nn.Module):
    latent_scale: Tensor

    def __init__(
        self,
        channels: int,
        num_obs: int,
        side: int,
        cond_dim: int,
        memory_dim: int,
        width: int,
        blocks: int,
        trunk_width: int,
        scales: list[int],
        logit_scale: float,
    ) -> None:
        super().__init__()
        self.scales = scales
        self.stem = nn.Conv2d(channels * num_obs, width, 3, padding=1)
        self.position = nn.Parameter(torch.zeros(1, width, side, side))
        self.cond = nn.Sequential(nn.Linear(cond_dim, width), nn.SiLU(), nn.Linear(width, width))
        self.memory = nn.Linear(memory_dim, width, bias=False)
        nn.init.zeros_(self.memory.weight)
        self.blocks = nn.ModuleList(_FiLMBlock(width, width) for _ in range(blocks))
        self.last_block = _FiLMBlock(width, width)  # the only one that sees the memory
        self.to_latent = nn.Conv2d(width, channels, 3, padding=1)
        self.to_tokens = nn.Linear(width, trunk_width)
        for layer in (self.to_latent, self.to_tokens):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        self.logit_scale = nn.Parameter(torch.full((len(scales),), float(logit_scale)))
        # Size of the tokenizer's latents by channel: convolutions and regression work in these units.
        self.register_buffer("latent_scale", torch.ones(channels))

    @torch.no_grad()
    def set_latent_scale(self, codebook_VC: Tensor) -> None:
        """Takes the units from the spread of the tokenizer's codes."""
        self.latent_scale.copy_(codebook_VC.float().std(0).clamp_min(1e-6))

    def in_units(self, latent: Tensor) -> Tensor:
        """(..., C, P, P) divided by the latent scale."""
        return latent / self.latent_scale[:, None, None]

    def look(self, latents_NOCPP: Tensor, cond_NX: Tensor) -> Look:
        """Everything that does not depend on the memory, so all steps of a window go through it at once."""
        cond = self.cond(cond_NX)
        x = self.stem(self.in_units(latents_NOCPP).flatten(1, 2)) + self.position
        modulation = F.silu(cond)
        for block in self.blocks:
            x = block(x, modulation)
        pooled = [F.adaptive_avg_pool2d(x, p).flatten(2).transpose(1, 2) for p in self.scales]
        return Look(latents_NOCPP[:, -1], x, cond, self.to_tokens(F.silu(torch.cat(pooled, 1))))

    def predict(self, look: Look, memory_NM: Tensor | None) -> Tensor:
        """Latent of the next frame (N, C, P, P) float32, from the look and the last memory layer (N, M)."""
        cond = look.condition_NW
        if memory_NM is not None:
            cond = cond + self.memory(memory_NM)
        change = self.to_latent(F.silu(self.last_block(look.map_NWPP, F.silu(cond))))
        return look.last_NCPP + change.float() * self.latent_scale[:, None, None]

    def forward(self, latents_NOCPP: Tensor, cond_NX: Tensor, memory_NM: Tensor | None) -> tuple[Tensor, Tensor]:
        """History latents, condition, last memory layer -> predicted latent (N, C, P, P), token features (N, L, D)."""
        look = self.look(latents_NOCPP, cond_NX)
        return self.predict(look, memory_NM), look.features_NLD

    def logit_prior(
        self, predicted_NCPP: Tensor, var_input_NJC: Tensor, codebook_VC: Tensor, first_scale: int = 0
    ) -> Tensor:
        """Prior over codes, -scale_k * |E_v - rest|^2 / s^2 up to a constant in v; s: RMS of the latent scale.

        `var_input_NJC` are the next-scale inputs of the scales after `first_scale` that are to be predicted (scale 1
        has none: its rest is the pooled prediction). Returns (N, tokens, V) in float32.
        """
        rests, scales, start = [], [], 0
        for k in range(first_scale, len(self.scales)):
            p = self.scales[k]
            if k > 0 and start >= var_input_NJC.shape[1]:
                break
            pooled = F.adaptive_avg_pool2d(predicted_NCPP.float(), p).flatten(2).transpose(1, 2)
            if k > 0:
                pooled = pooled - var_input_NJC[:, start : start + p * p].float()
                start += p * p
            rests.append(pooled)
            scales.append(self.logit_scale[k].expand(p * p))
        rest, scale = torch.cat(rests, 1), torch.cat(scales) / self.latent_scale.square().mean()
        codebook = codebook_VC.float()
        return scale[:, None] * (2 * rest @ codebook.T - codebook.square().sum(1))
