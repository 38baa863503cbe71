"""Between actions in [-1, 1], in which policies think, and those of an environment."""

from collections.abc import Sequence

import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn


class BoundedActions(nn.Module):
    """Affine map: -1 is the lower bound, 1 the upper one, in every dim; (..., A) each."""

    low: Tensor
    high: Tensor

    def __init__(self, low: Sequence[float], high: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("low", torch.as_tensor(low, dtype=torch.float32))
        self.register_buffer("high", torch.as_tensor(high, dtype=torch.float32))

    @property
    def dim(self) -> int:
        return len(self.low)

    def to_environment(self, unit: Tensor) -> Tensor:
        return self.low + 0.5 * (self.high - self.low) * (unit + 1)

    @classmethod
    def of(
        cls, space: gym.Space, low: Sequence[float] | None, high: Sequence[float] | None, algorithm: str, block: str
    ) -> "BoundedActions":
        """The bounds of a Box of one dimension, where given those of `block`.action_low and action_high instead.

        Raises ValueError for discrete actions and where a bound is missing, infinite or of another length.
        """
        if not isinstance(space, gym.spaces.Box) or len(space.shape) != 1:
            raise ValueError(f"{algorithm} needs continuous actions (a Box of one dimension), this task has {space}")
        bounds = []
        for name, own, given in (("action_low", space.low, low), ("action_high", space.high, high)):
            if given is not None and len(given) not in (1, len(own)):
                raise ValueError(f"{block}.{name} has {len(given)} entries; give 1 or {len(own)}, one for each action")
            values = own if given is None else np.broadcast_to(np.asarray(given, np.float32), own.shape)
            if not np.isfinite(values).all():
                raise ValueError(
                    f"{algorithm} needs bounded actions, but the action space {space} has none; "
                    f"set {block}.action_low and {block}.action_high to what actions are useful, e.g. [-1] and [1]"
                )
            bounds.append(values)
        if not (bounds[0] < bounds[1]).all():
            raise ValueError(f"{block}.action_low must lie below {block}.action_high in every dim")
        return cls(bounds[0].tolist(), bounds[1].tolist())
