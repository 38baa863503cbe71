"""Multilayer perceptrons and their two initialisations."""

import math
from itertools import pairwise

import torch
from torch import nn

from rl.models.linear import Linear

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "elu": nn.ELU, "relu": nn.ReLU, "silu": nn.SiLU}


def mlp(sizes: list[int], activation: str, activate_last: bool, layernorm: bool = False) -> nn.Sequential:
    """Linear layers from sizes[0] to sizes[-1], an activation after each (after the last one on request).

    layernorm: layer normalisation before every activation. Raises ValueError for an activation that does not exist.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"network.activation '{activation}' does not exist; there are {', '.join(ACTIVATIONS)}")
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(pairwise(sizes)):
        layers.append(Linear(a, b))
        if activate_last or i < len(sizes) - 2:
            if layernorm:
                layers.append(nn.LayerNorm(b))
            layers.append(ACTIVATIONS[activation]())
    return nn.Sequential(*layers)


@torch.no_grad()
def orthogonal_(module: nn.Module, gain: float = math.sqrt(2)) -> None:
    """Orthogonal weights with `gain` and zero biases for every linear and convolution layer (details 2 and 21)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.orthogonal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
