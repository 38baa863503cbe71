"""GR00T with several cameras: each is a picture of its own, in a fixed order, with words between.

`bash tests/run.sh gr00t` runs the same tests on LeRobot's N1.7, reduced in size.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from rl.config import load
from rl.models import gr00t_backend
from rl.models.gr00t import GR00TActorCritic
from rl.models.gr00t_backend import patchify
from rl.models.gr00t_observation import observed
from rl.training.gr00t_activations import Pass
from rl.types import ARM_CAMERAS, PictureSpace
from tests.models.test_gr00t import SEEN, STATE, drawn, policy

WRIST = gym.spaces.Box(0, 255, (3, 32, 64), np.uint8)  # of another size than the others


def cameras(count: int, frames: int = 2, **others: gym.Space[Any]) -> gym.spaces.Dict:
    """A state and a stack of `count` cameras."""
    return gym.spaces.Dict({"state": STATE, "pixels": PictureSpace(ARM_CAMERAS[:count], frames, 64, 64), **others})


def look(space: gym.spaces.Dict, batch: int, seed: int = 1) -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return {
        name: torch.randint(256, (batch, *(s.shape or ())), generator=g).to(torch.uint8)
        if s.dtype == np.uint8
        else torch.randn(batch, *(s.shape or ()), generator=g)
        for name, s in space.spaces.items()
    }


def shown(p: GR00TActorCritic, observation: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    """What the backbone is given."""
    given: list[dict[str, Tensor]] = []
    hook = p.model.model.backbone.register_forward_pre_hook(lambda _, args: given.append(dict(args[0])))
    p._look(observation)
    hook.remove()
    return given[0]


@pytest.mark.parametrize("space", [cameras(1), cameras(2), cameras(3), cameras(2, wrist=WRIST)])
def test_acting_likelihood_and_an_update_work_with_any_number_of_cameras(space: gym.spaces.Dict) -> None:
    p, observation = policy(space, stages=["projector", "backbone"], unfreeze_at=[0.0, 0.0]), look(space, 4)
    p.enter(2)
    d = drawn(p, observation)
    found = p(observation, d.actions)
    assert torch.allclose(found.logp, p.distribution.log_prob(d.out, d.actions), atol=1e-4)
    assert torch.allclose(found.values, d.value, atol=1e-5)
    alone = p({k: v[2:3] for k, v in observation.items()}, d.actions[2:3])
    assert torch.allclose(alone.logp, found.logp[2:3], atol=1e-4)
    optimizer = torch.optim.SGD(p.actor_parameters(), 1e-3)
    (-found.logp.mean()).backward()
    assert all(torch.isfinite(x.grad).all() for x in p.parameters() if x.grad is not None)
    optimizer.step()
    assert p(observation, d.actions).logp.mean().item() > found.logp.mean().item()


def test_every_camera_of_the_newest_frame_counts_and_no_older_frame_does() -> None:
    space = cameras(3)
    p, observation = policy(space), look(space, 2)
    d = drawn(p, observation)
    before = p(observation, d.actions).logp
    for picture in range(6):
        pixels = observation["pixels"].clone()
        pixels[:, 3 * picture : 3 * picture + 3] = 255 - pixels[:, 3 * picture : 3 * picture + 3]
        same = torch.equal(p(observation | {"pixels": pixels}, d.actions).logp, before)
        assert same == (picture < 3)


def test_each_picture_stands_between_the_words_that_tell_it_from_the_next() -> None:
    """64 x 64 px are 4 tokens, 32 x 64 are 2; reduced models begin a picture with 60 and end it with 61."""
    space = cameras(2, wrist=WRIST)
    given = shown(policy(space), look(space, 3))
    row = [60, 1, 1, 1, 1, 61, 60, 1, 1, 1, 1, 61, 60, 1, 1, 61, 2, 3, 4, 5]
    assert given["input_ids"].tolist() == [row] * 3
    assert given["image_grid_thw"].tolist() == [[1, 4, 4], [1, 4, 4], [1, 2, 4]] * 3


def test_pictures_come_in_the_order_of_the_entries_and_of_the_cameras_of_each() -> None:
    space = cameras(3, wrist=WRIST)
    observation = look(space, 2)
    newest = observation["pixels"][:, 9:]
    expected = [patchify(x)[0] for x in (newest[:, :3], newest[:, 3:6], newest[:, 6:], observation["wrist"])]
    given = shown(policy(space), observation)
    assert torch.equal(given["pixel_values"], torch.cat(expected, 1).flatten(0, 1))
    assert [c.name for c in observed(space)[1]] == ["front", "side", "top", "wrist"]


def test_without_a_picture_it_sees_one_that_is_black() -> None:
    given = shown(policy(), torch.zeros(3, 5))
    assert given["input_ids"].tolist() == [[60, 1, 61, 2, 3, 4, 5]]
    assert (given["pixel_values"] == -1).all()


def test_a_picture_of_a_plain_space_is_the_newest_of_a_stack_of_one_camera() -> None:
    assert observed(SEEN)[1] == [("pixels", 3, "pixels")]


@pytest.mark.parametrize("shape", [(96, 96, 3), (4, 64, 64)])
def test_pictures_that_are_not_rgb_with_their_channels_first_are_refused(shape: tuple[int, ...]) -> None:
    space = gym.spaces.Dict({"state": STATE, "eye": gym.spaces.Box(0, 255, shape, np.uint8)})
    with pytest.raises(ValueError, match=r"'eye' .* does not consist of RGB pictures, their channels first"):
        policy(space)


def test_a_picture_does_not_see_the_others_before_the_language_model() -> None:
    """Of the stub: pictures of different sizes next to each other give what each gives alone."""
    torch.manual_seed(0)
    backbone = gr00t_backend.stub("tiny").model.backbone
    parts = [patchify(torch.randint(256, (1, 3, *size), dtype=torch.uint8)) for size in ((64, 64), (32, 64), (32, 32))]
    together = backbone._see(
        {"pixel_values": torch.cat([x[0] for x, _ in parts]), "image_grid_thw": torch.tensor([g for _, g in parts])}
    )
    alone = [backbone._see({"pixel_values": x[0], "image_grid_thw": torch.tensor([g])}) for x, g in parts]
    assert torch.allclose(together, torch.cat(alone), atol=1e-5)


@pytest.mark.parametrize("space", [gym.spaces.Dict({"state": STATE}), cameras(1), cameras(3), cameras(2, wrist=WRIST)])
def test_the_plan_of_memory_counts_the_tokens_that_the_backbone_is_given(space: gym.spaces.Dict) -> None:
    p = policy(space)
    planned = Pass(p, load(None, ["gr00t.backend=stub"]), torch.device("cpu")).tokens
    assert planned == shown(p, look(space, 1))["input_ids"].shape[1]
