"""A whole multilayer perceptron as one operation of autograd, for small float32 batches on a CPU.

What layer by layer costs there is not only arithmetic but starting it: a Python call and a node of the graph for every
layer, normalisation and activation, and copies that put the members of an ensemble side by side after each. Numbers
are those of the modules whose parameters these are. Letters: N members, B batch, I inputs, O outputs.

Parameters come in one list: of each hidden layer weight and bias, and scale and shift of its layer normalisation where
there is one; at the end weight and bias of the last layer.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from rl.models.linear import product, usable, weight_gradient

_relu_backward = torch.ops.aten.threshold_backward.default
_silu_backward = torch.ops.aten.silu_backward.default
_norm_backward = torch.ops.aten.native_layer_norm_backward.default
EPS = 1e-5  # of layer normalisation, as torch's
ACTIVATIONS = ("relu", "silu")


class Layer(NamedTuple):
    weight: Tensor  # (O, I)
    bias: Tensor  # (O,)
    scale: Tensor | None = None  # (O,), of the layer normalisation
    shift: Tensor | None = None


class Kept(NamedTuple):
    """What the way back needs of a hidden layer."""

    x: Tensor  # (B, I)
    linear: Tensor  # (B, O), before the normalisation
    mean: Tensor | None
    rstd: Tensor | None
    normed: Tensor  # (B, O), before the activation


class FusedMLP:
    """One network, or N side by side, of given parameters. Not a module: those who own the parameters call it."""

    def __init__(self, parameters: Sequence[Tensor], activation: str, layernorm: bool, ensemble: bool) -> None:
        """Of one network weights are (O, I) and everything else (O,), of an ensemble (N, I, O) and (N, 1, O)."""
        self.parameters, self.activation, self.ensemble = list(parameters), activation, ensemble
        self._size = 4 if layernorm else 2  # parameters of a hidden layer
        self._members: list[list[Layer]] = []
        self._places: list[int] = []

    def fits(self, x: Tensor) -> bool:
        """Whether x is what this file is for."""
        return not torch.compiler.is_compiling() and self.activation in ACTIVATIONS and x.dim() == 2 and usable(x)

    def __call__(self, x: Tensor, frozen: bool = False) -> Tensor:
        """x (B, I), where it `fits`, to (B, O) or (N, B, O). frozen: gradients reach x only."""
        out: Tensor = _Apply.apply(x, self, *(() if frozen else self.parameters))
        return out

    def members(self) -> list[list[Layer]]:
        """Layers of each member, as views that last as long as the parameters stay in their places."""
        places = [p.data_ptr() for p in self.parameters]
        if places != self._places:
            own = [p.detach() for p in self.parameters]
            views: list[Sequence[Tensor]] = [(p,) for p in own]
            if self.ensemble:
                views = [p.squeeze(1).unbind() if i % self._size else p.mT.unbind() for i, p in enumerate(own)]
            starts = range(0, len(own), self._size)
            self._members = [[Layer(*m[i : i + self._size]) for i in starts] for m in zip(*views, strict=True)]
            self._places = places
        return self._members


def _forward(x: Tensor, layers: list[Layer], relu: bool) -> tuple[Tensor, list[Kept]]:
    """Output (B, O), and what the layers keep."""
    kept = []
    *hidden, last = layers
    for weight, bias, scale, shift in hidden:
        linear = normed = product(x, weight, bias)
        mean = rstd = None
        if scale is not None:
            normed, mean, rstd = torch.native_layer_norm(linear, linear.shape[1:], scale, shift, EPS)
        kept.append(Kept(x, linear, mean, rstd, normed))
        x = torch.relu(normed) if relu else F.silu(normed)
    kept.append(Kept(x, x, None, None, x))
    return product(x, last.weight, last.bias), kept


def _backward(
    g: Tensor, layers: list[Layer], kept: list[Kept], relu: bool, own: bool, inputs: bool
) -> tuple[Tensor | None, list[Tensor]]:  # fmt: skip
    """Gradient of x, if `inputs`, and of the parameters, if `own`; that of a weight is (I, O)."""
    found: list[Tensor] = []
    for i in range(len(layers) - 1, -1, -1):
        layer, k = layers[i], kept[i]
        norm: list[Tensor] = []
        if i < len(layers) - 1:
            g = _relu_backward(g, k.normed, 0) if relu else _silu_backward(g, k.normed)
            if layer.scale is not None:
                g, *norm = _norm_backward(
                    g, k.linear, g.shape[1:], k.mean, k.rstd, layer.scale, layer.shift, [True, own, own]
                )
        if own:
            found[:0] = [weight_gradient(k.x, g), g.sum(0), *norm]
        if i > 0 or inputs:
            # One output: an outer product.
            g = g * layer.weight if g.shape[1] == 1 else product(g, layer.weight.t())
    return (g if inputs else None), found


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, mlp: FusedMLP, *parameters: Tensor) -> Tensor:
        relu, members = mlp.activation == "relu", mlp.members()
        outputs, kept = zip(*(_forward(x, layers, relu) for layers in members), strict=True)
        ctx.saved = mlp, relu, members, kept
        return torch.stack(outputs) if mlp.ensemble else outputs[0]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        mlp, relu, members, kept = ctx.saved
        inputs, count = ctx.needs_input_grad[0], len(ctx.needs_input_grad) - 2
        own = any(ctx.needs_input_grad[2:])
        g = grads[0].contiguous()
        each = g.unbind() if mlp.ensemble else (g,)
        found = [_backward(g, layers, k, relu, own, inputs) for g, layers, k in zip(each, members, kept, strict=True)]
        of_x = torch.stack([x for x, _ in found if x is not None]).sum(0) if inputs else None
        if not own:
            return of_x, None, *[None] * count
        if not mlp.ensemble:
            return of_x, None, *[p.t() if p.dim() == 2 else p for p in found[0][1]]
        parts = zip(*(gradients for _, gradients in found), strict=True)
        shapes = [p.shape for p in mlp.parameters]
        return of_x, None, *[torch.stack(p).view(shape) for p, shape in zip(parts, shapes, strict=True)]
