"""From an observation to one vector a row: numbers as they are, pictures through a convolutional encoder each."""

import gymnasium as gym
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rl.models.cnn import NatureCNN
from rl.types import TensorTree


class Features(nn.Module):
    """TensorTree (B, ...) -> (B, width) float32. A vector observation passes unchanged."""

    def __init__(self, space: gym.Space, picture_width: int) -> None:
        """ValueError for a space that is not a Box or a Dict of Boxes, and for pictures too small to encode."""
        super().__init__()
        spaces = dict(space.spaces) if isinstance(space, gym.spaces.Dict) else {"": space}
        self.encoders = nn.ModuleDict()
        self.width = 0
        for name, s in spaces.items():
            if not isinstance(s, gym.spaces.Box):
                raise ValueError(f"observation '{name}' is {s}; the policy needs a Box, or a Dict of Boxes")
            if s.dtype == "uint8" and len(s.shape) == 3:
                self.encoders[f"picture_{name}"] = NatureCNN(s.shape, picture_width)
                self.width += picture_width
            else:
                self.width += int(torch.Size(s.shape).numel())

    def forward(self, observation: TensorTree) -> Tensor:
        if isinstance(observation, Tensor) and not len(self.encoders):
            return observation
        parts = {"": observation} if isinstance(observation, Tensor) else observation
        return torch.cat([self._one(name, x) for name, x in parts.items()], 1)

    def _one(self, name: str, x: Tensor) -> Tensor:
        key = f"picture_{name}"
        return self.encoders[key](x) if key in self.encoders else x.flatten(1)


def shift_pictures(observation: TensorTree, pad: int, generator: torch.Generator | None) -> TensorTree:
    """Every picture (uint8, B first) moved by up to `pad` px in both directions at random; numbers as they are."""

    def one(x: Tensor) -> Tensor:
        if x.dtype != torch.uint8 or x.dim() != 4 or pad == 0:
            return x
        offsets = torch.randint(2 * pad + 1, (len(x), 2), generator=generator, device=x.device)
        return shift(x, offsets, pad)

    if isinstance(observation, Tensor):
        return one(observation)
    return {name: one(x) for name, x in observation.items()}


def shift(pixels: Tensor, offsets: Tensor, pad: int) -> Tensor:
    """Moves every picture (B, C, H, W) by offsets (B, 2) int64 in 0..2 * pad, repeating its border (DrQ, Yarats 2021).

    pad, pad leaves a picture as it is.
    """
    B, C, H, W = pixels.shape
    padded = F.pad(pixels.float(), (pad, pad, pad, pad), mode="replicate")
    rows = offsets[:, :1] + torch.arange(H, device=pixels.device)
    columns = offsets[:, 1:] + torch.arange(W, device=pixels.device)
    batch = torch.arange(B, device=pixels.device)
    moved = padded[batch[:, None, None, None], torch.arange(C, device=pixels.device)[:, None, None],
                   rows[:, None, :, None], columns[:, None, None, :]]  # fmt: skip
    return moved.to(pixels.dtype)
