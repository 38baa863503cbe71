"""The spatial soft-argmax encoder, on pictures whose content is known."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl.config import Encoder, PPONetworkConfig
from rl.models.actor_critic import ActorCritic
from rl.models.keypoints import WIDTH, KeypointEncoder


def _squares(places_B2: torch.Tensor, side: int) -> torch.Tensor:
    """(B, 3, side, side) uint8: a red square of 8 px with its corner at row, column."""
    pictures = torch.zeros(len(places_B2), 3, side, side, dtype=torch.uint8)
    for picture, (row, column) in zip(pictures, places_B2.tolist(), strict=True):
        picture[0, row : row + 8, column : column + 8] = 255
    return pictures


def _sees_red(side: int) -> KeypointEncoder:
    """Every map is the mean of red over 8 x 8 px; the second convolution takes its middle cell."""
    encoder = KeypointEncoder((3, side, side))
    first, _, second = encoder.convolutions
    with torch.no_grad():
        for convolution in (first, second):
            convolution.weight.zero_()
            convolution.bias.zero_()
        first.weight[:, 0] = 1 / 64
        first.bias.fill_(0.5)
        second.weight[torch.arange(WIDTH), torch.arange(WIDTH), 1, 1] = 1.0
        encoder.log_sharpness.fill_(math.log(1000.0))
    return encoder


def test_a_keypoint_is_where_its_feature_is_strongest() -> None:
    # 64 px: cells of the first convolution begin at 0, 4, .. 56, the second keeps those of 4 .. 52: 13 a side.
    encoder = _sees_red(64)
    points = encoder(_squares(torch.tensor([[4, 52], [28, 28], [52, 8]]), 64)).reshape(3, WIDTH, 2)
    expected = torch.tensor([[1.0, -1.0], [0.0, 0.0], [-1 + 2 / 12, 1.0]])  # x, y
    torch.testing.assert_close(points, expected[:, None].expand(-1, WIDTH, -1), atol=1e-4, rtol=0)


def test_a_square_between_two_cells_is_seen_between_them() -> None:
    encoder = _sees_red(64)
    with torch.no_grad():
        encoder.log_sharpness.fill_(math.log(100.0))
    half_way = encoder(_squares(torch.tensor([[28, 30]]), 64)).reshape(WIDTH, 2)
    # Two cells are equally red, their neighbours 1/4 as much: nothing at this sharpness.
    torch.testing.assert_close(half_way, torch.tensor([[1 / 12, 0.0]]).expand(WIDTH, -1), atol=1e-4, rtol=0)


def test_all_pictures_of_a_row_go_through_the_same_convolutions() -> None:
    torch.manual_seed(0)
    encoder = KeypointEncoder((12, 36, 36))
    row = torch.randint(0, 256, (2, 12, 36, 36), dtype=torch.uint8)
    points = encoder(row).reshape(2, 4, -1)
    assert points.abs().max() <= 1 and encoder.width == 4 * WIDTH * 2
    alone = KeypointEncoder((3, 36, 36))
    alone.load_state_dict(encoder.state_dict())
    for p in range(4):
        torch.testing.assert_close(alone(row[:, 3 * p : 3 * p + 3]), points[:, p])
    grey = KeypointEncoder((4, 36, 36))  # 3 does not divide 4: four pictures of one colour
    assert grey.width == 4 * WIDTH * 2


def test_it_learns_places_to_a_fraction_of_a_cell_that_the_pixels_alone_do_not_tell() -> None:
    torch.manual_seed(0)
    places = torch.randint(0, 29, (256, 2))
    pictures, wanted = _squares(places, 36), places.float() / 14 - 1
    encoder = KeypointEncoder((3, 36, 36))
    head = torch.nn.Linear(encoder.width, 2)
    optimizer = torch.optim.Adam([*encoder.parameters(), *head.parameters()], 3e-3)
    for _ in range(60):
        loss = (head(encoder(pictures)) - wanted).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    unseen = torch.randint(0, 29, (128, 2))
    with torch.no_grad():
        error = (head(encoder(_squares(unseen, 36))) - (unseen.float() / 14 - 1)).abs().mean() * 14
    assert error < 1.5  # px; a cell is 4 px, guessing the middle is off by 7.2 px


def test_an_actor_critic_takes_it_for_pictures_and_keeps_vectors() -> None:
    space = gym.spaces.Dict(
        {"pixels": gym.spaces.Box(0, 255, (6, 36, 36), np.uint8), "state": gym.spaces.Box(-1, 1, (5,))}
    )
    policy = ActorCritic(space, gym.spaces.Box(-1, 1, (2,)), PPONetworkConfig(encoder=Encoder.keypoints))
    assert policy.encoder.width == 2 * WIDTH * 2 + 5
    observation = {"pixels": torch.zeros(3, 6, 36, 36, dtype=torch.uint8), "state": torch.zeros(3, 5)}
    assert policy(observation, torch.zeros(3, 2)).values.shape == (3,)


def test_small_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="20 x 40 px is too small for the keypoint encoder; use at least 24"):
        KeypointEncoder((3, 20, 40))


def test_a_traced_encoder_takes_any_number_of_rows() -> None:
    encoder = KeypointEncoder((6, 24, 24))
    pixels = torch.randint(0, 256, (5, 6, 24, 24), dtype=torch.uint8)
    torch.testing.assert_close(torch.jit.trace(encoder, pixels[:2])(pixels), encoder(pixels))
