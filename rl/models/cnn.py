"""The convolutional encoder of Nature DQN (Mnih et al. 2015) for stacked camera pictures."""

import torch
from torch import Tensor, nn


class NatureCNN(nn.Module):
    """(B, C, H, W) or (B, H, W, C) uint8 -> (B, width) float32; pixels become [0, 1] (details 21 and 22)."""

    def __init__(self, shape: tuple[int, ...], width: int = 512) -> None:
        """`shape` of one picture, channels first or last: of a square one the odd side is the channels, else the
        smaller end.

        Raises ValueError when a side is below 36 px, what the three strided convolutions need.
        """
        super().__init__()
        square_first, square_last = shape[1] == shape[2], shape[0] == shape[1]
        self.channels_last = square_last if square_first != square_last else shape[2] < shape[0]
        C, H, W = (shape[2], shape[0], shape[1]) if self.channels_last else shape
        if min(H, W) < 36:
            raise ValueError(f"a picture of {H} x {W} px is too small for the convolutional encoder; use at least 36")
        self.convolutions = nn.Sequential(
            nn.Conv2d(C, 32, 8, stride=4), nn.ReLU(), nn.Conv2d(32, 64, 4, stride=2), nn.ReLU(),
            nn.Conv2d(64, 64, 3, stride=1), nn.ReLU(), nn.Flatten(),
        )  # fmt: skip
        with torch.no_grad():
            size = self.convolutions(torch.zeros(1, C, H, W)).shape[1]
        self.project = nn.Sequential(nn.Linear(size, width), nn.ReLU())
        self.width = width

    def forward(self, pixels: Tensor) -> Tensor:
        x = pixels.movedim(-1, -3) if self.channels_last else pixels
        features: Tensor = self.project(self.convolutions(x.float() / 255.0))
        return features
