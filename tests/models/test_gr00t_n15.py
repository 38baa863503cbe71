"""N1.5 behind the interface of the other releases, on a made-up model with LeRobot 0.5.1's names and calls.

The real one has not been run: it needs flash-attn and a GPU.
"""

import sys
import types
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from rl.config import GR00TConfig
from rl.models import gr00t_real
from rl.models.gr00t import GR00TActorCritic, language_layers
from rl.models.gr00t_backend import part_of
from rl.models.gr00t_prompt import Prompt
from rl.models.gr00t_real import Gr00tN15
from rl.models.gr00t_stub import TINY, ActionHead, waves

STATE = gym.spaces.Box(-np.inf, np.inf, (5,), np.float32)
ACTION = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
SEEN = gym.spaces.Dict({"state": STATE, "pixels": gym.spaces.Box(0, 255, (3, 32, 32), np.uint8)})


class Eagle(nn.Module):
    """Its language model is two levels down; a picture is two tokens."""

    num_image_token = 2
    image_token_index = 1

    def __init__(self) -> None:
        super().__init__()
        width = TINY.text_width
        self.language_model: Any = nn.Module()
        self.language_model.model = nn.Module()
        self.language_model.model.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.words = nn.Embedding(TINY.vocabulary, width)
        self.look = nn.Linear(3, width)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, pixel_values: Tensor) -> Tensor:
        assert pixel_values.shape[1:] == (3, 224, 224)
        pictured = input_ids == self.image_token_index
        assert int(pictured.sum()) == self.num_image_token * len(pixel_values)
        seen = self.look(pixel_values.mean((2, 3))).repeat_interleave(self.num_image_token, 0)
        x = self.words(input_ids).masked_scatter(pictured[..., None], seen)
        for layer in self.language_model.model.layers:
            x = torch.tanh(layer(x))
        return x


class EagleBackbone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.eagle_model = Eagle()

    def forward(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        eagle = {k.removeprefix("eagle_"): v for k, v in inputs.items() if k.startswith("eagle_")}
        del eagle["image_sizes"]
        features = self.eagle_model(**eagle)
        return {"backbone_features": features, "backbone_attention_mask": eagle["attention_mask"]}


class Transformer(nn.Module):
    """Called without masks."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.see = nn.Linear(TINY.dit_width, TINY.hidden), nn.Linear(TINY.text_width, TINY.hidden)

    def forward(self, hidden_states: Tensor, encoder_hidden_states: Tensor, timestep: Tensor) -> Tensor:
        time = waves(timestep, TINY.hidden)[:, None]
        return torch.tanh(self.mix(hidden_states) + self.see(encoder_hidden_states).mean(1, keepdim=True) + time)


class FakeN15(nn.Module):
    """`config` holds the horizon; the buckets of time are the action head's."""

    def __init__(self) -> None:
        super().__init__()
        self.config = types.SimpleNamespace(action_horizon=4)
        self.backbone = EagleBackbone()
        head: Any = ActionHead(TINY)
        head.model, head.future_tokens = Transformer(), nn.Embedding(2, TINY.dit_width)
        head.num_timestep_buckets = 1000
        self.action_head = head


def policy(space: gym.Space[Any], **settings: Any) -> GR00TActorCritic:
    torch.manual_seed(0)
    model = Gr00tN15(FakeN15(), Prompt((2, 3)), Eagle.image_token_index)
    return GR00TActorCritic(model, space, ACTION, GR00TConfig(backend="n1.5", **settings))


@pytest.mark.parametrize("pictures", [False, True])
def test_acting_and_training_agree_on_likelihood_and_value(pictures: bool) -> None:
    p = policy(SEEN if pictures else STATE)
    g = torch.Generator().manual_seed(1)
    observation: Any = torch.randn(6, 5, generator=g)
    if pictures:
        observation = {
            "state": observation,
            "pixels": torch.randint(256, (6, 3, 32, 32), generator=g).to(torch.uint8),
        }
    drawn = p.draw(observation, None, torch.ones(6, dtype=torch.bool), g)
    found = p(observation, drawn.actions)
    assert (p.model.horizon, p.model.buckets) == (4, 1000)
    assert torch.allclose(found.logp, p.distribution.log_prob(drawn.out, drawn.actions), atol=1e-4)
    assert torch.allclose(found.values, drawn.value, atol=1e-5)


def test_the_stage_backbone_trains_the_upper_layers_of_its_language_model() -> None:
    p = policy(STATE, stages=["backbone"], unfreeze_at=[0.0], backbone_layers=2)
    assert len(language_layers(p.model)) == 3
    p.enter(1)
    moved = {n for n, x in p.model.named_parameters() if x.requires_grad}
    assert {part_of(n) for n in moved} == {"backbone"}
    assert {n.split("layers.")[1][0] for n in moved} == {"1", "2"}


def test_its_weights_are_looked_for_on_this_machine_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    class GR00TN15:
        @staticmethod
        def from_pretrained(path: str, **settings: Any) -> FakeN15:
            asked.update(settings, path=path)
            return FakeN15()

    module: Any = types.ModuleType("lerobot.policies.groot.groot_n1")
    module.GR00TN15 = GR00TN15
    for name in ("lerobot", "lerobot.policies", "lerobot.policies.groot"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    model = gr00t_real._n15(tmp_path, (7, 8))
    assert (asked["path"], asked["local_files_only"]) == (str(tmp_path), True)
    assert (model.image_token, model.prompt.words) == (Eagle.image_token_index, (7, 8))


def test_another_release_of_lerobot_is_refused_with_the_way_to_get_the_right_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "policies" / "groot").mkdir(parents=True)
    (tmp_path / "policies" / "groot" / "groot_n1_7.py").write_text("")
    spec = types.SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr("importlib.util.find_spec", lambda _: spec)
    gr00t_real.require("n1.7")
    with pytest.raises(ValueError, match=r"a LeRobot with groot_n1\.py.*lerobot==0\.5\.1"):
        gr00t_real.require("n1.5")
