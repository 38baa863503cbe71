"""GR00T as actor-critic, on a model of its shapes with random weights.

`bash tests/run.sh gr00t` runs the same tests on LeRobot's N1.7, reduced in size, in its own environment.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from f1_vla.config import FlowKind, StochasticSteps
from f1_vla.flow_likelihood import Chain, FlowProcess, chain_likelihood
from rl.config import GR00TConfig, load
from rl.models import gr00t_backend, gr00t_checkpoint, gr00t_real
from rl.models.gr00t import GR00TActorCritic, action_slots, language_layers
from rl.models.gr00t_backend import Gr00tModel, part_of, patchify, remove_dropout
from rl.models.gr00t_checkpoint import Embodiment
from tests.models.gr00t_files import write_weights

STATE = gym.spaces.Box(-np.inf, np.inf, (5,), np.float32)
ACTION = gym.spaces.Box(-1.0, 1.0, (3,), np.float32)
SEEN = gym.spaces.Dict({"state": STATE, "pixels": gym.spaces.Box(0, 255, (6, 32, 32), np.uint8)})
ALL = ["projector", "dit", "vl_head", "backbone"]
BACKEND = os.environ.get("GR00T_BACKEND", "stub")


def model() -> Gr00tModel:
    return gr00t_backend.stub("tiny") if BACKEND == "stub" else gr00t_real.load(BACKEND, None, "tiny")


def policy(space: gym.Space[Any] = STATE, robot: Embodiment | None = None, **settings: Any) -> GR00TActorCritic:
    torch.manual_seed(0)
    return GR00TActorCritic(model(), space, ACTION, GR00TConfig(backend=BACKEND, **settings), robot)


def look(batch: int, pictures: bool = False) -> Any:
    g = torch.Generator().manual_seed(1)
    state = torch.randn(batch, 5, generator=g)
    if not pictures:
        return state
    return {"state": state, "pixels": torch.randint(256, (batch, 6, 32, 32), generator=g).to(torch.uint8)}


def drawn(p: GR00TActorCritic, observation: Any, seed: int = 2) -> Any:
    B = len(observation if isinstance(observation, Tensor) else observation["state"])
    return p.draw(observation, None, torch.ones(B, dtype=torch.bool), torch.Generator().manual_seed(seed))


class TestLikelihood:
    @pytest.mark.parametrize("pictures", [False, True])
    def test_acting_and_training_agree_on_likelihood_and_value(self, pictures: bool) -> None:
        p, observation = policy(SEEN if pictures else STATE), look(6, pictures)
        d = drawn(p, observation)
        p.train()  # dropout of the model must stay away
        found = p(observation, d.actions)
        assert torch.allclose(found.logp, p.distribution.log_prob(d.out, d.actions), atol=1e-4)
        assert torch.allclose(found.values, d.value, atol=1e-5)
        assert (found.logp.dtype, found.values.dtype) == (torch.float32, torch.float32)

    def test_it_is_that_of_the_flow_with_one_random_step(self) -> None:
        """The same stored chain through f1_vla.flow_likelihood."""
        p, observation = policy(), look(4)
        d = drawn(p, observation)
        seen, proprio = p._look(observation)
        index = p.layout.step(d.actions)
        x = torch.zeros(4, 5, p.layout.chunk, p.layout.slots)
        rows = torch.arange(4)
        x[rows, index] = p.layout.before(d.actions)
        x[rows, index + 1, 0, :3] = p.layout.drawn(d.actions)
        process = FlowProcess(FlowKind.sde, 4, 0.5, StochasticSteps.one)
        expected, entropy = chain_likelihood(process, Chain(x, index[:, None]), p.mask_QA, p._velocity(seen, proprio))
        found = p(observation, d.actions)
        assert torch.allclose(found.logp, expected, atol=1e-5)
        assert torch.allclose(found.entropy, entropy, atol=1e-5)

    def test_by_hand_for_a_model_that_does_not_move(self) -> None:
        """v = 0: at t = 1/2 of 4 steps, n = 0.5, sigma^2 = 0.25, mean = x (1 - sigma^2 d / 2t), variance sigma^2 d."""
        p = policy()
        assert p.mix is not None
        nn.init.zeros_(p.mix.weight)
        chunk, slots = p.layout.chunk, p.layout.slots
        before = torch.full((1, chunk, slots), 2.0)
        row = p.layout.pack(before, torch.tensor([[2.0, 1.5, 2.5]]), torch.tensor([2]), torch.zeros(1, 3))
        mean, variance = 2.0 * (1 - 0.25 * 0.25 / (2 * 0.5)), 0.25 * 0.25
        expected = sum(
            -0.5 * (x - mean) ** 2 / variance - 0.5 * math.log(2 * math.pi * variance) for x in (2.0, 1.5, 2.5)
        )
        assert p(look(1), row).logp.item() == pytest.approx(expected, abs=1e-4)

    def test_only_the_executed_dims_of_the_first_action_are_random(self) -> None:
        p = policy()
        observation = look(64)
        d = drawn(p, observation)
        assert d.executed.shape == (64, 3)
        assert p.layout.step(d.actions).unique().tolist() == [0, 1, 2, 3]
        assert int(p.mask_QA.sum()) == 3
        assert p.mask_QA[0, :3].all()

    def test_its_kl_divergence_is_that_of_two_normals(self) -> None:
        p = policy()
        old, new = torch.tensor([[0.0, 1.0, 2.0, math.log(0.5)]]), torch.tensor([[0.5, 1.0, 1.0, math.log(0.8)]])
        a = torch.distributions.Normal(old[:, :3], old[:, 3:].exp())
        b = torch.distributions.Normal(new[:, :3], new[:, 3:].exp())
        expected = torch.distributions.kl_divergence(a, b).sum(-1)
        assert torch.allclose(p.distribution.kl(old, torch.empty(0), new), expected)

    def test_the_best_action_has_no_randomness(self) -> None:
        p, observation = policy(), look(3)
        first, _ = p.best(observation, None, torch.empty(0))
        assert torch.equal(first, p.best(observation, None, torch.empty(0))[0])

    def test_rows_do_not_see_each_other(self) -> None:
        p, observation = policy(SEEN), look(4, pictures=True)
        d = drawn(p, observation)
        alone = p({k: v[2:3] for k, v in observation.items()}, d.actions[2:3])
        assert torch.allclose(alone.logp, p(observation, d.actions).logp[2:3], atol=1e-4)


class TestGradients:
    def test_frozen_parts_get_none_and_the_value_does_not_reach_the_model(self) -> None:
        p = policy(stages=ALL, unfreeze_at=[0.0, 0.5, 0.5, 0.5])
        p.enter(1)
        observation = look(4)
        d = drawn(p, observation)
        found = p(observation, d.actions)
        found.values.sum().backward(retain_graph=True)
        assert all(x.grad is None or not x.grad.any() for x in p.model.parameters())
        found.logp.sum().backward()
        moved = {part_of(n) for n, x in p.model.named_parameters() if x.grad is not None and x.grad.any()}
        assert moved == {"projector"}

    def test_stages_open_one_after_another(self) -> None:
        p = policy(stages=ALL, unfreeze_at=[0.0, 0.1, 0.2, 0.3], backbone_layers=1, lora_rank=2)
        counts = []
        for stage in range(1, 5):
            new = p.enter(stage)
            assert new
            assert all(x.requires_grad for x in new)
            counts.append(sum(x.requires_grad for x in p.model.parameters()))
        assert counts == sorted(counts)
        assert len(set(counts)) == 4
        assert p.enter(4) == []
        names = {n for n, x in p.model.named_parameters() if x.requires_grad}
        assert all(".lora_" in n for n in names if part_of(n) == "dit")
        assert len([n for n in names if part_of(n) == "backbone"]) == len(
            list(language_layers(p.model)[-1].parameters())
        )

    def test_adapters_begin_without_effect(self) -> None:
        plain, adapted = policy(), policy(stages=["dit"], lora_rank=4)
        observation = look(3)
        d = drawn(plain, observation)
        assert torch.allclose(plain(observation, d.actions).logp, adapted(observation, d.actions).logp, atol=1e-5)

    def test_a_learned_map_of_the_actions_begins_as_the_identity(self) -> None:
        p = policy()
        assert p.mix is not None
        v = torch.randn(2, 4, p.model.action_slots)
        assert torch.equal(p.mix(v), v[..., :3])

    def test_half_precision_holds_what_stands_still_and_trains_in_float32(self) -> None:
        p = policy(dtype="bfloat16", stages=["projector"])
        kinds = {part_of(n): x.dtype for n, x in p.model.named_parameters() if x.dim() >= 2}
        assert kinds == {
            "backbone": torch.bfloat16, "vl_head": torch.bfloat16, "dit": torch.bfloat16, "projector": torch.float32,
        }  # fmt: skip
        p.enter(1)
        observation = look(4)
        d = drawn(p, observation)
        found = p(observation, d.actions)
        assert found.logp.dtype is found.values.dtype is torch.float32
        assert torch.allclose(found.logp, p.distribution.log_prob(d.out, d.actions), atol=1e-3)
        found.logp.sum().backward()
        assert all(torch.isfinite(x.grad).all() for x in p.parameters() if x.grad is not None)

    def test_likelihood_and_value_are_those_of_float32_whatever_precision_trains(self) -> None:
        p, observation = policy(), look(4)
        d = drawn(p, observation)
        plain = p(observation, d.actions)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, again = p(observation, d.actions), drawn(p, observation)
        assert torch.equal(found.logp, plain.logp)
        assert torch.equal(found.values, plain.values)
        assert torch.equal(again.actions, d.actions)


class TestDropout:
    def test_every_dropout_is_removed(self) -> None:
        made = model()
        assert any(isinstance(m, nn.Dropout) for m in made.modules())
        assert remove_dropout(made) > 0
        assert not any(isinstance(m, nn.Dropout) for m in made.modules())


class TestPictures:
    def test_patches_lie_where_the_model_looks_for_them(self) -> None:
        """Each patch of 16 x 16 holds its own number; four neighbours come together, frames twice."""
        picture = torch.arange(16).view(4, 4).repeat_interleave(16, 0).repeat_interleave(16, 1)
        patches, grid = patchify(picture.expand(1, 3, 64, 64).to(torch.uint8))
        assert grid == [1, 4, 4]
        assert patches.shape == (1, 16, 3 * 2 * 16 * 16)
        numbers = ((patches[0, :, 0] + 1) * 127.5).round().long().tolist()
        assert numbers == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]

    def test_other_sizes_become_the_next_multiple(self) -> None:
        assert patchify(torch.zeros(2, 3, 50, 100, dtype=torch.uint8))[1] == [1, 4, 6]

    def test_the_newest_picture_of_a_stack_counts(self) -> None:
        p, observation = policy(SEEN), look(2, pictures=True)
        d = drawn(p, observation)
        older = observation | {"pixels": observation["pixels"].clone()}
        older["pixels"][:, :3] = 0
        assert torch.equal(p(observation, d.actions).logp, p(older, d.actions).logp)
        older["pixels"][:, 3:] = 0
        assert not torch.equal(p(observation, d.actions).logp, p(older, d.actions).logp)


# --- checkpoints ------------------------------------------------------------------------------------------------------


def processor(folder: Path, keys: list[str], kinds: list[str] | None = None, **settings: Any) -> None:
    """Writes processor_config.json: order of the actions of panda, and of each group whether it is relative."""
    action = {"modality_keys": keys, "action_configs": [{"rep": k} for k in kinds or []]}
    kwargs = {"modality_configs": {"panda": {"action": action}}, **settings}
    (folder / "processor_config.json").write_text(json.dumps({"processor_kwargs": kwargs}))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """The files of an N1.7 checkpoint, weights apart."""
    (tmp_path / "config.json").write_text("{}")
    write_weights(tmp_path / "model.safetensors", "backbone.x", "action_head.x")
    action = {
        "arm": {"min": [-2.0, -2.0], "max": [2.0, 2.0], "q01": [-1.0, -1.0], "q99": [1.0, 3.0]},
        "gripper": {"min": [0.0], "max": [1.0], "q01": [0.25], "q99": [0.75]},
    }
    (tmp_path / "statistics.json").write_text(json.dumps({"panda": {"state": {}, "action": action}}))
    (tmp_path / "embodiment_id.json").write_text(json.dumps({"panda": 2, "other": 3}))
    processor(tmp_path, ["arm", "gripper"], use_percentiles=True)
    return tmp_path


class TestCheckpoint:
    def test_names_bounds_and_row_of_a_robot_are_read(self, checkpoint: Path) -> None:
        robot = gr00t_checkpoint.read_embodiment(checkpoint, "n1.7", "panda")
        assert robot.index == 2
        assert robot.action_names == ["arm_0", "arm_1", "gripper"]
        assert robot.low.tolist() == [-1.0, -1.0, 0.25]
        assert robot.high.tolist() == [1.0, 3.0, 0.75]

    def test_slots_are_in_the_order_of_the_processor_and_percentiles_count_only_where_it_says_so(
        self, checkpoint: Path
    ) -> None:
        processor(checkpoint, ["gripper", "arm"])
        robot = gr00t_checkpoint.read_embodiment(checkpoint, "n1.7", "panda")
        assert robot.action_names == ["gripper", "arm_0", "arm_1"]
        assert robot.low.tolist() == [0.0, -2.0, -2.0]
        assert robot.high.tolist() == [1.0, 2.0, 2.0]

    def test_relative_actions_take_room_but_cannot_be_named(self, checkpoint: Path) -> None:
        """As wide as their own statistics, which have a row for each action of a chunk."""
        statistics = json.loads((checkpoint / "statistics.json").read_text())
        statistics["panda"]["relative_action"] = {"arm": {"min": [[-3.0] * 3, [-4.0] * 3], "max": [[3.0] * 3] * 2}}
        (checkpoint / "statistics.json").write_text(json.dumps(statistics))
        processor(checkpoint, ["arm", "gripper"], ["RELATIVE", "ABSOLUTE"], use_relative_action=True)
        robot = gr00t_checkpoint.read_embodiment(checkpoint, "n1.7", "panda")
        assert robot.action_names == ["arm_0", "arm_1", "arm_2", "gripper"]
        assert robot.low.tolist() == [-4.0, -4.0, -4.0, 0.0]
        assert action_slots(1, 16, ["gripper"], robot).tolist() == [3]
        with pytest.raises(ValueError, match="arm_1 count from the robot's state"):
            action_slots(2, 16, ["gripper", "arm_1"], robot)
        processor(checkpoint, ["arm", "gripper"], ["RELATIVE", "ABSOLUTE"])  # the model does not use them
        assert gr00t_checkpoint.read_embodiment(checkpoint, "n1.7", "panda").relative == set()

    def test_one_that_does_not_say_the_order_is_refused(self, checkpoint: Path) -> None:
        processor(checkpoint, [])
        with pytest.raises(ValueError, match="no modality_keys of the actions of panda"):
            gr00t_checkpoint.read_embodiment(checkpoint, "n1.7", "panda")
        (checkpoint / "processor_config.json").unlink()
        with pytest.raises(ValueError, match=r"has no processor_config\.json"):
            gr00t_checkpoint.read_embodiment(checkpoint, "n1.7", "panda")

    def test_missing_weights_are_refused(self, checkpoint: Path) -> None:
        index = {"weight_map": {"backbone.x": "a", "action_head.x": "a", "backbone.y": "b"}}
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match=r"lack 1 weights, backbone\.y for one"):
            gr00t_checkpoint.read_embodiment(checkpoint, "n1.7", "panda")
        (checkpoint / "model.safetensors.index.json").unlink()
        write_weights(checkpoint / "model.safetensors", "action_head.x")
        with pytest.raises(ValueError, match=r"lack 1 weights, backbone\.\*"):
            gr00t_checkpoint.read_embodiment(checkpoint, "n1.7", "panda")
        (checkpoint / "model.safetensors").write_bytes(b"version https://git-lfs")
        with pytest.raises(ValueError, match=r"model\.safetensors is damaged"):
            gr00t_checkpoint.read_embodiment(checkpoint, "n1.7", "panda")

    def test_one_without_statistics_is_refused(self, checkpoint: Path) -> None:
        (checkpoint / "statistics.json").unlink()
        with pytest.raises(ValueError, match="without statistics its actions have no scale"):
            gr00t_checkpoint.read_embodiment(checkpoint, "n1.7", "panda")

    def test_statistics_without_actions_are_refused(self, checkpoint: Path) -> None:
        (checkpoint / "statistics.json").write_text(json.dumps({"panda": {"state": {}}}))
        with pytest.raises(ValueError, match="no statistics of the actions of panda"):
            gr00t_checkpoint.read_embodiment(checkpoint, "n1.7", "panda")

    @pytest.mark.parametrize(
        ("action", "said"),
        [
            ({}, "no statistics of the actions of panda"),
            ({"arm": {"min": [0.0]}, "gripper": {"min": [0.0], "max": [1.0]}}, "arm have no max"),
            ({"arm": {"min": [[0.0]], "max": [[1.0]]}, "gripper": {}}, "min of the action arm is no list of numbers"),
            ({"arm": {"min": [0.0], "max": [1.0, 2.0]}, "gripper": {}}, "not of one length above 0"),
            ({"arm": {"min": [], "max": []}, "gripper": {}}, "not of one length above 0"),
        ],
    )
    def test_statistics_that_give_no_scale_are_refused(
        self, checkpoint: Path, action: dict[str, Any], said: str
    ) -> None:
        processor(checkpoint, ["arm", "gripper"])
        (checkpoint / "statistics.json").write_text(json.dumps({"panda": {"action": action}}))
        with pytest.raises(ValueError, match=said):
            gr00t_checkpoint.read_embodiment(checkpoint, "n1.7", "panda")

    @pytest.mark.parametrize(("text", "said"), [("[1]", "no JSON object"), ("{", "not readable as JSON")])
    def test_statistics_that_are_damaged_are_refused(self, checkpoint: Path, text: str, said: str) -> None:
        (checkpoint / "statistics.json").write_text(text)
        with pytest.raises(ValueError, match=said):
            gr00t_checkpoint.read_embodiment(checkpoint, "n1.7", "panda")

    def test_an_unknown_robot_is_refused_with_the_nearest(self, checkpoint: Path) -> None:
        with pytest.raises(ValueError, match="did you mean panda"):
            gr00t_checkpoint.read_embodiment(checkpoint, "n1.7", "pandaa")

    def test_a_folder_that_is_none_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"no config\.json"):
            gr00t_checkpoint.read_embodiment(tmp_path, "n1.7", "panda")

    def test_n1_5_keeps_its_statistics_elsewhere(self, checkpoint: Path) -> None:
        statistics = json.loads((checkpoint / "statistics.json").read_text())["panda"]
        (checkpoint / "experiment_cfg").mkdir()
        metadata = checkpoint / "experiment_cfg" / "metadata.json"
        metadata.write_text(json.dumps({"gr1": {"statistics": statistics}, "oxe_droid": {}}))
        (checkpoint / "embodiment_id.json").unlink()
        robot = gr00t_checkpoint.read_embodiment(checkpoint, "n1.5", "gr1")
        assert (robot.index, robot.low.tolist()) == (24, [-2.0, -2.0, 0.0])
        with pytest.raises(ValueError, match="no statistics of the actions of oxe_droid"):
            gr00t_checkpoint.read_embodiment(checkpoint, "n1.5", "oxe_droid")

    def test_without_a_table_of_its_own_a_checkpoint_has_the_published_rows_and_no_others(
        self, checkpoint: Path
    ) -> None:
        (checkpoint / "embodiment_id.json").unlink()
        with pytest.raises(ValueError, match=r"those published for n1\.7"):
            gr00t_checkpoint.read_embodiment(checkpoint, "n1.7", "panda")
        assert gr00t_checkpoint._index(checkpoint, "n1.7", "libero_sim") == 2
        assert gr00t_checkpoint._index(checkpoint, "n1.7", "new_embodiment") == 10
        assert gr00t_checkpoint._index(checkpoint, "n1.5", "new_embodiment") == 31

    def test_names_map_actions_to_slots_and_units(self, checkpoint: Path) -> None:
        robot = gr00t_checkpoint.read_embodiment(checkpoint, "n1.7", "panda")
        p = policy(robot=robot, action_names=["gripper", "arm_1", "arm_0"])
        assert p.mix is None
        assert p.slots.tolist() == [2, 1, 0]
        assert p._units(torch.tensor([[-1.0, 0.0, 1.0]])).tolist() == [[0.25, 1.0, 1.0]]

    def test_actions_that_cannot_be_mapped_are_refused(self, checkpoint: Path) -> None:
        robot = gr00t_checkpoint.read_embodiment(checkpoint, "n1.7", "panda")
        with pytest.raises(ValueError, match="wrist do not exist; the checkpoint has arm_0, arm_1, gripper"):
            action_slots(2, 16, ["arm_0", "wrist"], robot)
        with pytest.raises(ValueError, match="appears twice"):
            action_slots(2, 16, ["arm_0", "arm_0"], robot)
        with pytest.raises(ValueError, match="2 names, the task 3 actions"):
            action_slots(3, 16, ["arm_0", "arm_1"], robot)
        with pytest.raises(ValueError, match="room for 16"):
            action_slots(17, 16, None, robot)
        with pytest.raises(ValueError, match=r"needs gr00t\.checkpoint"):
            action_slots(1, 16, ["arm_0"], None)

    def test_the_state_dict_leaves_the_released_weights_out_and_loads_again(self) -> None:
        p, q = policy(stages=["projector"]), policy(stages=["projector"])
        for each in (p, q):
            each.refer_to("abc")
        with torch.no_grad():
            for x in p.parameters():
                x.add_(0.01)
        saved = p.state_dict()
        assert not any(part_of(k.removeprefix("model.")) == "backbone" for k in saved if k.startswith("model."))
        q.load_state_dict(saved)
        observation = look(2)
        weights = [next(iter(language_layers(x.model)[0].parameters())) for x in (p, q)]
        assert not torch.equal(*weights)
        assert torch.equal(q.state_dict()["mix.weight"], saved["mix.weight"])
        assert drawn(q, observation).value.isfinite().all()


class TestRefusals:
    def test_a_task_without_a_state_or_with_discrete_actions(self) -> None:
        made = model()
        only = gym.spaces.Box(0, 255, (3, 32, 32), np.uint8)
        with pytest.raises(ValueError, match="pictures only"):
            GR00TActorCritic(made, only, ACTION, GR00TConfig(backend="stub"))
        with pytest.raises(ValueError, match="continuous actions"):
            GR00TActorCritic(made, STATE, gym.spaces.Discrete(3), GR00TConfig(backend="stub"))
        wide = gym.spaces.Box(-1, 1, (100,), np.float32)
        with pytest.raises(ValueError, match="100 numbers"):
            GR00TActorCritic(made, wide, ACTION, GR00TConfig(backend="stub"))

    @pytest.mark.parametrize(
        ("setting", "complaint"),
        [
            ("backend=n1.8", "did you mean n1.7"),
            ("dtype=bf16", "gr00t.dtype"),
            ("stages=[dit,dit]", "twice"),
            ("unfreeze_at=[]", "one share of the run for each"),
            ("unfreeze_at=[1.5]", "shares of the run"),
            ("noise_level=0", "must be positive"),
        ],
    )
    def test_settings_that_cannot_work(self, setting: str, complaint: str) -> None:
        with pytest.raises(ValueError, match=complaint):
            load(None, [f"gr00t.{setting}"])
