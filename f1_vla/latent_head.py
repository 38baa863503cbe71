"""Aligned conditioning and latent regression for the world model (an extra; the published model has none).

A small convolutional network looks at the tokenizer latents of the history, modulated by actions, state and memory. It
yields (a) a feature map that is pooled to every scale and added to the output tokens' embeddings, and (b) a prediction
of the next frame's latent, trained by regression. A token's code is the nearest one to what is left of the latent, so
the squared distance between the codes and what is left of the *predicted* latent is a prior for its logits. Nothing is
warped. With `latent_head_logit_scale` 0 and the zero-initialised output layers it has no effect until trained.

Letters: N samples, C latent channels, P latent side, W width, D trunk width, L tokens, V codes.
"""

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


class LatentHead(nn.Module):
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
        self.to_latent = nn.Conv2d(width, channels, 3, padding=1)
        self.to_tokens = nn.Linear(width, trunk_width)
        for layer in (self.to_latent, self.to_tokens):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        self.logit_scale = nn.Parameter(torch.full((len(scales),), float(logit_scale)))

    def forward(self, latents_NOCPP: Tensor, cond_NX: Tensor, memory_NM: Tensor | None) -> tuple[Tensor, Tensor]:
        """History latents, condition, last memory layer -> predicted latent (N, C, P, P), token features (N, L, D)."""
        last = latents_NOCPP[:, -1]
        cond = self.cond(cond_NX)
        if memory_NM is not None:
            cond = cond + self.memory(memory_NM)
        cond = F.silu(cond)
        x = self.stem(latents_NOCPP.flatten(1, 2)) + self.position
        for block in self.blocks:
            x = block(x, cond)
        x = F.silu(x)
        pooled = [F.adaptive_avg_pool2d(x, p).flatten(2).transpose(1, 2) for p in self.scales]
        return last + self.to_latent(x), self.to_tokens(torch.cat(pooled, 1))

    def logit_prior(
        self, predicted_NCPP: Tensor, var_input_NJC: Tensor, codebook_VC: Tensor, first_scale: int = 0
    ) -> Tensor:
        """Prior over codes, -scale_k * |E_v - rest|^2 up to a constant in v.

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
        rest, scale = torch.cat(rests, 1), torch.cat(scales)
        codebook = codebook_VC.float()
        return scale[:, None] * (2 * rest @ codebook.T - codebook.square().sum(1))
