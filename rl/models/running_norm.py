"""Running statistics of observations and rewards on the device, part of a model's state.

Statistics are float64 count, mean and sum of squared deviations; normalising is float32. Nothing waits for the device.
"""

from collections.abc import Callable

import gymnasium as gym
import torch
from torch import Tensor, nn

from rl.types import TensorTree


class RunningNorm(nn.Module):
    """(x - mean) / sqrt(var + eps), or / (std + eps) with `eps_on_std`, then clipped; mean 0, var 1 before any data."""

    count: Tensor
    mean: Tensor
    m2: Tensor
    shift: Tensor
    factor: Tensor

    def __init__(self, shape: tuple[int, ...], eps: float, eps_on_std: bool = False, clip: float | None = None) -> None:
        super().__init__()
        self.eps, self.eps_on_std, self.clip = eps, eps_on_std, clip
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("m2", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("shift", torch.zeros(shape), persistent=False)
        self.register_buffer("factor", torch.ones(shape), persistent=False)
        self._synced: tuple[Tensor, Tensor, Tensor] | None = None  # what all ranks agreed on last
        self._refresh()

    @property
    def var(self) -> Tensor:
        """Population variance, float64; 1 before any data."""
        return torch.where(self.count > 0, self.m2 / self.count.clamp_min(1), torch.ones_like(self.m2))

    @torch.no_grad()
    def update(self, x: Tensor, valid: Tensor | None = None) -> None:
        """Adds the rows of x (N, ...) where `valid` (N,) bool; merged by Chan's formula."""
        rows = x.detach().double()
        if valid is None:
            n = torch.full((), float(len(rows)), dtype=torch.float64, device=rows.device)
            m2, mean = torch.var_mean(rows, 0, correction=0)
            self._merge(n, mean, m2 * n)
            return
        w = valid.double().reshape(-1, *[1] * (rows.dim() - 1))
        rows = torch.where(w > 0, rows, 0.0)
        n = w.sum()
        mean = rows.sum(0) / n.clamp_min(1)
        self._merge(n, mean, ((rows - mean).square() * w).sum(0))

    def forward(self, x: Tensor) -> Tensor:
        y = (x - self.shift) * self.factor
        return y if self.clip is None else y.clamp(-self.clip, self.clip)

    @torch.no_grad()
    def share(self, total: Callable[[Tensor], Tensor]) -> None:
        """Collective: merges what every rank has seen since the last call; `total` sums a vector over ranks."""
        n0, mean0, m20 = self._base()
        away = self.mean - mean0
        mine = [(self.count - n0)[None], (self.count * away).flatten()]
        mine.append((self.m2 + self.count * away.square() - m20).flatten())  # new squares about the old mean
        size = mean0.numel()
        n, first, second = total(torch.cat(mine)).split([1, size, size])
        count = n0 + n[0]
        away = first.reshape(mean0.shape) / count.clamp_min(1)
        self.count.copy_(count)
        self.mean.copy_(mean0 + away)
        self.m2.copy_((m20 + second.reshape(mean0.shape) - count * away.square()).clamp_min(0))
        self._synced = (self.count.clone(), self.mean.clone(), self.m2.clone())
        self._refresh()

    def _base(self) -> tuple[Tensor, Tensor, Tensor]:
        if self._synced is None:
            return torch.zeros_like(self.count), torch.zeros_like(self.mean), torch.zeros_like(self.m2)
        return self._synced

    def _merge(self, n: Tensor, mean: Tensor, m2: Tensor) -> None:
        count = self.count + n
        delta = mean - self.mean
        share = n / count.clamp_min(1)
        self.mean.add_(delta * share)
        self.m2.add_(m2 + delta.square() * (self.count * share))
        self.count.copy_(count)
        self._refresh()

    def _refresh(self) -> None:
        self.shift.copy_(self.mean)
        self.factor.copy_(1 / (self.var.sqrt() + self.eps) if self.eps_on_std else (self.var + self.eps).rsqrt())

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[arg-type]
        self._synced = (self.count.clone(), self.mean.clone(), self.m2.clone())
        self._refresh()


class ObservationNormalizer(nn.Module):
    """One `RunningNorm` for every floating entry of an observation; pictures and masks pass unchanged."""

    def __init__(self, space: gym.Space, eps: float, eps_on_std: bool, clip: float | None) -> None:
        super().__init__()
        spaces = space.spaces if isinstance(space, gym.spaces.Dict) else {"": space}
        self.norms = nn.ModuleDict(
            {
                f"norm_{name}": RunningNorm(tuple(s.shape or ()), eps, eps_on_std, clip)
                for name, s in spaces.items()
                if s.dtype is not None and s.dtype.kind == "f"
            }
        )

    def update(self, observation: TensorTree, valid: Tensor | None = None) -> None:
        for name, norm, x in self._pairs(observation):
            assert isinstance(norm, RunningNorm), name
            norm.update(x, valid)

    def forward(self, observation: TensorTree) -> TensorTree:
        if isinstance(observation, Tensor):
            return self.norms["norm_"](observation) if len(self.norms) else observation
        return observation | {name: norm(x) for name, norm, x in self._pairs(observation)}

    def share(self, total: Callable[[Tensor], Tensor]) -> None:
        """Collective."""
        for norm in self.norms.values():
            assert isinstance(norm, RunningNorm)
            norm.share(total)

    def _pairs(self, observation: TensorTree) -> list[tuple[str, nn.Module, Tensor]]:
        named = {"": observation} if isinstance(observation, Tensor) else observation
        return [(n, self.norms[f"norm_{n}"], x) for n, x in named.items() if f"norm_{n}" in self.norms]


class RewardNormalizer(nn.Module):
    """reward / std of the running discounted return, then clipped; no mean is subtracted (details 30 and 31)."""

    running_E: Tensor

    def __init__(self, num_envs: int, gamma: float, clip: float | None, eps: float = 1e-8) -> None:
        super().__init__()
        self.gamma, self.clip = gamma, clip
        self.norm = RunningNorm((), eps)
        self.register_buffer("running_E", torch.zeros(num_envs), persistent=False)  # of this rank's environments

    def forward(self, reward_E: Tensor, ended_E: Tensor, valid_E: Tensor | None = None) -> Tensor:
        """(E,) normalised rewards; takes their discounted returns into the statistics first."""
        running = self.running_E * self.gamma + reward_E
        self.running_E = running if valid_E is None else torch.where(valid_E, running, self.running_E)
        self.norm.update(self.running_E, valid_E)
        self.running_E = torch.where(ended_E, 0.0, self.running_E)
        scaled = reward_E * self.norm.factor
        return scaled if self.clip is None else scaled.clamp(-self.clip, self.clip)
