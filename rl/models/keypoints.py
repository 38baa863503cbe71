"""Where things are in stacked camera pictures: patch features and a spatial soft-argmax (Levine et al. 2016).

Letters: B rows, P pictures of a row, K keypoints of a picture, k colours, N = B * P.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CELL = 3  # px a side; cells do not overlap
KEYPOINTS = 16  # of a picture
SHARPNESS = 60.0  # initial factor of the logits of the soft-argmax
SMALLEST = 24  # px
WORD = 8  # bytes that are compared at once


class KeypointEncoder(nn.Module):
    """(B, C, H, W) uint8 -> (B, P * K * 2) float32: x and y of every keypoint, from -1 (left, top) to 1.

    All pictures of a row go through the same filters: C / 3 pictures of three colours, or C of one when 3 does not
    divide C. A keypoint is the mean place of one filter's response under the softmax over its cells, so a small object
    moves it by less than a cell, which is what a policy that reaches needs. Filters begin as colours, the same all over
    the cell: from random colours a linear map finds a coloured ball to a few centimetres before any training, from
    random patches it does not. Equal pictures are encoded once.
    """

    places: Tensor  # (cells, 2)
    hash_weights: Tensor  # (words of a picture,)

    def __init__(self, shape: tuple[int, ...]) -> None:
        """`shape` (C, H, W) of one row. Raises ValueError when a side is below 24 px."""
        super().__init__()
        C, H, W = shape
        if min(H, W) < SMALLEST:
            raise ValueError(f"a picture of {H} x {W} px is too small for the keypoint encoder; use at least 24")
        self.colors = 3 if C % 3 == 0 else 1
        colour = nn.init.orthogonal_(torch.empty(KEYPOINTS, self.colors), math.sqrt(2))
        self.filters = nn.Parameter((colour / CELL**2)[..., None, None].repeat(1, 1, CELL, CELL))
        self.log_sharpness = nn.Parameter(torch.full((KEYPOINTS, 1), math.log(SHARPNESS)))
        rows, columns = H // CELL, W // CELL
        y, x = torch.meshgrid(torch.linspace(-1, 1, rows), torch.linspace(-1, 1, columns), indexing="ij")
        self.register_buffer("places", torch.stack([x, y], -1).flatten(0, 1), persistent=False)
        words = -(-self.colors * H * W // WORD)
        odd = torch.randint(-(2**62), 2**62, (words,), generator=torch.Generator().manual_seed(0)) * 2 + 1
        self.register_buffer("hash_weights", odd, persistent=False)
        self.width = C // self.colors * KEYPOINTS * 2

    def forward(self, pixels: Tensor) -> Tensor:
        pictures = pixels.unflatten(1, (-1, self.colors)).flatten(0, 1)
        if pixels.is_cuda or torch.jit.is_tracing() or torch.compiler.is_compiling() or len(pixels) == 1:
            points = self.points(pictures)
        else:
            different, which = self._distinct(pictures)
            points = self.points(different)[which]
        return points.reshape(pixels.shape[0], self.width)

    def points(self, pictures: Tensor) -> Tensor:
        """(N, k, H, W) -> (N, K * 2) from -1 (left, top) to 1."""
        maps = F.conv2d(pictures.float() / 255.0 - 0.5, self.filters, stride=CELL).flatten(2).float()
        weights = torch.softmax(maps * self.log_sharpness.exp(), -1)
        return (weights @ self.places).flatten(1)

    def _distinct(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Different pictures, and for each of `pictures` which of them it is. Stacked frames overlap: rows of
        consecutive steps hold one frame up to frame_stack times."""
        flat = pictures.flatten(1)
        words = F.pad(flat, (0, -flat.shape[1] % WORD)).view(torch.int64)
        _, which = torch.unique((words * self.hash_weights).sum(1), return_inverse=True)
        first = torch.empty(int(which.max()) + 1, dtype=torch.int64)
        first[which] = torch.arange(len(which))
        if not torch.equal(words, words[first][which]):  # two pictures with one hash
            return pictures, torch.arange(len(pictures))
        return pictures[first], which
