"""Three Gemma streams (und, gen, act) that meet only in attention.

Letters: B batch, L tokens, d width of a stream, H query heads, G key/value heads, D head size.
"""

from dataclasses import dataclass, field
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import kernels
from f1_vla.config import ExpertConfig, TrunkConfig
from kernels import BlockMask

STREAMS = ("und", "gen", "act")
ROPE_BASE = 10000.0  # a constant of the published model; its `rope_theta` is not consulted


class RMSNorm(nn.Module):
    """x * rsqrt(mean(x^2) + 1e-6) * (1 + w), in float32, returned in the input's dtype."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6)
        return (y * (1 + self.weight.float())).to(x.dtype)


def for_matmul(x: Tensor) -> Tensor:
    """`x` in the dtype that autocast gives matrix products: cast once here instead of once in every projection."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


class Attention(nn.Module):
    """Projections of one stream; the attention itself is joint."""

    def __init__(self, width: int, cfg: TrunkConfig) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, cfg.num_heads * cfg.head_dim, bias=False)
        self.k_proj = nn.Linear(width, cfg.num_kv_heads * cfg.head_dim, bias=False)
        self.v_proj = nn.Linear(width, cfg.num_kv_heads * cfg.head_dim, bias=False)
        self.o_proj = nn.Linear(cfg.num_heads * cfg.head_dim, width, bias=False)


class MLP(nn.Module):
    def __init__(self, cfg: ExpertConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.up_proj = nn.Linear(cfg.hidden_size, cfg.intermediate_size, bias=False)
        self.down_proj = nn.Linear(cfg.intermediate_size, cfg.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.gate_proj(x), approximate="tanh") * self.up_proj(x))


class Layer(nn.Module):
    """One layer of one stream, up to and after the joint attention."""

    def __init__(self, expert: ExpertConfig, cfg: TrunkConfig) -> None:
        super().__init__()
        self.head_dim = cfg.head_dim
        self.input_layernorm = RMSNorm(expert.hidden_size)
        self.self_attn = Attention(expert.hidden_size, cfg)
        self.post_attention_layernorm = RMSNorm(expert.hidden_size)
        self.mlp = MLP(expert)

    def qkv(self, x_BLd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, L, H, D), (B, L, G, D), (B, L, G, D), not yet rotated."""
        n, a = for_matmul(self.input_layernorm(x_BLd)), self.self_attn
        shape = (*x_BLd.shape[:2], -1, self.head_dim)
        return a.q_proj(n).view(shape), a.k_proj(n).view(shape), a.v_proj(n).view(shape)

    def finish(self, x_BLd: Tensor, attended_BLHD: Tensor) -> Tensor:
        y = x_BLd + self.self_attn.o_proj(attended_BLHD.flatten(2))
        return y + self.mlp(for_matmul(self.post_attention_layernorm(y)))


class Expert(nn.Module):
    """Weights of one stream."""

    def __init__(self, expert: ExpertConfig, cfg: TrunkConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(expert, cfg) for _ in range(cfg.num_layers))
        self.norm = RMSNorm(expert.hidden_size)


def positions_of(valid_BL: Tensor) -> Tensor:
    """Running count of valid tokens minus one: a padded token repeats the position before it."""
    return valid_BL.cumsum(1) - 1


def rope_table(positions_BL: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """float32 cos and signed sin (B, L, 1, D) for `rotate`: the first half of a head pairs with the second half."""
    half = head_dim // 2
    i = torch.arange(half, dtype=torch.float32, device=positions_BL.device)
    angle = positions_BL.float()[..., None] * ROPE_BASE ** (-2.0 * i / head_dim)
    sin, cos = angle.sin(), angle.cos()
    return torch.cat([cos, cos], -1)[:, :, None], torch.cat([-sin, sin], -1)[:, :, None]


def rotate(x_BLHD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """(x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin), in float32, returned in the input's dtype."""
    half = x_BLHD.shape[-1] // 2
    return torch.addcmul(x_BLHD * cos, x_BLHD.roll(half, -1), sin).to(x_BLHD.dtype)


@dataclass
class KVCache:
    """Rotated keys and values of every layer (B, L, G, D) with the block id and validity of each cached token.

    With a `capacity` (inference only) the tensors are the front of buffers that are allocated once: new tokens are
    written behind them in place, nothing seen so far is copied. Calls that keep no cache (Euler steps) reuse that room.
    """

    block: Tensor  # int32 (1, L)
    valid: Tensor  # bool (B, L)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    capacity: int = 0
    room: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # buffers (B, capacity, G, D), shared by extensions
    filled: list[int] = field(default_factory=lambda: [0])  # tokens in the buffers that some cache owns; shared

    @classmethod
    def reserve(
        cls, batch: int, capacity: int, device: torch.device, room: list[tuple[Tensor, Tensor]] | None = None
    ) -> "KVCache":
        """Nothing cached yet, room for `capacity` tokens; room: buffers of an earlier cache, which is overwritten."""
        empty = torch.zeros(1, 0, dtype=torch.int32, device=device)
        none = torch.zeros(batch, 0, dtype=torch.bool, device=device)
        return cls(empty, none, capacity=capacity, room=[] if room is None else room)

    def __len__(self) -> int:
        return self.valid.shape[1]

    def join(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a layer with those of new tokens behind; in place when the room behind is nobody's."""
        start, stop = len(self), len(self) + k.shape[1]
        if torch.is_grad_enabled() or stop > self.capacity or start != self.filled[0]:
            return (
                (k, v) if start == 0 else (torch.cat([self.keys[layer], k], 1), torch.cat([self.values[layer], v], 1))
            )
        if layer == len(self.room):
            shape = (k.shape[0], self.capacity, *k.shape[2:])
            self.room.append((k.new_empty(shape), v.new_empty(shape)))
        for buffer, new in zip(self.room[layer], (k, v), strict=True):
            buffer[:, start:stop] = new
        return self.room[layer][0][:, :stop], self.room[layer][1][:, :stop]

    def extended(self, mask: BlockMask, keys: list[Tensor], values: list[Tensor]) -> "KVCache":
        """A cache over what `join` gave; this one stays as it was."""
        if not self.room or keys[0].data_ptr() != self.room[0][0].data_ptr():
            return KVCache(mask.k_block, mask.k_valid, keys, values)  # a copy: the room belongs to somebody else
        self.filled[0] = mask.shape[1]
        return KVCache(mask.k_block, mask.k_valid, keys, values, self.capacity, self.room, self.filled)


class Trunk(nn.Module):
    """The joint transformer. Embeddings come in, outputs of each stream's final RMSNorm go out."""

    def __init__(self, cfg: TrunkConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.backend = cfg.attention_backend
        self.und = Expert(cfg.und, cfg)
        self.gen = Expert(cfg.gen, cfg)
        self.act = Expert(cfg.act, cfg)

    def choose_backend(self, device: torch.device | str, dtype: torch.dtype) -> None:
        """Decides what attention in `dtype` takes on `device`. ValueError when the configured backend cannot run."""
        self.backend = kernels.choose_backend(self.cfg.attention_backend, device, dtype, self.cfg.head_dim)

    def forward(
        self,
        streams: dict[str, Tensor],
        positions_BL: Tensor,
        block: Tensor,
        valid_BL: Tensor,
        cache: KVCache | None = None,
        keep_cache: bool = False,
        mask: BlockMask | None = None,
    ) -> tuple[dict[str, Tensor], KVCache | None]:
        """Runs the streams present, concatenated in the order und, gen, act, on top of `cache`.

        streams: name -> (B, L_s, d_s). positions_BL int (B, L), block int32 (1, L) and valid_BL bool (B, L) are over
        the concatenation. Returns outputs by name and, with keep_cache, a new cache extended by these tokens (the one
        given is left as it was). mask: `mask_on(cache, block, valid_BL)` when several calls share it.
        """
        names = [n for n in STREAMS if n in streams]
        assert len(names) == len(streams), f"streams must be among {STREAMS}, got {list(streams)}"
        xs = [streams[n] for n in names]
        mask = mask_on(cache, block, valid_BL) if mask is None else mask
        cos, sin = rope_table(positions_BL, self.cfg.head_dim)
        keys: list[Tensor] = []
        values: list[Tensor] = []
        recompute = self.cfg.gradient_checkpointing and torch.is_grad_enabled()
        for i in range(self.cfg.num_layers):
            run = partial(self._layer, names, i, mask, cos, sin, cache)
            k, v, *xs = checkpoint(run, *xs, use_reentrant=False) if recompute else run(*xs)
            if keep_cache:
                keys.append(k)
                values.append(v)
        new = None
        if keep_cache:
            new = (
                KVCache(mask.k_block, mask.k_valid, keys, values)
                if cache is None
                else cache.extended(mask, keys, values)
            )
        return {n: getattr(self, n).norm(x) for n, x in zip(names, xs, strict=True)}, new

    def _layer(
        self,
        names: list[str],
        index: int,
        mask: BlockMask,
        cos: Tensor,
        sin: Tensor,
        cache: KVCache | None,
        *xs: Tensor,
    ) -> tuple[Tensor, ...]:
        """Keys and values seen by this call (cached ones included) and the new value of every stream."""
        layers: list[Layer] = [getattr(self, n).layers[index] for n in names]
        parts = [layer.qkv(x) for layer, x in zip(layers, xs, strict=True)]
        q, k, v = (p[0] if len(p) == 1 else torch.cat(p, 1) for p in zip(*parts, strict=True))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if cache is not None:
            k, v = cache.join(index, k, v)
        attended = kernels.attention(q, k, v, mask, backend=self.backend)
        pieces = attended.split([x.shape[1] for x in xs], dim=1)
        return k, v, *(layer.finish(x, o) for layer, x, o in zip(layers, xs, pieces, strict=True))


def mask_on(cache: KVCache | None, block: Tensor, valid_BL: Tensor) -> BlockMask:
    """What tokens on top of a cache may see. block int32 (1, L), valid_BL bool (B, L)."""
    if cache is None or len(cache) == 0:
        return BlockMask.square(block, valid_BL)
    k_block, k_valid = torch.cat([cache.block, block], 1), torch.cat([cache.valid, valid_BL], 1)
    return BlockMask(block, k_block, valid_BL, k_valid)
