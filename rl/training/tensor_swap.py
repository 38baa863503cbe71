"""Copies of what one role trains, taken and put in place of the present weights: one frozen base, many versions.

A version is a dict of tensors by parameter name; nothing that the role does not train is ever copied.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

Version = dict[str, Tensor]
Parameters = Mapping[str, nn.Parameter]


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters with requires_grad, by name."""
    return {n: p for n, p in module.named_parameters() if p.requires_grad}


def taken(parameters: Parameters) -> Version:
    """A copy of the present weights, on their device."""
    return {n: p.detach().clone() for n, p in parameters.items()}


@torch.no_grad()
def put(parameters: Parameters, version: Version) -> None:
    """Overwrites the present weights. Raises ValueError, with nothing written, for other names or shapes."""
    _check(parameters, version)
    for name, p in parameters.items():
        p.copy_(version[name])


@contextmanager
def swapped_in(parameters: Parameters, version: Version) -> Iterator[None]:
    """Inside the block the model has the weights of `version`, afterwards bit for bit its own. Nothing is copied.

    For forwards without gradients. Raises ValueError for other names or shapes.
    """
    _check(parameters, version)
    own = {n: p.data for n, p in parameters.items()}
    for name, p in parameters.items():
        p.data = version[name]
    try:
        yield
    finally:
        for name, p in parameters.items():
            p.data = own[name]


def on_device_of(parameters: Parameters, version: Version) -> Version:
    """A loaded version where its parameters are."""
    _check(parameters, version)
    return {n: version[n].to(p.device) for n, p in parameters.items()}


def _check(parameters: Parameters, version: Version) -> None:
    wrong = sorted(parameters.keys() ^ version.keys())
    wrong += [n for n in parameters.keys() & version.keys() if parameters[n].shape != version[n].shape]
    if wrong:
        raise ValueError(f"a stored version of the weights does not fit this model: {', '.join(wrong[:3])}")
