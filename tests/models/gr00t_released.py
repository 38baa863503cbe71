"""An N1.7 checkpoint on disk as it is released, by LeRobot's own save_pretrained: small, random weights."""

import json
from pathlib import Path

import torch

from rl.models import gr00t_real

TAG = "franka_test"
ROW = 2  # of the per-robot weights
JOINTS = [f"joints_{i}" for i in range(7)]  # its actions, in [-1, 1] between the percentiles; of its state, too
STATE_LOW, STATE_HIGH = [-0.5 - 0.25 * i for i in range(7)], [0.75] * 6 + [3.5]  # percentiles of the joints' positions


def write_released(folder: Path, seed: int = 0) -> None:
    """Weights in bfloat16 over several files with their index, config.json, statistics and processor of one robot.

    The configuration of the backbone, which the library holds itself for the released model, lies in `folder`-backbone.
    """
    from lerobot.policies.groot.groot_n1_7 import GR00TN17, GR00TN17Config

    backbone = folder.with_name(f"{folder.name}-backbone")
    gr00t_real._reduced_backbone(str(backbone))
    torch.manual_seed(seed)
    config = GR00TN17Config(**gr00t_real.REDUCED_HEAD, model_name=str(backbone))
    model = GR00TN17(config, load_backbone_weights=False).to(torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="300KB")
    limits = {"q01": [-1.0] * 7, "q99": [1.0] * 7, "min": [-2.0] * 7, "max": [2.0] * 7}
    moments = {"mean": [0.0] * 7, "std": [1.0] * 7}
    gripper = {"q01": [0.0], "q99": [0.04], "min": [-0.01], "max": [0.05], "mean": [0.02], "std": [0.01]}
    positions = {"q01": STATE_LOW, "q99": STATE_HIGH, "min": [-4.0] * 7, "max": [4.0] * 7} | moments
    state = {"gripper": gripper, "joints": positions}
    closing = {"q01": [0.0], "q99": [1.0], "min": [0.0], "max": [1.0], "mean": [0.5], "std": [0.5]}
    action = {"joints": limits | moments, "gripper": closing}
    kind = {"rep": "ABSOLUTE", "type": "NON_EEF", "format": "DEFAULT", "state_key": None}
    modalities = {
        "video": {"delta_indices": [0], "modality_keys": ["wrist"]},
        "state": {"delta_indices": [0], "modality_keys": ["gripper", "joints"]},
        "action": {"delta_indices": [0, 1, 2, 3], "modality_keys": ["gripper", "joints"], "action_configs": [kind] * 2},
        "language": {"delta_indices": [0], "modality_keys": ["annotation.human.task_description"]},
    }
    kwargs = {"modality_configs": {TAG: modalities}, "use_percentiles": True, "use_relative_action": False}
    files = {
        "statistics.json": {TAG: {"state": state, "action": action}},
        "processor_config.json": {"processor_class": "Gr00tN1d7Processor", "processor_kwargs": kwargs},
        "embodiment_id.json": {TAG: ROW, "other_robot": 0},
    }
    for name, held in files.items():
        (folder / name).write_text(json.dumps(held))
