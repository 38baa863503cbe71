"""From observations to vectors."""

import gymnasium as gym
import numpy as np
import pytest
import torch

from rl.models.features import Features, shift, shift_pictures

PICTURES = gym.spaces.Box(0, 255, (6, 40, 40), np.uint8)


def test_a_vector_passes_unchanged_and_numbers_are_put_side_by_side() -> None:
    features = Features(gym.spaces.Box(-1, 1, (3,), np.float32), 8)
    x = torch.randn(2, 3)
    assert features.width == 3 and features(x) is x
    both = Features(gym.spaces.Dict({"a": gym.spaces.Box(-1, 1, (2, 2)), "b": gym.spaces.Box(-1, 1, (1,))}), 8)
    out = both({"a": torch.arange(4.0).view(1, 2, 2), "b": torch.full((1, 1), 9.0)})
    assert both.width == 5 and out.tolist() == [[0, 1, 2, 3, 9]]


def test_pictures_become_as_many_features_as_asked_for() -> None:
    features = Features(gym.spaces.Dict({"camera": PICTURES, "state": gym.spaces.Box(-1, 1, (3,), np.float32)}), 8)
    observation = {"camera": torch.randint(256, (2, 6, 40, 40), dtype=torch.uint8), "state": torch.randn(2, 3)}
    out = features(observation)
    assert features.width == 11 and out.shape == (2, 11)
    assert torch.equal(out[:, 8:], observation["state"])


def test_a_shift_moves_a_picture_and_repeats_its_border() -> None:
    picture = torch.arange(9, dtype=torch.uint8).view(1, 1, 3, 3)
    assert torch.equal(shift(picture, torch.tensor([[1, 1]]), 1), picture)
    assert shift(picture, torch.tensor([[2, 1]]), 1)[0, 0].tolist() == [[3, 4, 5], [6, 7, 8], [6, 7, 8]]
    assert shift(picture, torch.tensor([[1, 0]]), 1)[0, 0].tolist() == [[0, 0, 1], [3, 3, 4], [6, 6, 7]]


def test_only_pictures_are_shifted_each_by_its_own_offset() -> None:
    pictures = torch.randint(256, (20, 3, 16, 16), dtype=torch.uint8)[:1].expand(20, -1, -1, -1)
    observation = {"camera": pictures, "state": torch.randn(20, 3)}
    out = shift_pictures(observation, 4, torch.Generator().manual_seed(0))
    assert isinstance(out, dict) and out["state"] is observation["state"]
    assert len(out["camera"].flatten(1).unique(dim=0)) > 5
    same = shift_pictures(observation, 0, None)
    assert isinstance(same, dict) and same["camera"] is pictures


def test_observations_without_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="the policy needs a Box"):
        Features(gym.spaces.Discrete(3), 8)
