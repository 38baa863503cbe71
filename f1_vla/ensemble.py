"""Ensemble of world-model heads: what the world model does not know, apart from what nobody can know.

Member k predicts softmax(base + delta_k): `base` are the logits of the world model, `delta_k` reads the gen expert's
outputs. Both are detached, so the heads change nothing of the world model, in use or in training. Every delta_k is a
linear map of random features that never train, starts at random and trains on its own bootstrap sample of the episodes:
where there is data the members come to agree, elsewhere they keep their differences (sample-then-optimise, Matthews et
al. 2017; randomised priors, Osband et al. 2018).

Letters: N samples (batch x time), M output slots, d width of the gen expert, r random features, V codes, K members.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from f1_vla.config import F1Config

SEED = 20180608  # of the initial weights: a stream of their own, so that heads on or off leave all others as they are
INITIAL_SPREAD = 0.5  # standard deviation of delta_k before training, in nats


class EnsembleHeads(nn.Module):
    features: Tensor

    def __init__(self, members: int, width: int, random_features: int, vocab_size: int) -> None:
        super().__init__()
        self.members = members
        generator = torch.Generator().manual_seed(SEED)
        # On the CPU also where a model is laid out on the meta device: the generator lives there.
        features = torch.randn(members, width, random_features, generator=generator, device="cpu") / math.sqrt(width)
        readout = torch.randn(members, random_features, vocab_size, generator=generator, device="cpu")
        # gelu of a standard normal has mean square 0.425.
        self.readout = nn.Parameter(readout * INITIAL_SPREAD / math.sqrt(0.425 * random_features))
        self.register_buffer("features", features)

    def member_logits(self, hidden_NMd: Tensor, base_NMV: Tensor, member: int) -> Tensor:
        """Logits (N, M, V) float32 of one member; gradients reach its readout alone."""
        x = F.layer_norm(hidden_NMd.detach().float(), hidden_NMd.shape[-1:])
        delta = F.gelu(x @ self.features[member]) @ self.readout[member]
        return base_NMV.detach().float() + delta.float()

    def loss(self, hidden_NMd: Tensor, base_NMV: Tensor, target_NM: Tensor, weight_NK: Tensor) -> Tensor:
        """Cross entropy, mean over tokens and over the pairs of sample and member with weight 1 (bool (N, K))."""
        total = base_NMV.new_zeros((), dtype=torch.float32)
        for k in range(self.members):
            logits = self.member_logits(hidden_NMd, base_NMV, k)
            nll = F.cross_entropy(logits.flatten(0, 1), target_NM.flatten(), reduction="none").view(target_NM.shape)
            total = total + (nll.mean(-1) * weight_NK[:, k]).sum()
        return total / weight_NK.sum().clamp(min=1)

    @torch.no_grad()
    def disagreement(self, hidden_NMd: Tensor, base_NMV: Tensor) -> Tensor:
        """Mutual information between a token and the member that predicts it (N, M), in nats, from 0 to log K."""
        mean_p, mean_entropy = torch.zeros_like(base_NMV, dtype=torch.float32), base_NMV.new_zeros(())
        for k in range(self.members):
            log_p = self.member_logits(hidden_NMd, base_NMV, k).log_softmax(-1)
            p = log_p.exp()
            mean_p += p / self.members
            mean_entropy = mean_entropy - (p * log_p).sum(-1) / self.members
        return mutual_information(mean_p, mean_entropy)


def mutual_information(mean_p: Tensor, mean_entropy: Tensor) -> Tensor:
    """H(mean of the members) - mean of their entropies (Houlsby et al. 2011); rounding below 0 is cut."""
    return (token_entropy(mean_p) - mean_entropy).clamp_min(0)


def token_entropy(p: Tensor) -> Tensor:
    """Entropy over the last dimension, in nats."""
    return -torch.xlogy(p, p).sum(-1)


def mean_over_scales(per_token: Tensor, sizes: list[int]) -> Tensor:
    """(..., M) -> (...): mean over the tokens of each scale, then over scales, so that each weighs the same."""
    return torch.stack([x.mean(-1) for x in per_token.split(sizes, -1)]).mean(0)


def make_ensemble(cfg: F1Config) -> EnsembleHeads | None:
    """The heads of the configuration with their initial weights; None when they are switched off."""
    w = cfg.world_model
    if w.ensemble_heads == 0:
        return None
    return EnsembleHeads(w.ensemble_heads, cfg.trunk.gen.hidden_size, w.ensemble_features, cfg.tokenizer.vocab_size)
