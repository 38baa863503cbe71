"""Named numbers of a task reach a released GR00T's state encoder where, and scaled as, it was trained to see them."""

import json
import logging
import types
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor

from rl.config import Config, load
from rl.envs.arm_reach import ArmReach
from rl.models import gr00t_real
from rl.models.gr00t import GR00TActorCritic
from rl.models.gr00t_checkpoint import StateLayout, read_state
from rl.models.gr00t_state import StateMap, map_state
from rl.training import gr00t_memory, policies
from rl.training.checkpoint_state import load_strict
from rl.training.gr00t_training import make_policy
from tests.models.gr00t_files import write_weights
from tests.models.test_gr00t import ACTION, STATE, drawn, look, model, policy

NAMES: list[str | None] = ["gripper", None, "arm_1", "arm_0", None]  # of the five numbers of test_gr00t's task
STATISTICS = {
    "arm": {"min": [-2.0, -2.0], "max": [2.0, 6.0], "q01": [-1.0, 0.0], "q99": [1.0, 4.0]},
    "base": {"min": [0.0] * 3, "max": [1.0] * 3, "q01": [0.5] * 3, "q99": [0.5, 0.500001, 0.75]},
    "gripper": {"min": [0.0], "max": [1.0], "q01": [0.25], "q99": [0.75]},
}


def processor(folder: Path, state: dict[str, Any], **settings: Any) -> None:
    state = {"modality_keys": ["arm", "base", "gripper"], "delta_indices": [0]} | state
    modalities = {"panda": {"state": state, "action": {"modality_keys": ["gripper"]}}}
    kwargs = {"modality_configs": modalities, "use_percentiles": True, **settings}
    (folder / "processor_config.json").write_text(json.dumps({"processor_kwargs": kwargs}))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The files of an N1.7 checkpoint, weights apart."""
    (tmp_path / "config.json").write_text("{}")
    write_weights(tmp_path / "model.safetensors", "backbone.x", "action_head.x")
    robot = {"state": STATISTICS, "action": {"gripper": STATISTICS["gripper"]}}
    (tmp_path / "statistics.json").write_text(json.dumps({"panda": robot}))
    (tmp_path / "embodiment_id.json").write_text(json.dumps({"panda": 2}))
    processor(tmp_path, {})
    return tmp_path


def told(checkpoint: Path, names: list[str | None] = NAMES, space: gym.Space[Any] = STATE) -> StateMap:
    return map_state(names, read_state(checkpoint, "panda"), space)


def named(checkpoint: Path, names: list[str | None] = NAMES, space: gym.Space[Any] = STATE) -> GR00TActorCritic:
    return policy(space, state_map=told(checkpoint, names, space), checkpoint=str(checkpoint), state_names=names)


class TestLayout:
    def test_names_and_bounds_of_the_state_are_read_in_the_order_of_its_slots(self, checkpoint: Path) -> None:
        found = read_state(checkpoint, "panda")
        assert found.names == ["arm_0", "arm_1", "base_0", "base_1", "base_2", "gripper"]
        assert (found.low, found.high) == ([-1.0, 0.0, 0.5, 0.5, 0.5, 0.25], [1.0, 4.0, 0.5, 0.500001, 0.75, 0.75])
        assert (found.clip, found.standardized) == (True, set())

    def test_percentiles_count_only_where_the_processor_says_so(self, checkpoint: Path) -> None:
        processor(checkpoint, {"modality_keys": ["gripper", "arm"]}, use_percentiles=False, clip_outliers=False)
        found = read_state(checkpoint, "panda")
        assert found == StateLayout(["gripper", "arm_0", "arm_1"], [0.0, -2.0, -2.0], [1.0, 2.0, 6.0], False, set())

    @pytest.mark.parametrize(
        ("state", "settings", "said"),
        [
            ({"sin_cos_embedding_keys": ["arm"]}, {"apply_sincos_state_encoding": True}, "tells arm as sine and cos"),
            ({"delta_indices": [-1, 0]}, {}, "tells the state of 2 moments"),
            ({}, {"exclude_state": True}, r"trained without a state \(exclude_state\)"),
            ({"exclude_state": True}, {}, r"trained without a state \(exclude_state\)"),
            ({"modality_keys": []}, {}, "no modality_keys of the state of panda"),
            ({"modality_keys": ["arm", "head"]}, {}, "the statistics of the state head have no q01"),
        ],
    )
    def test_a_state_that_is_not_told_number_by_number_is_refused(
        self, checkpoint: Path, state: dict[str, Any], settings: dict[str, Any], said: str
    ) -> None:
        processor(checkpoint, state, **settings)
        with pytest.raises(ValueError, match=said):
            read_state(checkpoint, "panda")

    def test_sines_that_the_processor_does_not_use_are_none(self, checkpoint: Path) -> None:
        processor(checkpoint, {"sin_cos_embedding_keys": ["arm"]}, apply_sincos_state_encoding=False)
        assert read_state(checkpoint, "panda").names[0] == "arm_0"


class TestMapping:
    # gripper .25 to .75, left out, arm_1 0 to 4, arm_0 -1 to 1, left out
    GIVEN = torch.tensor([[0.5, 9.0, 1.0, -0.5, 9.0], [0.625, 9.0, 5.0, -3.0, 9.0]])

    def test_each_number_goes_to_the_slot_of_its_name_and_is_scaled_by_hand(self, checkpoint: Path) -> None:
        expected = [[-0.5, -0.5, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0], [-1.0, 1.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0]]
        assert told(checkpoint)(self.GIVEN, 8).tolist() == expected

    def test_without_clipping_it_goes_beyond_one(self, checkpoint: Path) -> None:
        processor(checkpoint, {}, clip_outliers=False)
        assert told(checkpoint)(self.GIVEN, 6)[1].tolist() == [-3.0, 1.5, 0.0, 0.0, 0.0, 0.5]

    def test_the_model_is_told_that_when_acting_and_training(
        self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        p = named(checkpoint)
        given: list[Tensor] = []
        embed = p.model.embed_state

        def seen(state: Tensor, robot: Tensor) -> Tensor:
            given.append(state)
            return embed(state, robot)

        monkeypatch.setattr(p.model, "embed_state", seen)
        d = drawn(p, self.GIVEN)
        p.best(self.GIVEN, None, torch.empty(0))
        found = p(self.GIVEN, d.actions)
        expected = torch.zeros(2, p.model.state_slots)
        expected[:, :6] = torch.tensor([[-0.5, -0.5, 0.0, 0.0, 0.0, 0.0], [-1.0, 1.0, 0.0, 0.0, 0.0, 0.5]])
        assert len(given) >= 3
        assert all(torch.equal(state, expected) for state in given)
        assert torch.allclose(found.logp, p.distribution.log_prob(d.out, d.actions), atol=1e-4)
        assert torch.allclose(found.values, d.value, atol=1e-5)

    def test_what_is_left_out_reaches_the_value_and_no_decision(self, checkpoint: Path) -> None:
        p, observation = named(checkpoint), look(4)
        other = observation.clone()
        other[:, [1, 4]] += 1
        d = drawn(p, observation)
        found, changed = p(observation, d.actions), p(other, d.actions)
        assert torch.equal(found.logp, changed.logp)
        assert not torch.allclose(found.values, changed.values)

    def test_numbers_of_several_vectors_are_named_in_their_order_and_those_of_the_critic_are_not(
        self, checkpoint: Path
    ) -> None:
        box = gym.spaces.Box(-1, 1, (1,), np.float32)
        pixels = gym.spaces.Box(0, 255, (3, 32, 32), np.uint8)
        space = gym.spaces.Dict({"joint": box, "critic": box, "arm": STATE, "pixels": pixels})  # sorted by name
        names = [*NAMES, "base_2"]
        p = named(checkpoint, names, space)
        assert p.vectors == ["arm", "joint"]
        seen = {
            "arm": self.GIVEN, "joint": torch.tensor([[0.5], [0.75]]), "critic": torch.ones(2, 1),
            "pixels": torch.zeros(2, 3, 32, 32, dtype=torch.uint8),
        }  # fmt: skip
        assert p._look(seen)[1][:, 4].tolist() == [-1.0, 1.0]
        with pytest.raises(ValueError, match=r"has 5 names, the task shows the actor 6 numbers \(arm 5, joint 1\)"):
            told(checkpoint, NAMES, space)

    def test_more_numbers_than_the_state_has_room_for_are_left_out(self, checkpoint: Path) -> None:
        wide = gym.spaces.Box(-1, 1, (100,), np.float32)
        with pytest.raises(ValueError, match="100 numbers"):
            policy(wide)
        p = named(checkpoint, [None] * 99 + ["gripper"], wide)
        assert p._look(torch.ones(2, 100))[1][:, 5].tolist() == [1.0, 1.0]

    def test_the_run_says_which_numbers_are_told(self, checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO)
        told(checkpoint)
        assert (
            "3 of the task's 5 numbers are told, as the checkpoint's gripper, arm_1, arm_0; not told, 0: base_0, "
            in (caplog.text)
        )


class TestKept:
    def test_weights_are_loaded_under_the_mapping_that_they_were_trained_with(self, checkpoint: Path) -> None:
        p, same = named(checkpoint), named(checkpoint)
        saved = p.state_dict()
        load_strict(same, saved, "here")
        other = named(checkpoint, [None, "gripper", "arm_1", "arm_0", None])
        with pytest.raises(ValueError, match=r"trained with other columns of the state \(\[0, 2, 3\]\).*\[1, 2, 3\]"):
            load_strict(other, saved, "here")
        with pytest.raises(ValueError, match="another architecture"):
            load_strict(policy(), saved, "here")

    def test_changed_statistics_of_the_checkpoint_are_noticed(self, checkpoint: Path) -> None:
        saved = named(checkpoint).state_dict()
        processor(checkpoint, {}, use_percentiles=False)
        with pytest.raises(ValueError, match=r"trained with other low of the state.*put both back as they were"):
            load_strict(named(checkpoint), saved, "here")


class TestRefusals:
    @pytest.mark.parametrize(
        ("names", "said"),
        [
            (
                ["gripper", None],
                r"2 names, the task shows the actor 5 numbers \(the observation 5\); give one for each",
            ),
            (["griper", *[None] * 4], r"'griper' is unknown; did you mean gripper\? \(null for a number"),
            (["base_0", *[None] * 4], "base_0 never moved in the data of this checkpoint"),
            ([None, "gripper", "base_1", *[None] * 2], "base_1 never moved in the data"),
        ],
    )
    def test_names_that_cannot_be_mapped(self, checkpoint: Path, names: list[str | None], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            told(checkpoint, names)

    def test_numbers_that_were_scaled_otherwise(self, checkpoint: Path) -> None:
        processor(checkpoint, {"mean_std_embedding_keys": ["arm"]})
        with pytest.raises(ValueError, match=r"arm_1, arm_0 are scaled by mean and .*give them null"):
            told(checkpoint)
        told(checkpoint, ["gripper", *[None] * 4])

    def test_a_state_that_is_wider_than_the_weights(self, checkpoint: Path) -> None:
        robot = {"state": STATISTICS | {"base": {"q01": [0.0] * 200, "q99": [1.0] * 200}}}
        (checkpoint / "statistics.json").write_text(json.dumps({"panda": robot}))
        with pytest.raises(ValueError, match=r"statistics\.json has 203 numbers of the state, its weights room"):
            named(checkpoint)

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            (["gr00t.state_names=[a]"], r"gr00t\.state_names needs gr00t\.checkpoint"),
            (["gr00t.checkpoint=x", "gr00t.state_names=[a,null,b,a]"], "names a twice; give each name to one number"),
            (["gr00t.checkpoint=x", "gr00t.state_names=[null]"], "names nothing"),
            (["gr00t.checkpoint=x", "gr00t.state_names=[]"], "names nothing"),
            (["gr00t.checkpoint=x", "gr00t.backend=n1.5", "gr00t.state_names=[a]"], "N1.5 does not say how its state"),
        ],
    )
    def test_settings_that_cannot_work(self, settings: list[str], said: str) -> None:
        with pytest.raises(ValueError, match=said):
            load(None, ["gr00t.backend=n1.7", *settings])

    def test_numbers_are_not_scaled_twice(self) -> None:
        given = ["arm.algorithm=PPO", "gr00t.backend=n1.7", "gr00t.checkpoint=x", "gr00t.state_names=[a,null]"]
        with pytest.raises(
            ValueError, match=r"ppo\.observation_norm=stored would scale.*set ppo\.observation_norm=none"
        ):
            policies.check_settings(load(None, given, "arm"), "arm")
        policies.check_settings(load(None, [*given, "ppo.observation_norm=none"], "arm"), "arm")


def settings(checkpoint: Path, names: list[str | None]) -> Config:
    words = ",".join("null" if n is None else n for n in names)
    return load(None, [f"gr00t.checkpoint={checkpoint}", "gr00t.backend=n1.7", "gr00t.embodiment=panda",
                       f"gr00t.state_names=[{words}]"])  # fmt: skip


class TestRuns:
    NAMES = ("arm_0", "arm_1", *[None] * 19)  # of ArmReach's 21 numbers

    def test_a_policy_is_made_from_the_configuration_and_the_files(
        self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = model()
        monkeypatch.setattr(gr00t_real, "load", lambda *_: made)
        p: Any = make_policy(settings(checkpoint, [*self.NAMES]), ArmReach(2))
        assert p.state_map.columns.tolist() == p.state_map.slots.tolist() == [0, 1]
        assert (p.state_map.low.tolist(), p.state_map.high.tolist()) == ([-1.0, 0.0], [1.0, 4.0])

    def test_wrong_names_are_refused_before_the_weights_are_read(
        self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gr00t_real, "load", lambda *_: pytest.fail("the weights were read"))
        with pytest.raises(ValueError, match="has 1 names, the task shows the actor 21 numbers"):
            make_policy(settings(checkpoint, ["arm_0"]), ArmReach(2))

    def test_without_names_the_state_of_the_files_is_not_read(
        self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        processor(checkpoint, {"modality_keys": []})
        made = model()
        monkeypatch.setattr(gr00t_real, "load", lambda *_: made)
        cfg = settings(checkpoint, ["arm_0"])
        cfg.gr00t.state_names = None
        p: Any = make_policy(cfg, ArmReach(2))
        assert p.state_map is None
        assert not any("state_map" in n for n in p.state_dict())

    def test_a_plan_reads_no_checkpoint(self) -> None:
        cfg = settings(Path("nowhere"), ["arm_0", *[None] * 199])
        space = gym.spaces.Box(-1, 1, (200,), np.float32)  # more than the state has room for
        found = gr00t_memory.planned(cfg, torch.device("cpu"), (space, ACTION))
        assert sum(row[1] for row in found.parts) > 2.9e9


def test_the_numbers_are_those_that_lerobot_tells_its_model(tmp_path: Path) -> None:
    pytest.importorskip("lerobot", reason="LeRobot is in an environment of its own: bash tests/run.sh gr00t")
    from lerobot.lerobot_types import TransitionKey
    from lerobot.policies.groot import processor_groot as lerobot

    from tests.models.gr00t_released import JOINTS, TAG, write_released

    folder = tmp_path / "released"
    write_released(folder)
    names = [None, *reversed(JOINTS), None, "gripper"]
    space = gym.spaces.Box(-np.inf, np.inf, (10,), np.float32)
    given = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)) * 2
    given[:, 9] *= 0.02
    processed: Any = lerobot._load_n1_7_checkpoint_processor_assets(
        types.SimpleNamespace(base_model_path=folder, embodiment_tag=TAG)  # type: ignore[arg-type]
    )
    expected: list[Tensor] = []
    for clip in (True, False):
        step = lerobot.GrootN17PackInputsStep(
            max_state_dim=48, embodiment_tag=TAG, embodiment_mapping=processed.embodiment_mapping,
            stats=processed.stats, raw_stats=processed.raw_stats, modality_config=processed.modality_config,
            use_percentiles=processed.use_percentiles, clip_outliers=clip,
        )  # fmt: skip
        own = given[:, [9, *range(7, 0, -1)]]  # gripper, joints_0 to joints_6
        out: Any = step({TransitionKey.OBSERVATION: {"observation.state": own}, TransitionKey.COMPLEMENTARY_DATA: {}})
        expected.append(out[TransitionKey.OBSERVATION]["state"][:, 0])
    layout = read_state(folder, TAG)
    assert layout.clip == processed.clip_outliers
    told_48 = map_state(names, layout, space)
    assert torch.equal(told_48(given, 48), expected[0])
    layout.clip = False
    assert torch.equal(map_state(names, layout, space)(given, 48), expected[1])
    assert not torch.equal(expected[0], expected[1])
