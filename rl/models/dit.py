"""Diffusion transformer (Peebles and Xie 2023): predicts the noise in an action, given features of a state.

State tokens come first and see each other only; they are the same in every denoising step, so their keys and values
are computed once (`encode`). Action tokens see both. The denoising step enters through AdaLN-Zero: scales, shifts and
gates of every block, gates 0 at the start, so that a new network predicts 0.

Letters: B batch, S state tokens, L action tokens, W width, H heads, A action dims, F features.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import BlockMask, attention, choose_backend


class KeysValues(NamedTuple):
    keys: Tensor  # (B, S, H, W / H)
    values: Tensor


StateCache = list[KeysValues]  # one for each block


class Block(nn.Module):
    """Self-attention and MLP, modulated (AdaLN-Zero)."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, backend: str) -> None:
        super().__init__()
        self.heads, self.backend = heads, backend
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, mlp_ratio * width), nn.Linear(mlp_ratio * width, width)
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(
        self, x: Tensor, condition: Tensor, mask: BlockMask, past: KeysValues | None
    ) -> tuple[Tensor, KeysValues]:
        """x (B, L, W), condition (B or 1, W), `past` of the state tokens; returns x and its own keys and values."""
        B, L, W = x.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition))[:, None].chunk(6, -1)
        h = torch.addcmul(shift1, F.layer_norm(x, (W,)), 1 + scale1)
        q, k, v = self.qkv(h).view(B, L, 3, self.heads, W // self.heads).unbind(2)
        own = KeysValues(k, v)
        if past is not None:
            k, v = torch.cat([past.keys, k], 1), torch.cat([past.values, v], 1)
        seen = attention(q, k, v, mask, backend=self.backend).reshape(B, L, W)
        x = torch.addcmul(x, gate1, self.out(seen))
        h = torch.addcmul(shift2, F.layer_norm(x, (W,)), 1 + scale2)
        return torch.addcmul(x, gate2, self.down(F.silu(self.up(h)))), own


class DiffusionTransformer(nn.Module):
    """`encode` a batch of states once, then predict the noise of actions for them as often as wanted."""

    waves: Tensor

    def __init__(
        self, features: int, action_dim: int, steps: int, width: int = 128, num_blocks: int = 4, heads: int = 4,
        mlp_ratio: int = 4, state_tokens: int = 4, action_tokens: int = 1, backend: str = "auto",
        device: torch.device | str = "cpu",
    ) -> None:  # fmt: skip
        """Raises ValueError when heads do not divide the width, or tokens not the action dims."""
        super().__init__()
        if width % heads:
            raise ValueError(f"network.width {width} is not a multiple of network.num_heads {heads}")
        if action_dim % action_tokens:
            raise ValueError(f"network.action_tokens {action_tokens} do not divide the {action_dim} action dims")
        self.width, self.state_tokens, self.action_tokens = width, state_tokens, action_tokens
        self.states = nn.Sequential(nn.Linear(features, width), nn.SiLU(), nn.Linear(width, state_tokens * width))
        self.actions = nn.Linear(action_dim // action_tokens, width)
        self.places = nn.Parameter(0.02 * torch.randn(action_tokens, width))
        self.steps = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.register_buffer("waves", sinusoids(steps, width), persistent=False)
        self.state_condition = nn.Parameter(torch.zeros(1, width))
        backend = choose_backend(backend, device, torch.float32, width // heads)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, backend) for _ in range(num_blocks))
        self.final = nn.Linear(width, 2 * width)
        self.head = nn.Linear(width, action_dim // action_tokens)
        for layer in (self.final, self.head):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self._masks: dict[torch.device, tuple[BlockMask, BlockMask]] = {}

    def _mask(self, device: torch.device) -> tuple[BlockMask, BlockMask]:
        """Of state tokens among themselves, and of action tokens that see both."""
        if device not in self._masks:
            states = BlockMask.from_lengths([self.state_tokens], device=device)
            joint = BlockMask.suffix(states.k_block, states.k_valid, [self.action_tokens])
            self._masks[device] = (states, joint)
        return self._masks[device]

    def encode(self, features: Tensor) -> StateCache:
        """features (B, F)."""
        x = self.states(features).view(len(features), self.state_tokens, self.width)
        mask, cache = self._mask(features.device)[0], []
        for block in self.blocks:
            x, own = block(x, self.state_condition, mask, None)
            cache.append(own)
        return cache

    def forward(self, cache: StateCache, noisy: Tensor, t: Tensor) -> Tensor:
        """Predicted noise (B, A) float32 in `noisy` (B, A) at steps t (B,) or (1,) int64."""
        mask = self._mask(noisy.device)[1]
        condition = self.steps(self.waves[t])
        x = self.actions(noisy.view(len(noisy), self.action_tokens, -1)) + self.places
        for block, past in zip(self.blocks, cache, strict=True):
            x, _ = block(x, condition, mask, past)
        shift, scale = self.final(F.silu(condition))[:, None].chunk(2, -1)
        x = torch.addcmul(shift, F.layer_norm(x, (self.width,)), 1 + scale)
        return self.head(x).reshape(noisy.shape).float()


def repeat(cache: StateCache, times: int) -> StateCache:
    """Every state `times` times in a row."""
    return [KeysValues(k.repeat_interleave(times, 0), v.repeat_interleave(times, 0)) for k, v in cache]


def sinusoids(steps: int, width: int) -> Tensor:
    """(steps, width) sines and cosines of the step number, of wavelengths up to 10,000 steps (Vaswani et al. 2017)."""
    rates = torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2))
    angles = torch.arange(steps)[:, None] * 1000 / steps * rates
    return torch.cat([angles.sin(), angles.cos()], 1)
