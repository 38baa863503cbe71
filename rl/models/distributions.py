"""Action distributions as functions of a network's output `out` (B, P); the state-independent std is a parameter here.

`scale()` snapshots that parameter, so that the KL divergence from an older policy needs only its outputs and scale.
"""

import math

import gymnasium as gym
import torch
from torch import Generator, Tensor, nn

from rl.config import StdKind

_LOG_2PI = math.log(2 * math.pi)
MIN_STD = 1e-6


class ActionDistribution(nn.Module):
    """What every distribution offers."""

    outputs: int  # P

    def sample(self, out: Tensor, generator: Generator) -> Tensor:
        raise NotImplementedError

    def mode(self, out: Tensor) -> Tensor:
        """The most likely action."""
        raise NotImplementedError

    def log_prob(self, out: Tensor, actions: Tensor) -> Tensor:
        """(B,)"""
        raise NotImplementedError

    def entropy(self, out: Tensor) -> Tensor:
        """(B,) in nats."""
        raise NotImplementedError

    def scale(self) -> Tensor:
        """Detached copy of the state-independent parameter in use (std), empty when there is none."""
        raise NotImplementedError

    def kl(self, old_out: Tensor, old_scale: Tensor, out: Tensor) -> Tensor:
        """(B,) KL(old || this)."""
        raise NotImplementedError


class Gaussian(ActionDistribution):
    """Independent normal dims (details 23 to 25): `out` is the mean; std or log std is one free vector."""

    def __init__(self, dim: int, std: StdKind, init_std: float) -> None:
        super().__init__()
        self.outputs = dim
        self.kind = std
        self.parameter = nn.Parameter(torch.full((dim,), init_std if std is StdKind.scalar else math.log(init_std)))

    def std(self) -> Tensor:
        return self.parameter.clamp_min(MIN_STD) if self.kind is StdKind.scalar else self.parameter.exp()

    def log_std(self) -> Tensor:
        return self.std().log() if self.kind is StdKind.scalar else self.parameter

    def sample(self, out: Tensor, generator: Generator) -> Tensor:
        noise = torch.randn(out.shape, generator=generator, device=out.device, dtype=out.dtype)
        return out + self.std() * noise

    def mode(self, out: Tensor) -> Tensor:
        return out

    def log_prob(self, out: Tensor, actions: Tensor) -> Tensor:
        z = (actions - out) / self.std()
        return -0.5 * z.square().sum(-1) - (self.log_std().sum() + 0.5 * self.outputs * _LOG_2PI)

    def entropy(self, out: Tensor) -> Tensor:
        return (self.log_std().sum() + 0.5 * self.outputs * (1 + _LOG_2PI)).expand(out.shape[:-1])

    def scale(self) -> Tensor:
        return self.std().detach().clone()

    def kl(self, old_out: Tensor, old_scale: Tensor, out: Tensor) -> Tensor:
        std = self.std()
        ratio = (old_scale / std).square()
        return 0.5 * (ratio + ((old_out - out) / std).square() - 1 - ratio.log()).sum(-1)


class Categorical(ActionDistribution):
    """`out` are logits; actions int64 (B,)."""

    def __init__(self, choices: int) -> None:
        super().__init__()
        self.outputs = choices

    def sample(self, out: Tensor, generator: Generator) -> Tensor:
        return _gumbel_argmax(out, generator)

    def mode(self, out: Tensor) -> Tensor:
        return out.argmax(-1)

    def log_prob(self, out: Tensor, actions: Tensor) -> Tensor:
        return out.log_softmax(-1).gather(-1, actions[..., None])[..., 0]

    def entropy(self, out: Tensor) -> Tensor:
        logp = out.log_softmax(-1)
        return -(logp.exp() * logp).sum(-1)

    def scale(self) -> Tensor:
        return torch.empty(0)

    def kl(self, old_out: Tensor, old_scale: Tensor, out: Tensor) -> Tensor:
        old = old_out.log_softmax(-1)
        return (old.exp() * (old - out.log_softmax(-1))).sum(-1)


class MultiCategorical(ActionDistribution):
    """One independent categorical a component (detail 37); actions int64 (B, components)."""

    def __init__(self, choices: list[int]) -> None:
        super().__init__()
        self.outputs = sum(choices)
        self.choices = choices
        self.parts = nn.ModuleList(Categorical(n) for n in choices)

    def sample(self, out: Tensor, generator: Generator) -> Tensor:
        return torch.stack([_gumbel_argmax(o, generator) for o in out.split(self.choices, -1)], -1)

    def mode(self, out: Tensor) -> Tensor:
        return torch.stack([o.argmax(-1) for o in out.split(self.choices, -1)], -1)

    def log_prob(self, out: Tensor, actions: Tensor) -> Tensor:
        pairs = zip(self.parts, out.split(self.choices, -1), actions.unbind(-1), strict=True)
        return torch.stack([p.log_prob(o, a) for p, o, a in pairs]).sum(0)  # type: ignore[operator]

    def entropy(self, out: Tensor) -> Tensor:
        pairs = zip(self.parts, out.split(self.choices, -1), strict=True)
        return torch.stack([p.entropy(o) for p, o in pairs]).sum(0)  # type: ignore[operator]

    def scale(self) -> Tensor:
        return torch.empty(0)

    def kl(self, old_out: Tensor, old_scale: Tensor, out: Tensor) -> Tensor:
        triples = zip(self.parts, old_out.split(self.choices, -1), out.split(self.choices, -1), strict=True)
        return torch.stack([p.kl(a, old_scale, b) for p, a, b in triples]).sum(0)  # type: ignore[operator]


def _gumbel_argmax(logits: Tensor, generator: Generator) -> Tensor:
    exponential = torch.empty_like(logits).exponential_(generator=generator)
    return (logits - exponential.log()).argmax(-1)


def make_distribution(space: gym.Space, std: StdKind, init_std: float) -> ActionDistribution:
    """The distribution of a single action space; ValueError for one it cannot serve."""
    if isinstance(space, gym.spaces.Box) and len(space.shape) == 1:
        return Gaussian(space.shape[0], std, init_std)
    if isinstance(space, gym.spaces.Discrete):
        return Categorical(int(space.n))
    if isinstance(space, gym.spaces.MultiDiscrete) and len(space.shape) == 1:
        return MultiCategorical([int(n) for n in space.nvec])
    raise ValueError(f"no policy for the action space {space}; use a Box vector, Discrete or MultiDiscrete")
