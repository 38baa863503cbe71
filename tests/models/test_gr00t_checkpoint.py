"""What a released GR00T says of its robots, read from its files, and which of them are refused."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from rl.models import gr00t_checkpoint, gr00t_real
from rl.models.gr00t import action_slots, language_layers
from rl.models.gr00t_backend import part_of
from tests.models.gr00t_files import write_weights
from tests.models.test_gr00t import drawn, look, policy


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
            (
                {"arm": {"min": [0.0, math.nan], "max": [1.0, 1.0]}, "gripper": {}},
                "are nan and 1.0 at place 1, no bounds",
            ),
            ({"arm": {"min": [0.0], "max": [math.inf]}, "gripper": {}}, "no bounds; it is damaged"),
            ({"arm": {"min": [2.0], "max": [1.0]}, "gripper": {}}, "are 2.0 and 1.0 at place 0, no bounds"),
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

    @pytest.mark.parametrize("row", [-1, True, 1.5, "2", None])
    def test_a_row_that_is_no_whole_number_from_0_is_refused(self, checkpoint: Path, row: Any) -> None:
        (checkpoint / "embodiment_id.json").write_text(json.dumps({"panda": row}))
        with pytest.raises(ValueError, match=r"embodiment_id\.json: the row of panda is .*copy the checkpoint again"):
            gr00t_checkpoint.read_embodiment(checkpoint, "n1.7", "panda")

    def test_an_action_that_never_moved_takes_room_but_cannot_be_named(self, checkpoint: Path) -> None:
        robot = gr00t_checkpoint.read_embodiment(checkpoint, "n1.7", "panda")
        robot.high[0] = robot.low[0]
        assert action_slots(1, 16, ["arm_1"], robot).tolist() == [1]
        with pytest.raises(ValueError, match="arm_0 never moved"):
            action_slots(2, 16, ["arm_1", "arm_0"], robot)

    @pytest.mark.parametrize(
        ("text", "said"), [("{}", "describes no model"), ("[1]", "describes no"), ("{", "is damaged")]
    )
    def test_a_configuration_that_says_nothing_is_refused_before_anything_is_made(
        self, checkpoint: Path, text: str, said: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(gr00t_real, "require", lambda _: None)
        (checkpoint / "config.json").write_text(text)
        with pytest.raises(ValueError, match=rf"config\.json {said}.*copy the checkpoint again"):
            gr00t_real.load("n1.7", checkpoint, "tiny")

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
