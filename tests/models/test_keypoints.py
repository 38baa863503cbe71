"""The spatial soft-argmax encoder, on pictures whose content is known."""

import math

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl.config import Encoder, PPONetworkConfig
from rl.models.actor_critic import ActorCritic
from rl.models.keypoints import KEYPOINTS, KeypointEncoder


def _squares(places_B2: torch.Tensor, side: int, size: int) -> torch.Tensor:
    """(B, 3, side, side) uint8: a red square of `size` px with its corner at row, column."""
    pictures = torch.zeros(len(places_B2), 3, side, side, dtype=torch.uint8)
    for picture, (row, column) in zip(pictures, places_B2.tolist(), strict=True):
        picture[0, row : row + size, column : column + size] = 255
    return pictures


def _sees_red(sharpness: float) -> KeypointEncoder:
    """Every map is the mean of red over the 3 x 3 px of a cell, 21 cells a side."""
    encoder = KeypointEncoder((3, 64, 64))
    with torch.no_grad():
        encoder.filters.zero_()
        encoder.filters[:, 0] = 1 / 9
        encoder.log_sharpness.fill_(math.log(sharpness))
    return encoder


def test_a_keypoint_is_where_its_feature_is_strongest() -> None:
    points = _sees_red(1000.0).points(_squares(torch.tensor([[0, 60], [30, 30], [60, 6]]), 64, 3))
    expected = torch.tensor([[1.0, -1.0], [0.0, 0.0], [-1 + 2 * 2 / 20, 1.0]])  # x, y
    torch.testing.assert_close(
        points.reshape(3, KEYPOINTS, 2), expected[:, None].expand(-1, KEYPOINTS, -1), atol=1e-4, rtol=0
    )


def test_a_square_between_two_cells_is_seen_between_them() -> None:
    # Columns 32 and 33 are the last of cell 10 and the first of cell 11: both are a third red, the others black.
    half_way = _sees_red(100.0).points(_squares(torch.tensor([[30, 32]]), 64, 2)).reshape(KEYPOINTS, 2)
    torch.testing.assert_close(half_way, torch.tensor([[-1 + 21 / 20, 0.0]]).expand(KEYPOINTS, -1), atol=1e-4, rtol=0)


def test_a_new_filter_is_one_colour_all_over_its_cell() -> None:
    filters = KeypointEncoder((6, 36, 36)).filters.detach()
    assert (filters == filters[:, :, :1, :1]).all()
    colours = filters.sum((2, 3))  # (K, 3), orthogonal columns
    torch.testing.assert_close(colours.t() @ colours, 2 * torch.eye(3), atol=1e-5, rtol=0)


def test_all_pictures_of_a_row_go_through_the_same_convolutions() -> None:
    torch.manual_seed(0)
    encoder = KeypointEncoder((12, 36, 36))
    row = torch.randint(0, 256, (2, 12, 36, 36), dtype=torch.uint8)
    points = encoder.points(row.unflatten(1, (4, 3)).flatten(0, 1)).reshape(2, 4, -1)
    assert points.abs().max() <= 1 and encoder.width == 4 * KEYPOINTS * 2
    torch.testing.assert_close(encoder(row), points.flatten(1))
    grey = KeypointEncoder((4, 36, 36))  # 3 does not divide 4: four pictures of one colour
    assert grey.width == 4 * KEYPOINTS * 2


def _overlapping(frames: int) -> torch.Tensor:
    """(frames - 2, 9, 36, 36): stacks of three frames, each one frame later."""
    film = torch.randint(0, 256, (frames, 3, 36, 36), dtype=torch.uint8)
    return torch.cat([film[i : frames - 2 + i] for i in range(3)], 1)


def _encoded(encoder: KeypointEncoder, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Result, gradient of the filters, and how many pictures were encoded."""
    counted, points = [], KeypointEncoder.points

    def watched(pictures: torch.Tensor) -> torch.Tensor:
        counted.append(len(pictures))
        return points(encoder, pictures)

    encoder.points = watched  # type: ignore[method-assign]
    encoder.zero_grad()
    result = encoder(rows)
    result.square()[:, ::3].sum().backward()
    assert encoder.filters.grad is not None
    return result.detach(), encoder.filters.grad.clone(), counted


def test_a_frame_that_several_rows_hold_is_encoded_once() -> None:
    torch.manual_seed(0)
    encoder, rows = KeypointEncoder((9, 36, 36)), _overlapping(10)
    result, gradient, counted = _encoded(encoder, rows)
    assert counted == [10]
    encoder.hash_weights.zero_()  # all pictures look alike: nothing is shared
    plain, its_gradient, counted = _encoded(encoder, rows)
    assert counted == [8 * 3]
    torch.testing.assert_close(result, plain)
    torch.testing.assert_close(gradient, its_gradient, atol=1e-3, rtol=1e-3)


def test_pictures_that_differ_in_one_value_are_two() -> None:
    rows = torch.zeros(2, 3, 25, 25, dtype=torch.uint8)  # 1,875 bytes: no whole number of words
    rows[1, 2, 24, 24] = 1
    assert _encoded(KeypointEncoder((3, 25, 25)), rows)[2] == [2]


def test_it_learns_places_to_a_fraction_of_a_cell_that_the_pixels_alone_do_not_tell() -> None:
    torch.manual_seed(0)
    places = torch.randint(0, 29, (256, 2))
    pictures, wanted = _squares(places, 36, 8), places.float() / 14 - 1
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
        error = (head(encoder(_squares(unseen, 36, 8))) - (unseen.float() / 14 - 1)).abs().mean() * 14
    assert error < 1.5  # px; a cell is 3 px, guessing the middle is off by 7.2 px


def test_an_actor_critic_takes_it_for_pictures_and_keeps_vectors() -> None:
    space = gym.spaces.Dict(
        {"pixels": gym.spaces.Box(0, 255, (6, 36, 36), np.uint8), "state": gym.spaces.Box(-1, 1, (5,))}
    )
    policy = ActorCritic(space, gym.spaces.Box(-1, 1, (2,)), PPONetworkConfig(encoder=Encoder.keypoints))
    assert policy.encoder.width == 2 * KEYPOINTS * 2 + 5
    observation = {"pixels": torch.zeros(3, 6, 36, 36, dtype=torch.uint8), "state": torch.zeros(3, 5)}
    assert policy(observation, torch.zeros(3, 2)).values.shape == (3,)


def test_small_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="20 x 40 px is too small for the keypoint encoder; use at least 24"):
        KeypointEncoder((3, 20, 40))


def test_a_traced_encoder_takes_any_number_of_rows() -> None:
    encoder = KeypointEncoder((6, 24, 24))
    pixels = torch.randint(0, 256, (5, 6, 24, 24), dtype=torch.uint8)
    torch.testing.assert_close(torch.jit.trace(encoder, pixels[:2])(pixels), encoder(pixels))
