"""World-model tokenizer: the VQ-VAE of VAR with multi-scale residual quantisation (frozen while the policy trains).

Parameter names equal those of the published `vae_ch160v4096z32.pth`. Pictures are in [-1, 1].
Letters: N pictures, C latent channels, P side of the latent (last scale), p_k side of scale k, L tokens over all
scales, V codes, K scales.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from f1_vla.config import TokenizerConfig


class ResnetBlock(nn.Module):
    def __init__(self, c_in: int, c_out: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=1e-6)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, c_out, eps=1e-6)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.nin_shortcut = nn.Conv2d(c_in, c_out, 1)
        self.same = c_in == c_out

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.same else self.nin_shortcut(x))


class AttnBlock(nn.Module):
    """Single-head self-attention over all pixels, scores scaled by C ** -0.5."""

    def __init__(self, c: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, c, eps=1e-6)
        self.qkv = nn.Conv2d(c, 3 * c, 1)
        self.proj_out = nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)  # (N, h*w, C) each
        scores = torch.bmm(q, k.transpose(1, 2)).float() * c**-0.5
        out = torch.bmm(scores.softmax(-1).to(v.dtype), v)
        return x + self.proj_out(out.transpose(1, 2).reshape(n, c, h, w))


class _Resample(nn.Module):
    """Halves the side (zero column right, zero row bottom, stride 2) or doubles it (nearest, then convolution)."""

    def __init__(self, c: int, down: bool) -> None:
        super().__init__()
        self.down = down
        self.conv = nn.Conv2d(c, c, 3, stride=2 if down else 1, padding=0 if down else 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.down else F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    def __init__(self, c_in: int, c_out: int, blocks: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList(ResnetBlock(c_in if i == 0 else c_out, c_out, groups) for i in range(blocks))
        self.attn = nn.ModuleList(AttnBlock(c_out, groups) for _ in range(blocks if attention else 0))
        self.downsample: _Resample | None = None
        self.upsample: _Resample | None = None

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[i](x)
        return x


class _Mid(nn.Module):
    def __init__(self, c: int, groups: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(c, c, groups)
        self.attn_1 = AttnBlock(c, groups)
        self.block_2 = ResnetBlock(c, c, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self, cfg: TokenizerConfig) -> None:
        super().__init__()
        widths = [cfg.channels * m for m in cfg.channel_multipliers]
        self.conv_in = nn.Conv2d(3, cfg.channels, 3, padding=1)
        self.down = nn.ModuleList()
        c, last = cfg.channels, len(widths) - 1
        for i, w in enumerate(widths):
            level = _Level(c, w, cfg.encoder_blocks, cfg.norm_groups, attention=i == last)
            if i < last:
                level.downsample = _Resample(w, down=True)
            self.down.append(level)
            c = w
        self.mid = _Mid(c, cfg.norm_groups)
        self.norm_out = nn.GroupNorm(cfg.norm_groups, c, eps=1e-6)
        self.conv_out = nn.Conv2d(c, cfg.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            assert isinstance(level, _Level)
            x = level(x)
            if level.downsample is not None:
                x = level.downsample(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, cfg: TokenizerConfig) -> None:
        super().__init__()
        widths = [cfg.channels * m for m in cfg.channel_multipliers]
        last = len(widths) - 1
        self.conv_in = nn.Conv2d(cfg.z_channels, widths[-1], 3, padding=1)
        self.mid = _Mid(widths[-1], cfg.norm_groups)
        levels: list[_Level] = []
        c = widths[-1]
        for i in reversed(range(len(widths))):  # `up.{i}` is numbered by level, run from the last to the first
            level = _Level(c, widths[i], cfg.decoder_blocks, cfg.norm_groups, attention=i == last)
            if i > 0:
                level.upsample = _Resample(widths[i], down=False)
            levels.insert(0, level)
            c = widths[i]
        self.up = nn.ModuleList(levels)
        self.norm_out = nn.GroupNorm(cfg.norm_groups, c, eps=1e-6)
        self.conv_out = nn.Conv2d(c, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            assert isinstance(level, _Level)
            x = level(x)
            if level.upsample is not None:
                x = level.upsample(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class _Phi(nn.Module):
    """The shared 3x3 convolutions after each enlarged code map."""

    def __init__(self, channels: int, num: int) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(num))


def phi_index(scale: int, num_scales: int, num_phi: int) -> int:
    """Which convolution scale k takes: the tick nearest to k/(K-1), in the float64 arithmetic of the reference.

    The arithmetic matters: for K = 10 two scales lie half way between ticks (result 0,0,1,1,1,2,2,3,3,3).
    """
    ticks = np.linspace(1 / 3 / num_phi, 1 - 1 / 3 / num_phi, num_phi)
    position = scale / (num_scales - 1) if num_scales > 1 else 0.0
    return int(np.argmin(np.abs(ticks - position)))


class MultiScaleQuantizer(nn.Module):
    """Residual quantisation over scales p_1 < ... < p_K (README of VAR; equations in the docstrings below)."""

    def __init__(self, cfg: TokenizerConfig) -> None:
        super().__init__()
        self.scales, self.ratio = list(cfg.scales), cfg.phi_ratio
        self.embedding = nn.Embedding(cfg.vocab_size, cfg.z_channels)
        self.quant_resi = _Phi(cfg.z_channels, cfg.num_phi)
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(len(self.scales), cfg.vocab_size))
        self.phi_of_scale = [phi_index(k, len(self.scales), cfg.num_phi) for k in range(len(self.scales))]

    @property
    def side(self) -> int:
        return self.scales[-1]

    def phi(self, h_NCPP: Tensor, scale: int) -> Tensor:
        """(1 - r) h + r conv_k(h)."""
        conv = self.quant_resi.qresi_ls[self.phi_of_scale[scale]]
        return h_NCPP * (1 - self.ratio) + conv(h_NCPP) * self.ratio

    def enlarge(self, codes_NCpp: Tensor, scale: int) -> Tensor:
        """g_k: code map of one scale, bicubic to (P, P), then phi_k."""
        if scale < len(self.scales) - 1:
            codes_NCpp = F.interpolate(codes_NCpp, size=(self.side, self.side), mode="bicubic")
        return self.phi(codes_NCpp, scale)

    def embed(self, ids_NpP: Tensor, scale: int) -> Tensor:
        """Token ids (N, p_k^2) of one scale -> codes (N, C, p_k, p_k)."""
        p = self.scales[scale]
        return self.embedding(ids_NpP).transpose(1, 2).reshape(ids_NpP.shape[0], -1, p, p)

    def pool(self, f_NCPP: Tensor, scale: int) -> Tensor:
        p = self.scales[scale]
        return f_NCPP if p == self.side else F.interpolate(f_NCPP, size=(p, p), mode="area")

    def nearest(self, rows_MC: Tensor) -> Tensor:
        """Index of the nearest code in squared Euclidean distance; the lowest index on a tie. (M, C) -> (M,)"""
        e = self.embedding.weight
        distance = rows_MC.square().sum(1, keepdim=True) + e.square().sum(1) - 2 * rows_MC @ e.T
        return distance.argmin(1)

    def quantize(self, latent_NCPP: Tensor) -> tuple[list[Tensor], Tensor]:
        """Latent -> ids of every scale [(N, p_k^2)] and the accumulated f-hat (N, C, P, P), in float32."""
        rest, fhat = latent_NCPP.float(), torch.zeros_like(latent_NCPP, dtype=torch.float32)
        ids = []
        for k in range(len(self.scales)):
            rows = self.pool(rest, k).flatten(2).transpose(1, 2)  # (N, p^2, C)
            index = self.nearest(rows.reshape(-1, rows.shape[-1])).view(rows.shape[0], -1)
            g = self.enlarge(self.embed(index, k), k)
            fhat, rest = fhat + g, rest - g
            ids.append(index)
        return ids, fhat

    def split(self, ids_NL: Tensor) -> list[Tensor]:
        """Concatenated ids (N, L) -> ids of every scale."""
        return list(ids_NL.split([p * p for p in self.scales], dim=1))

    def ids_to_fhat(self, ids_NL: Tensor) -> Tensor:
        """All ids (N, L) -> accumulated latent (N, C, P, P)."""
        return torch.stack([self.enlarge(self.embed(i, k), k) for k, i in enumerate(self.split(ids_NL))]).sum(0)

    def ids_to_var_input(self, ids_NL: Tensor) -> Tensor:
        """Next-scale inputs (N, L-1, C): the accumulated latent before each scale k >= 2, pooled to p_k, row-major."""
        parts, fhat = [], None
        for k, index in enumerate(self.split(ids_NL)[:-1]):
            g = self.enlarge(self.embed(index, k), k)
            fhat = g if fhat is None else fhat + g
            parts.append(self.pool(fhat, k + 1).flatten(2).transpose(1, 2))
        return torch.cat(parts, 1)


class MultiScaleVQVAE(nn.Module):
    """Encoder, quantiser and decoder. Every public method works under the caller's grad mode."""

    def __init__(self, cfg: TokenizerConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.encoder = Encoder(cfg)
        self.decoder = Decoder(cfg)
        self.quant_conv = nn.Conv2d(cfg.z_channels, cfg.z_channels, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(cfg.z_channels, cfg.z_channels, 3, padding=1)
        self.quantize = MultiScaleQuantizer(cfg)

    def encode_latent(self, img_N3HW: Tensor) -> Tensor:
        """Pictures in [-1, 1] (N, 3, S, S) -> continuous latent (N, C, P, P). ValueError on another size."""
        size = self.cfg.image_size
        if img_N3HW.shape[-2:] != (size, size):
            raise ValueError(
                f"tokenizer expects {size}x{size} px pictures, got {tuple(img_N3HW.shape[-2:])}; "
                f"set environment.wm_size={size} or choose the model whose tokenizer has that size"
            )
        return self.quant_conv(self.encoder(img_N3HW))

    def img_to_ids(self, img_N3HW: Tensor) -> Tensor:
        """Pictures -> token ids (N, L) int64."""
        return torch.cat(self.quantize.quantize(self.encode_latent(img_N3HW))[0], 1)

    def ids_to_var_input(self, ids_NL: Tensor) -> Tensor:
        return self.quantize.ids_to_var_input(ids_NL)

    def ids_to_fhat(self, ids_NL: Tensor) -> Tensor:
        return self.quantize.ids_to_fhat(ids_NL)

    def decode(self, fhat_NCPP: Tensor, clamp: bool = True) -> Tensor:
        """Latent (N, C, P, P) -> pictures (N, 3, S, S), clamped to [-1, 1] unless asked otherwise."""
        img = self.decoder(self.post_quant_conv(fhat_NCPP))
        return img.clamp(-1, 1) if clamp else img
