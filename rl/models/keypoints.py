"""Where things are in stacked camera pictures: convolutions and a spatial soft-argmax (Levine et al. 2016).

Letters: B rows, P pictures of a row, K keypoints of a picture.
"""

import math

import torch
from torch import Tensor, nn

WIDTH = 16  # channels of both convolutions, so K
SHARPNESS = 20.0  # initial factor of the logits of the soft-argmax


class KeypointEncoder(nn.Module):
    """(B, C, H, W) uint8 -> (B, P * K * 2) float32 in [-1, 1]: x and y of every keypoint.

    All pictures of a row go through the same convolutions: C / 3 pictures of three colours, or C of one when 3 does not
    divide C. A keypoint is the mean place of one feature map under the softmax over its cells, so a small object moves
    it by less than a cell, which is what a policy that reaches needs.
    """

    places: Tensor  # (cells, 2)

    def __init__(self, shape: tuple[int, ...]) -> None:
        """`shape` (C, H, W) of one row. Raises ValueError when a side is below 24 px."""
        super().__init__()
        C, H, W = shape
        if min(H, W) < 24:
            raise ValueError(f"a picture of {H} x {W} px is too small for the keypoint encoder; use at least 24")
        self.colors = 3 if C % 3 == 0 else 1
        self.convolutions = nn.Sequential(
            nn.Conv2d(self.colors, WIDTH, 8, stride=4), nn.ReLU(), nn.Conv2d(WIDTH, WIDTH, 3)
        )
        self.log_sharpness = nn.Parameter(torch.full((WIDTH, 1), math.log(SHARPNESS)))
        with torch.no_grad():
            rows, columns = self.convolutions(torch.zeros(1, self.colors, H, W)).shape[2:]
        y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
        self.register_buffer("places", torch.stack([x, y], -1).flatten(0, 1), persistent=False)
        self.width = C // self.colors * WIDTH * 2

    def forward(self, pixels: Tensor) -> Tensor:
        pictures = pixels.unflatten(1, (-1, self.colors)).flatten(0, 1).float() / 255.0 - 0.5
        maps = self.convolutions(pictures).flatten(2).float()
        weights = torch.softmax(maps * self.log_sharpness.exp(), -1)
        points: Tensor = weights @ self.places
        return points.reshape(pixels.shape[0], self.width)
