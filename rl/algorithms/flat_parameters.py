"""All parameters of a module in one vector, so that an optimizer step, a norm and an average are one operation each.

Small networks spend more time in starting operations than in them: with six tensors of a critic, Adam, clipping and
the target's average start ten times as many.
"""

import torch
from torch import Tensor, nn


class FlatParameters:
    """`vector` and the parameters of `module` are the same memory: an optimizer of one trains the other."""

    def __init__(self, module: nn.Module) -> None:
        """Moves the parameters of `module`, all of one dtype and device; it must stay on its device afterwards."""
        self.parameters = list(module.parameters())
        self._sizes = [p.numel() for p in self.parameters]
        self.vector = nn.Parameter(torch.cat([p.detach().flatten() for p in self.parameters]))
        for p, part in zip(self.parameters, self.vector.detach().split(self._sizes), strict=True):
            p.data = part.view_as(p)

    def gradient(self, loss: Tensor) -> Tensor:
        """Of `loss`, as one vector. Every parameter must be in the way of `loss`."""
        assert self.vector.data_ptr() == self.parameters[0].data_ptr(), "the module was moved"
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, self.parameters)])
