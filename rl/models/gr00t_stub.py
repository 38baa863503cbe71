"""A model of GR00T N1.7's shapes and call signatures with random weights: for tests, plans and memory measurements.

Modules are named and called as in LeRobot's GR00TN17 (Apache-2.0), so that the real model and this one go through the
same code (rl.models.gr00t_backend): a vision-language backbone whose hidden states condition a diffusion transformer
over one state token and a chunk of noisy actions, by flow matching. It is not the same function.

Letters: B batch, L tokens of the backbone, W width, Q actions of a chunk, A action slots, S state slots, H heads.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels import BlockMask, attention


@dataclass(frozen=True)
class Sizes:
    """Defaults are those of N1.7 (3.0 billion parameters)."""

    vocabulary: int = 151_936
    text_width: int = 2048
    text_layers: int = 16
    text_heads: int = 16
    text_kv_heads: int = 8
    head_dim: int = 128
    text_mlp: int = 6144
    vision_width: int = 1024
    vision_layers: int = 24
    vision_heads: int = 16
    vision_mlp: int = 4096
    patch: int = 16
    vl_layers: int = 4
    vl_heads: int = 32
    hidden: int = 1024  # of encoders and decoder
    dit_width: int = 1536
    dit_layers: int = 32
    dit_heads: int = 32
    embodiments: int = 32
    action_slots: int = 132
    state_slots: int = 132
    horizon: int = 40
    buckets: int = 1000  # time is told in so many steps
    dropout: float = 0.2


FULL = Sizes()
TINY = Sizes(
    vocabulary=64, text_width=32, text_layers=2, text_heads=2, text_kv_heads=1, head_dim=16, text_mlp=64,
    vision_width=32, vision_layers=1, vision_heads=2, vision_mlp=64, patch=16, vl_layers=1, vl_heads=2, hidden=64,
    dit_width=64, dit_layers=2, dit_heads=2, embodiments=4, action_slots=16, state_slots=48, horizon=4,
)  # fmt: skip
SIZES = {"tiny": TINY, "n1.7": FULL}


class Layer(nn.Module):
    """Pre-norm attention (to itself, or to `context`) and MLP; `conditioned` layers are scaled and shifted by time."""

    def __init__(
        self, width: int, heads: int, mlp: int, *, kv_heads: int | None = None, head_dim: int | None = None,
        context: int | None = None, conditioned: bool = False, gated: bool = False, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.head_dim = head_dim or width // heads
        kv = (kv_heads or heads) * self.head_dim
        self.gated = gated
        self.to_q = nn.Linear(width, heads * self.head_dim)
        self.to_k, self.to_v = nn.Linear(context or width, kv), nn.Linear(context or width, kv)
        self.to_out = nn.Sequential(nn.Linear(heads * self.head_dim, width), nn.Dropout(dropout))
        self.up, self.down = nn.Linear(width, mlp * (2 if gated else 1)), nn.Linear(mlp, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.modulation = nn.Linear(width, 2 * width) if conditioned else None

    def forward(
        self, x: Tensor, mask: BlockMask, context: Tensor | None = None, condition: Tensor | None = None
    ) -> Tensor:
        """x (B, Lq, W), context (B, Lk, ...), condition (B, W)."""
        h = self.norm1(x)
        if self.modulation is not None:
            assert condition is not None
            scale, shift = self.modulation(F.silu(condition))[:, None].chunk(2, -1)
            h = h * (1 + scale) + shift
        source = h if context is None else context
        q, k, v = (m(s).unflatten(-1, (-1, self.head_dim))
                   for m, s in ((self.to_q, h), (self.to_k, source), (self.to_v, source)))  # fmt: skip
        x = x + self.to_out(attention(q, k, v, mask, backend="auto").flatten(2))
        up = self.up(self.norm2(x))
        if self.gated:
            gate, up = up.chunk(2, -1)
            return x + self.down(F.silu(gate) * up)
        return x + self.down(F.gelu(up))


def full_mask(valid_q: Tensor, valid_k: Tensor) -> BlockMask:
    """Every valid query sees every valid key; (B, Lq) and (B, Lk) bool."""
    q, k = (torch.zeros_like(v, dtype=torch.int32) for v in (valid_q, valid_k))
    return BlockMask(q, k, valid_q, valid_k)


def causal_mask(valid: Tensor) -> BlockMask:
    """(B, L) bool."""
    place = torch.arange(valid.shape[1], dtype=torch.int32, device=valid.device)[None]
    return BlockMask(place, place, valid, valid)


class Backbone(nn.Module):
    """Patches and words -> hidden states (B, L, W) of the language model."""

    image_token = 1

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.patch_embed = nn.Linear(3 * 2 * s.patch**2, s.vision_width)
        self.visual = nn.ModuleList(Layer(s.vision_width, s.vision_heads, s.vision_mlp) for _ in range(s.vision_layers))
        self.merger = nn.Sequential(
            nn.LayerNorm(4 * s.vision_width), nn.Linear(4 * s.vision_width, 4 * s.vision_width), nn.GELU(),
            nn.Linear(4 * s.vision_width, s.text_width),
        )  # fmt: skip
        self.embed_tokens = nn.Embedding(s.vocabulary, s.text_width)
        self.layers = nn.ModuleList(
            Layer(s.text_width, s.text_heads, s.text_mlp, kv_heads=s.text_kv_heads, head_dim=s.head_dim, gated=True)
            for _ in range(s.text_layers)
        )

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """input_ids, attention_mask (B, L); pixel_values (patches, 3 * 2 * patch^2), image_grid_thw (pictures, 3)."""
        ids, valid = inputs["input_ids"], inputs["attention_mask"] == 1
        x, pictured = self.embed_tokens(ids), ids == self.image_token
        if inputs["pixel_values"].numel():
            x = x.masked_scatter(pictured[..., None], self._see(inputs).to(x.dtype))
        mask = causal_mask(valid)
        for layer in self.layers:
            x = layer(x, mask)
        return {"backbone_features": x, "backbone_attention_mask": valid, "image_mask": pictured}

    def _see(self, inputs: dict[str, Tensor]) -> Tensor:
        """(tokens, W) of the pictures one after another; patches see those of their own picture."""
        sizes = inputs["image_grid_thw"].prod(-1).tolist()
        split = self.patch_embed(inputs["pixel_values"]).split(sizes)
        patches = nn.utils.rnn.pad_sequence(list(split), batch_first=True)
        place = torch.arange(patches.shape[1], device=patches.device)
        own = place < torch.tensor(sizes, device=patches.device)[:, None]
        mask = full_mask(own, own)
        for layer in self.visual:
            patches = layer(patches, mask)
        merged: Tensor = self.merger(patches.unflatten(1, (-1, 4)).flatten(2))
        return merged[own[:, ::4]]


class PerEmbodiment(nn.Module):
    """A linear layer whose weights depend on the embodiment of the row."""

    def __init__(self, count: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.W = nn.Parameter(0.02 * torch.randn(count, inputs, outputs))
        self.b = nn.Parameter(torch.zeros(count, outputs))

    def forward(self, x: Tensor, embodiment: Tensor) -> Tensor:
        # Not W[embodiment]: on several threads of a CPU its backward adds rows in an order that changes.
        weight, bias = self.W.index_select(0, embodiment), self.b.index_select(0, embodiment)
        return torch.bmm(x, weight) + bias[:, None]


class PerEmbodimentMLP(nn.Module):
    def __init__(self, count: int, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layer1, self.layer2 = PerEmbodiment(count, inputs, hidden), PerEmbodiment(count, hidden, outputs)

    def forward(self, x: Tensor, embodiment: Tensor) -> Tensor:
        return self.layer2(F.relu(self.layer1(x, embodiment)), embodiment)


class ActionEncoder(nn.Module):
    def __init__(self, count: int, slots: int, width: int) -> None:
        super().__init__()
        self.width = width
        self.W1 = PerEmbodiment(count, slots, width)
        self.W2, self.W3 = PerEmbodiment(count, 2 * width, width), PerEmbodiment(count, width, width)

    def forward(self, actions: Tensor, timesteps: Tensor, embodiment: Tensor) -> Tensor:
        """actions (B, Q, A), timesteps (B,) int64 -> (B, Q, W)."""
        x = self.W1(actions, embodiment)
        time = waves(timesteps, self.width).to(x.dtype)[:, None].expand_as(x)
        return self.W3(F.silu(self.W2(torch.cat([x, time], -1), embodiment)), embodiment)


class DiffusionTransformer(nn.Module):
    """Blocks that look at the context and at the chunk in turn."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.timestep_encoder = nn.Sequential(
            nn.Linear(256, s.dit_width), nn.SiLU(), nn.Linear(s.dit_width, s.dit_width)
        )
        self.transformer_blocks = nn.ModuleList(
            Layer(s.dit_width, s.dit_heads, 4 * s.dit_width, conditioned=True, dropout=s.dropout,
                  context=s.text_width if i % 2 == 0 else None)
            for i in range(s.dit_layers)
        )  # fmt: skip
        self.proj_out_1, self.proj_out_2 = nn.Linear(s.dit_width, 2 * s.dit_width), nn.Linear(s.dit_width, s.hidden)

    def forward(
        self, hidden_states: Tensor, encoder_hidden_states: Tensor, timestep: Tensor, image_mask: Tensor,
        backbone_attention_mask: Tensor,
    ) -> Tensor:  # fmt: skip
        x, context = hidden_states, encoder_hidden_states
        condition = self.timestep_encoder(waves(timestep, 256).to(x.dtype))
        own = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        masks = full_mask(own, backbone_attention_mask), full_mask(own, own)
        for i, block in enumerate(self.transformer_blocks):
            x = block(x, masks[i % 2], context if i % 2 == 0 else None, condition)
        shift, scale = self.proj_out_1(F.silu(condition))[:, None].chunk(2, -1)
        return self.proj_out_2(F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift)


class SelfAttention(nn.Module):
    """Layers over the backbone's features."""

    def __init__(self, s: Sizes) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            Layer(s.text_width, s.vl_heads, 4 * s.text_width, dropout=s.dropout) for _ in range(s.vl_layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        every = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        mask = full_mask(every, every)
        for layer in self.layers:
            x = layer(x, mask)
        return x


class ActionHead(nn.Module):
    def __init__(self, s: Sizes) -> None:
        super().__init__()
        n = s.embodiments
        self.model = DiffusionTransformer(s)
        self.state_encoder = PerEmbodimentMLP(n, s.state_slots, s.hidden, s.dit_width)
        self.action_encoder = ActionEncoder(n, s.action_slots, s.dit_width)
        self.action_decoder = PerEmbodimentMLP(n, s.hidden, s.hidden, s.action_slots)
        self.vlln = nn.LayerNorm(s.text_width)
        self.vl_self_attention = SelfAttention(s)
        self.position_embedding = nn.Embedding(1024, s.dit_width)
        nn.init.normal_(self.position_embedding.weight, std=0.02)


class StubModel(nn.Module):
    """`backbone` and `action_head`, as in the real model."""

    def __init__(self, sizes: Sizes) -> None:
        super().__init__()
        self.sizes = sizes
        self.backbone, self.action_head = Backbone(sizes), ActionHead(sizes)


def waves(timesteps: Tensor, width: int) -> Tensor:
    """(B,) -> (B, width) sines and cosines, float32."""
    rates = torch.exp(-math.log(10_000.0) * torch.arange(width // 2, device=timesteps.device) / (width // 2))
    angles = timesteps.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)
