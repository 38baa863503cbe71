"""Diffusion transformer (Peebles and Xie 2023): predicts a clean action from a noisy one, given features of a state.

Action tokens attend to themselves and to state tokens. These do not depend on the denoising step: a small network makes
them, and every block its keys and values of them, once a state (`encode`). The step enters through AdaLN-Zero: scales,
shifts and gates of every block, gates 0 at the start, so that a new network predicts 0.

Letters: B batch, S state tokens, L action tokens, W width, H heads, A action dims, F features, T denoising steps.
"""

import math
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import BlockMask, attention, choose_backend
from rl.models.linear import Linear
from rl.models.mlp import mlp


class KeysValues(NamedTuple):
    keys: Tensor  # (B, S, H, W / H)
    values: Tensor


class Context(NamedTuple):
    """What is the same in every denoising step, and what is the same for every state."""

    states: list[KeysValues]  # one for each block
    modulations: list[Tensor]  # (T, 6 W) of each block, then (T, 2 W) of the output


class Block(nn.Module):
    """Attention and MLP, modulated (AdaLN-Zero)."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, backend: str) -> None:
        super().__init__()
        self.heads, self.backend = heads, backend
        self.qkv, self.out = Linear(width, 3 * width), Linear(width, width)
        self.state_kv = Linear(width, 2 * width)
        self.up, self.down = Linear(width, mlp_ratio * width), Linear(mlp_ratio * width, width)
        self.modulation = zero_linear(width, 6 * width)

    def of_states(self, x: Tensor) -> KeysValues:
        """Keys and values of state tokens (B, S, W)."""
        B, S, W = x.shape
        return KeysValues(*self.state_kv(x.view(B * S, W)).view(B, S, 2, self.heads, W // self.heads).unbind(2))

    def forward(self, x: Tensor, modulation: Tensor, mask: BlockMask, states: KeysValues) -> Tensor:
        """x (B, L, W), modulation (B or 1, 6 W)."""
        B, L, W = x.shape
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation[:, None].chunk(6, -1)
        h = torch.addcmul(shift1, F.layer_norm(x, (W,)), 1 + scale1)
        q, k, v = self.qkv(h.view(B * L, W)).view(B, L, 3, self.heads, W // self.heads).unbind(2)
        k, v = torch.cat([states.keys, k], 1), torch.cat([states.values, v], 1)
        seen = attention(q, k, v, mask, backend=self.backend).reshape(B * L, W)
        x = torch.addcmul(x, gate1, self.out(seen).view(B, L, W))
        h = torch.addcmul(shift2, F.layer_norm(x, (W,)), 1 + scale2)
        return torch.addcmul(x, gate2, self.down(F.silu(self.up(h.view(B * L, W)))).view(B, L, W))


class DiffusionTransformer(nn.Module):
    """`encode` a batch of states once, then predict clean actions for them as often as wanted."""

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
        self.states = mlp([features, width, width, state_tokens * width], "silu", False, layernorm=True)
        self.actions = Linear(action_dim // action_tokens, width)
        self.places = nn.Parameter(0.02 * torch.randn(action_tokens, width))
        self.steps = mlp([width, width, width], "silu", True)
        self.register_buffer("waves", sinusoids(steps, width), persistent=False)
        backend = choose_backend(backend, device, torch.float32, width // heads)
        self.blocks = nn.ModuleList(Block(width, heads, mlp_ratio, backend) for _ in range(num_blocks))
        self.final = zero_linear(width, 2 * width)
        self.head = zero_linear(width, action_dim // action_tokens)
        self._masks: dict[torch.device, BlockMask] = {}

    def _mask(self, device: torch.device) -> BlockMask:
        """Action tokens see all state tokens and each other."""
        if device not in self._masks:
            states = BlockMask.from_lengths([self.state_tokens], device=device)
            self._masks[device] = BlockMask.suffix(states.k_block, states.k_valid, [self.action_tokens])
        return self._masks[device]

    def encode(self, features: Tensor) -> Context:
        """features (B, F)."""
        tokens = self.states(features).view(features.shape[0], self.state_tokens, self.width)  # len() is lost in export
        step, blocks = self.steps(self.waves), cast(list[Block], list(self.blocks))
        return Context(
            [block.of_states(tokens) for block in blocks],
            [layer(step) for layer in (*(block.modulation for block in blocks), self.final)],
        )

    def forward(self, context: Context, noisy: Tensor, t: Tensor) -> Tensor:
        """Predicted clean action (B, A) float32 of `noisy` (B, A) at steps t (B,) or (1,) int64."""
        B, L, W = noisy.shape[0], self.action_tokens, self.width
        mask = self._mask(noisy.device)
        x = self.actions(noisy.reshape(B * L, -1)).view(B, L, W) + self.places
        *modulations, last = (table[t] for table in context.modulations)
        for block, modulation, states in zip(self.blocks, modulations, context.states, strict=True):
            x = block(x, modulation, mask, states)
        shift, scale = last[:, None].chunk(2, -1)
        x = torch.addcmul(shift, F.layer_norm(x, (W,)), 1 + scale)
        return self.head(x.view(B * L, W)).view(noisy.shape).float()


def zero_linear(inputs: int, outputs: int) -> Linear:
    layer = Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def repeat(context: Context, times: int) -> Context:
    """Every state `times` times in a row."""
    if times == 1:
        return context
    return context._replace(states=[KeysValues(*(x.repeat_interleave(times, 0) for x in s)) for s in context.states])


def sinusoids(steps: int, width: int) -> Tensor:
    """(steps, width) sines and cosines of the step number, of wavelengths up to 10,000 steps (Vaswani et al. 2017)."""
    rates = torch.exp(-math.log(10_000) * torch.arange(width // 2) / (width // 2))
    angles = torch.arange(steps)[:, None] * 1000 / steps * rates
    return torch.cat([angles.sin(), angles.cos()], 1)
