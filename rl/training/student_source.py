"""The explorer of phase 2 as phase 3 takes it: found, checked against this run and its teacher, loaded strictly.

As for the teacher, everything that can be refused is refused from small files, before a model or a simulator exists.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from f1_vla.config import F1Config
from f1_vla.loading import meta_policy
from f1_vla.lora import Role
from rl import config as rl_config
from rl.config import Config
from rl.models.explorer import Explorer
from rl.training.checkpoint import SavedCheckpoint
from rl.training.config_drift import flatten
from rl.training.explorer_setup import make_explorer
from rl.training.model_setup import inject_adapter, uses_lora
from rl.training.released_base import check_model, load_model
from rl.training.teacher_source import Teacher, check_adapters, check_architecture, check_world, open_run, origin_of

FLAG = "--student_checkpoint"
# Keys of the block `student` that decide what the policy is; the others only how it learns.
_POLICY = ("chunk_exec_steps", "value_hidden", "flow")


@dataclass(frozen=True)
class Student:
    """A verified checkpoint of phase 2."""

    saved: SavedCheckpoint

    def origin(self) -> dict[str, Any]:
        """See `origin_of`."""
        return origin_of(self.saved)


def find_student(path: Path | None, cfg: Config, arch: F1Config, teacher: Teacher) -> Student:
    """The newest valid checkpoint at `path`. ValueError naming the flag: none given, none there, damaged, of another
    phase or architecture, with another flow policy or other adapters, of another world, made with another teacher, with
    weights that do not fit."""
    saved = open_run(path, FLAG, "phase 2 (bash train.sh student makes one)")
    training = saved.read("training_state.pt", "meta")
    if "explorer" not in training or "adversarial" in training:
        raise ValueError(f"{FLAG} {saved.path} is no checkpoint of phase 2; name a run of bash train.sh student")
    run = saved.path.parent
    check_architecture(rl_config.read_dict(run / "model_config.yaml"), arch, saved, cfg, FLAG)
    theirs = rl_config.load_saved(run / "config.yaml", rl_config.POLICY_BLOCKS)
    check_adapters(theirs, cfg, saved, FLAG)
    check_world(theirs, cfg, saved, FLAG)
    _check_policy(theirs, cfg, saved)
    _check_teacher(training["explorer"]["teacher"], teacher, saved)
    _check_weights(cfg, arch, saved)
    return Student(saved)


def _check_policy(theirs: Config, cfg: Config, saved: SavedCheckpoint) -> None:
    before, after = (flatten(rl_config.to_dict(c)["student"]) for c in (theirs, cfg))
    wrong = [
        f"student.{k} is {before[k]} there and {after[k]} here" for k in after
        if k.split(".")[0] in _POLICY and before[k] != after[k]
    ]  # fmt: skip
    if wrong:
        raise ValueError(
            f"{FLAG} {saved.path} is an explorer of another kind: {'; '.join(wrong)}. Give these keys as it had them "
            f"({saved.path.parent / 'config.yaml'})"
        )


def _check_teacher(origin: dict[str, Any], teacher: Teacher, saved: SavedCheckpoint) -> None:
    given = teacher.origin()
    if origin["sha256"] != given["sha256"]:
        raise ValueError(
            f"{FLAG} {saved.path} was made with the world model of {origin['path']}, not with that of {teacher.flag} "
            f"{given['path']}; give {teacher.flag} {origin['path']}, or train a student with that teacher"
        )


def _check_weights(cfg: Config, arch: F1Config, saved: SavedCheckpoint) -> None:
    """Keys and shapes against an explorer without memory for its weights: the real one needs its simulators first."""
    with torch.device("meta"):
        policy = meta_policy(arch)
        if uses_lora(cfg):
            inject_adapter(policy, cfg, Role.world_model)
        explorer = make_explorer(cfg.student, policy, np.ones(arch.max_action_dim, np.bool_))
        if uses_lora(cfg):
            inject_adapter(policy, cfg, Role.explorer)
    try:
        check_model(explorer, saved.read("model.pt", "meta"), saved.base, saved.path)
    except ValueError as e:
        raise ValueError(f"{FLAG}: {e}") from e


def load_student(student: Student, explorer: Explorer) -> None:
    """Fills the explorer and the policy it stands on; every key and shape must fit."""
    try:
        load_model(explorer, student.saved.read("model.pt"), student.saved.base, student.saved.path)
    except ValueError as e:
        raise ValueError(f"{FLAG}: {e}") from e
