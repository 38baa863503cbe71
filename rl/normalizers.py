"""Normalisers of states and actions with stored statistics. Padded dims (mask False) stay zero."""

import torch
from torch import Tensor


class Normalizer:
    """Standardises the real dims of (..., D) float tensors: (x - mean) / max(std, floor).

    Statistics are float64 count, mean and M2 (sum of squared deviations), merged by Chan's formula, so that merging
    the normalisers of several ranks equals one normaliser that saw everything.
    """

    def __init__(self, mask: Tensor, std_floor: float = 1e-3) -> None:
        """`mask` (D,) bool: real dims. Raises ValueError when it is not that or when the floor is not positive."""
        mask = torch.as_tensor(mask)
        if mask.dim() != 1 or mask.dtype != torch.bool:
            raise ValueError(f"mask must be a bool vector, not {mask.dtype} of shape {tuple(mask.shape)}")
        if std_floor <= 0:
            raise ValueError(f"std_floor is {std_floor}; it must be positive")
        self.mask, self.std_floor = mask, std_floor
        self.count = 0
        self.mean = torch.zeros(len(mask), dtype=torch.float64)
        self.m2 = torch.zeros(len(mask), dtype=torch.float64)

    @property
    def std(self) -> Tensor:
        """(D,) float64 population standard deviation, at least `std_floor`."""
        self._require_statistics()
        return (self.m2 / self.count).sqrt().clamp_min(self.std_floor)

    def update(self, x: Tensor) -> None:
        """Adds the rows of `x` (..., D). Raises ValueError for another D and for numbers that are not finite."""
        rows = self._checked(x).reshape(-1, len(self.mask)).to("cpu", torch.float64)
        if len(rows) == 0:
            return
        if not torch.isfinite(rows).all():
            raise ValueError("statistics of a normaliser cannot take numbers that are not finite")
        mean = rows.mean(0)
        self._merge(len(rows), mean, ((rows - mean) ** 2).sum(0))

    def merge(self, other: "Normalizer") -> None:
        """Adds what `other` (e.g. of another rank) has seen. Raises ValueError when its mask differs."""
        if not torch.equal(self.mask, other.mask):
            raise ValueError("normalisers of different dims cannot be merged")
        if other.count:
            self._merge(other.count, other.mean, other.m2)

    def normalize(self, x: Tensor) -> Tensor:
        """Same shape, dtype and device as `x`. Raises ValueError before any statistics exist."""
        mean, std = self._scale(x)
        return torch.where(self.mask.to(x.device), (x - mean) / std, torch.zeros_like(x))

    def denormalize(self, x: Tensor) -> Tensor:
        """Inverse of `normalize` on the real dims."""
        mean, std = self._scale(x)
        return torch.where(self.mask.to(x.device), x * std + mean, torch.zeros_like(x))

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors only."""
        return {
            "mask": self.mask.clone(),
            "count": torch.tensor(self.count),
            "mean": self.mean.clone(),
            "m2": self.m2.clone(),
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Raises ValueError for missing or unexpected keys and for another mask."""
        if set(state) != {"mask", "count", "mean", "m2"}:
            raise ValueError(f"normaliser state has keys {sorted(state)}; expected count, m2, mask, mean")
        if not torch.equal(state["mask"], self.mask):
            raise ValueError("normaliser state belongs to other dims: its mask differs")
        self.count = int(state["count"])
        self.mean, self.m2 = state["mean"].clone(), state["m2"].clone()

    def _merge(self, count: int, mean: Tensor, m2: Tensor) -> None:
        total = self.count + count
        delta = mean - self.mean
        self.mean = self.mean + delta * (count / total)
        self.m2 = self.m2 + m2 + delta**2 * (self.count * count / total)
        self.count = total

    def _scale(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self._require_statistics()
        self._checked(x)
        return self.mean.to(x.device, x.dtype), self.std.to(x.device, x.dtype)

    def _checked(self, x: Tensor) -> Tensor:
        if not x.is_floating_point() or x.dim() == 0 or x.shape[-1] != len(self.mask):
            raise ValueError(f"normaliser of {len(self.mask)} dims got {x.dtype} of shape {tuple(x.shape)}")
        return x

    def _require_statistics(self) -> None:
        if self.count == 0:
            raise ValueError("normaliser has no statistics yet: update() or load_state_dict() first")
