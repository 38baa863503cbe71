"""Ensembles of critics, and the two kinds of values they give.

A value knows its mean, what it is worth as a target, and the loss of being told a target; so one learner serves scalar
and categorical critics. Letters: N critics, B batch, K atoms, O observation features, A action dims.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor, nn

from rl.models.ensemble import EnsembleLayerNorm, EnsembleLinear
from rl.models.fused_mlp import FusedMLP
from rl.models.mlp import ACTIVATIONS


class Value(Protocol):
    """What N critics say about B actions."""

    def mean(self) -> Tensor:
        """(N, B) expected return."""
        ...

    def target(self, reward: Tensor, discount: Tensor, own: bool) -> Tensor:
        """What the critics of the step before should have said: reward (B,) + discount (B,) * this value, detached.

        own: one target for each critic, else the pessimistic one for all. Shape as `loss` takes it.
        """
        ...

    def loss(self, target: Tensor) -> Tensor:
        """Scalar: sum over critics of the mean over the batch."""
        ...

    def target_mean(self, target: Tensor) -> Tensor:
        """(N or 1, B) expected return of targets."""
        ...


@dataclass
class ScalarValue:
    """values_NB; targets (N or 1, B)."""

    values_NB: Tensor

    def mean(self) -> Tensor:
        return self.values_NB

    def target(self, reward: Tensor, discount: Tensor, own: bool) -> Tensor:
        next_NB = self.values_NB if own else self.values_NB.amin(0, keepdim=True)
        return (reward + discount * next_NB).detach()

    def loss(self, target: Tensor) -> Tensor:
        return 0.5 * (self.values_NB - target).square().mean(1).sum()

    def target_mean(self, target: Tensor) -> Tensor:
        return target


@dataclass
class CategoricalValue:
    """logits_NBK over `atoms_K`, evenly spaced returns (C51, Bellemare et al. 2017); targets (N or 1, B, K)."""

    logits_NBK: Tensor
    atoms_K: Tensor

    def mean(self) -> Tensor:
        return (self.logits_NBK.softmax(-1) * self.atoms_K).sum(-1)

    def target(self, reward: Tensor, discount: Tensor, own: bool) -> Tensor:
        probs_NBK = self.logits_NBK.float().softmax(-1)
        if not own:
            smallest_1B = (probs_NBK * self.atoms_K).sum(-1).argmin(0, keepdim=True)
            probs_NBK = probs_NBK.gather(0, smallest_1B[..., None].expand(-1, -1, probs_NBK.shape[-1]))
        return project(probs_NBK, self.atoms_K, reward, discount).detach()

    def loss(self, target: Tensor) -> Tensor:
        return -(target * self.logits_NBK.float().log_softmax(-1)).sum(-1).mean(1).sum()

    def target_mean(self, target: Tensor) -> Tensor:
        return (target * self.atoms_K).sum(-1)


def project(probs_NBK: Tensor, atoms_K: Tensor, reward_B: Tensor, discount_B: Tensor) -> Tensor:
    """Distribution of reward + discount * Z on the atoms of Z (algorithm 1 of C51); (N, B, K).

    Mass between two atoms is shared by distance, mass beyond the ends goes to the end atoms.
    """
    K = atoms_K.shape[0]
    spacing = (atoms_K[-1] - atoms_K[0]) / (K - 1)
    moved_BK = (reward_B[:, None] + discount_B[:, None] * atoms_K).clamp(atoms_K[0], atoms_K[-1])
    place_BK = (moved_BK - atoms_K[0]) / spacing
    lower_BK = place_BK.floor().clamp(0, K - 2)
    upper_share_BK = (place_BK - lower_BK).clamp(0, 1)
    index_NBK = lower_BK.long().expand_as(probs_NBK)
    out = torch.zeros_like(probs_NBK)
    out.scatter_add_(-1, index_NBK, probs_NBK * (1 - upper_share_BK))
    return out.scatter_add_(-1, index_NBK + 1, probs_NBK * upper_share_BK)


class CriticEnsemble(nn.Module):
    """Q(observation, action) of N independent critics."""

    atoms: Tensor | None

    def __init__(
        self, features: int, action_dim: int, hidden: list[int], members: int, activation: str = "relu",
        layernorm: bool = False, atoms: Tensor | None = None,
    ) -> None:  # fmt: skip
        """atoms (K,): categorical critics over these returns; None: scalar ones. ValueError for the activation."""
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(f"network.activation '{activation}' does not exist; there are {', '.join(ACTIVATIONS)}")
        self.activation = ACTIVATIONS[activation]()
        widths = [features + action_dim, *hidden]
        pairs = pairwise(widths)
        self.layers = nn.ModuleList(EnsembleLinear(members, a, b) for a, b in pairs)
        self.norms = nn.ModuleList(EnsembleLayerNorm(members, b) for b in hidden if layernorm)
        self.register_buffer("atoms", atoms)
        self.head = EnsembleLinear(members, widths[-1], 1 if atoms is None else len(atoms))
        in_order: list[Tensor] = []
        for i, layer in enumerate(self.layers):
            in_order += [*layer.parameters(), *(self.norms[i].parameters() if layernorm else ())]
        self.fused = FusedMLP([*in_order, *self.head.parameters()], activation, layernorm, ensemble=True)

    def forward(self, features: Tensor, action: Tensor, frozen: bool = False) -> Value:
        """features (B, O), action (B, A) in [-1, 1]. frozen: gradients reach the inputs only."""
        x = torch.cat([features, action], -1)
        if self.fused.fits(x):
            return self._value(self.fused(x, frozen))
        for i, layer in enumerate(self.layers):
            x = layer(x, frozen)
            if len(self.norms):
                x = self.norms[i](x, frozen)
            x = self.activation(x)
        return self._value(self.head(x, frozen))

    def _value(self, out: Tensor) -> Value:
        if self.atoms is None:
            return ScalarValue(out.squeeze(-1).float())
        return CategoricalValue(out, self.atoms)
