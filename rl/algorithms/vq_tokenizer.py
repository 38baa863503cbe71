"""Training of the multi-scale VQ-VAE: autoencoder warm-up, k-means codebook, straight-through with an EMA codebook.

Codebook updates follow van den Oord et al. 2017 (appendix A.1) with restarts of dead codes; the multi-scale loss is
VAR's (Tian et al. 2024, algorithm 1) with the codebook term replaced by the moving average.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from f1_vla.tokenizer import AttnBlock, MultiScaleVQVAE, ResnetBlock
from rl.config import TokenizerTrainingConfig


def initialise(model: MultiScaleVQVAE) -> None:
    """Orthogonal convolutions, small residual branches: the autoencoder learns several times faster than from the
    framework's default initialisation."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, ResnetBlock):
                module.conv2.weight.mul_(0.1)
            elif isinstance(module, AttnBlock):
                module.proj_out.weight.mul_(0.1)


@dataclass
class VQLosses:
    """Scalar tensors of one batch; `psnr` is in dB for pictures in [-1, 1]."""

    loss: Tensor
    reconstruction: Tensor
    commitment: Tensor
    psnr: Tensor


def picture_psnr(a: Tensor, b: Tensor) -> Tensor:
    """Mean over pictures of the PSNR in dB; both (N, 3, H, W) in [-1, 1], so the peak is 2."""
    mse = (a.float() - b.float()).square().flatten(1).mean(1).clamp_min(1e-10)
    return (10 * torch.log10(4 / mse)).mean()


def reconstruction_loss(recon: Tensor, img: Tensor, l1_weight: float) -> Tensor:
    return F.mse_loss(recon, img) + l1_weight * F.l1_loss(recon, img)


def autoencoder_loss(model: MultiScaleVQVAE, img_N3HW: Tensor, cfg: TokenizerTrainingConfig) -> VQLosses:
    """Without quantisation; the small weight on the latent's size keeps it in the codebook's reach."""
    z = model.encode_latent(img_N3HW)
    recon = model.decode(z, clamp=False)
    rec = reconstruction_loss(recon, img_N3HW, cfg.l1_weight)
    size = z.square().mean()
    return VQLosses(rec + 1e-4 * size, rec, size, picture_psnr(recon.detach(), img_N3HW))


class EMACodebook:
    """Moving-average codebook of a quantiser; rows unused for `dead_code_steps` updates restart at data rows."""

    def __init__(self, model: MultiScaleVQVAE, cfg: TokenizerTrainingConfig, generator: torch.Generator) -> None:
        self.model, self.cfg, self.generator = model, cfg, generator
        weight = model.quantize.embedding.weight
        weight.requires_grad_(False)
        self.count = torch.ones(weight.shape[0], device=weight.device)
        self.total = weight.detach().clone()
        self.unused = torch.zeros(weight.shape[0], device=weight.device)

    @torch.no_grad()
    def update(self, rows_MC: Tensor, index_M: Tensor) -> None:
        """Rows of all scales that were quantised and the codes they took."""
        decay, size = self.cfg.codebook_decay, self.count.shape[0]
        hits = torch.bincount(index_M, minlength=size).float()
        sums = torch.zeros_like(self.total).index_add_(0, index_M, rows_MC)
        self.count.mul_(decay).add_(hits, alpha=1 - decay)
        self.total.mul_(decay).add_(sums, alpha=1 - decay)
        self.unused = torch.where(hits > 0, torch.zeros_like(self.unused), self.unused + 1)
        dead = self.unused >= self.cfg.dead_code_steps
        if dead.any():
            picks = torch.randint(rows_MC.shape[0], (int(dead.sum()),), generator=self.generator)
            self.total[dead] = rows_MC[picks]
            self.count[dead] = 1.0
            self.unused[dead] = 0.0
        self.model.quantize.embedding.weight.copy_(self.total / self.count.clamp_min(1e-5)[:, None])


def quantized_loss(
    model: MultiScaleVQVAE, img_N3HW: Tensor, cfg: TokenizerTrainingConfig
) -> tuple[VQLosses, Tensor, Tensor]:
    """Straight-through loss; also the rows (M, C) that were quantised and their codes (M,) for the codebook update."""
    q = model.quantize
    z = model.encode_latent(img_N3HW).float()
    rest, fhat = z.detach(), torch.zeros_like(z)
    commitment = z.new_zeros(())
    rows_all, index_all = [], []
    for k in range(len(q.scales)):
        rows = q.pool(rest, k).flatten(2).transpose(1, 2).reshape(-1, z.shape[1])
        index = q.nearest(rows)
        g = q.enlarge(q.embed(index.view(z.shape[0], -1), k), k)
        fhat, rest = fhat + g, rest - g.detach()
        commitment = commitment + cfg.commitment_weight * F.mse_loss(fhat.detach(), z) + F.mse_loss(fhat, z.detach())
        rows_all.append(rows)
        index_all.append(index)
    commitment = commitment / len(q.scales)
    recon = model.decode(z + (fhat - z).detach(), clamp=False)
    rec = reconstruction_loss(recon, img_N3HW, cfg.l1_weight)
    losses = VQLosses(rec + commitment, rec, commitment, picture_psnr(recon.detach().clamp(-1, 1), img_N3HW))
    return losses, torch.cat(rows_all), torch.cat(index_all)


@torch.no_grad()
def kmeans(rows_MC: Tensor, k: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Lloyd's algorithm from random rows; an empty cluster restarts at a random row. Returns (k, C)."""
    centers = rows_MC[torch.randperm(rows_MC.shape[0], generator=generator)[:k]].clone()
    for _ in range(iterations):
        index = (centers.square().sum(1) - 2 * rows_MC @ centers.T).argmin(1)
        count = torch.bincount(index, minlength=k)
        centers = torch.zeros_like(centers).index_add_(0, index, rows_MC) / count.clamp_min(1)[:, None]
        empty = count == 0
        if empty.any():
            centers[empty] = rows_MC[torch.randint(rows_MC.shape[0], (int(empty.sum()),), generator=generator)]
    return centers


@torch.no_grad()
def init_codebook(
    model: MultiScaleVQVAE, latents_NCPP: Tensor, generator: torch.Generator, iterations: int = 10
) -> None:
    """Codebook by k-means scale after scale on what earlier scales leave over.

    All scales share one codebook, so each gets a part of the rows in proportion to the square root of its tokens.
    phi starts at the identity (zero residual effect).
    """
    q = model.quantize
    for conv in q.quant_resi.qresi_ls:
        assert isinstance(conv, nn.Conv2d) and conv.bias is not None
        torch.nn.init.dirac_(conv.weight)
        torch.nn.init.zeros_(conv.bias)
    vocab = q.embedding.weight.shape[0]
    parts = torch.tensor([float(p) for p in q.scales])
    sizes = (parts / parts.sum() * vocab).long().clamp_min(1)
    sizes[-1] += vocab - int(sizes.sum())
    rest, start = latents_NCPP.float(), 0
    for k, size in enumerate(sizes.tolist()):
        rows = q.pool(rest, k).flatten(2).transpose(1, 2).reshape(-1, rest.shape[1])
        sample = rows[torch.randperm(rows.shape[0], generator=generator)[: 64 * size]]
        centers = kmeans(sample, min(size, sample.shape[0]), iterations, generator)
        q.embedding.weight[start : start + centers.shape[0]] = centers
        index = (centers.square().sum(1) - 2 * rows @ centers.T).argmin(1)
        rest = rest - q.enlarge(
            centers[index]
            .view(rest.shape[0], -1, rest.shape[1])
            .transpose(1, 2)
            .reshape(rest.shape[0], rest.shape[1], q.scales[k], q.scales[k]),
            k,
        )
        start += size


@torch.no_grad()
def codebook_usage(index_M: Tensor, vocab: int) -> tuple[float, float]:
    """Share of codes in use and perplexity of their distribution."""
    p = torch.bincount(index_M, minlength=vocab).float()
    p = p / p.sum()
    entropy = -(p[p > 0] * p[p > 0].log()).sum()
    return float((p > 0).float().mean()), float(entropy.exp())
