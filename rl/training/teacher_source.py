"""The world model of phase 1 as phases 2 and 3 take it: found, checked against this run, loaded entry by entry.

Everything that can be refused is refused from small files, before a model or a simulator exists.
"""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from f1_vla.config import F1Config
from f1_vla.loading import empty_policy
from f1_vla.lora import Role
from f1_vla.policy import F1Policy
from rl import config as rl_config
from rl.config import Config, MixedPrecision
from rl.normalizers import Normalizer
from rl.training.checkpoint import SavedCheckpoint, open_checkpoint
from rl.training.config_drift import flatten
from rl.training.model_setup import inject_adapter, uses_lora
from rl.training.released_base import load_model

log = logging.getLogger(__name__)
# What an action does and what is seen: a world model knows one answer to each. Objects and looks of a scene may differ.
_WORLD = (
    "control_mode", "instruction", "action_scale", "gripper_scale", "physics_steps", "physics_timestep", "vlm_size",
    "wm_size",
)  # fmt: skip
# Architecture keys that decide how the model is run, not what it is.
_RUN_TIME = (
    "trunk.attention_backend", "vision.attention_backend", "trunk.gradient_checkpointing", "num_denoise_steps",
    "denoise_mode", "world_model.foresight_scales", "world_model.head_loss",
    "world_model.mask_sample_prob", "world_model.mask_token_prob",
)  # fmt: skip


@dataclass(frozen=True)
class Teacher:
    """A verified checkpoint of phase 1."""

    saved: SavedCheckpoint
    flag: str  # how the user named it

    def origin(self) -> dict[str, Any]:
        """See `origin_of`."""
        return origin_of(self.saved)


def origin_of(saved: SavedCheckpoint) -> dict[str, Any]:
    """What a run remembers of the checkpoint it began with: directory, episodes, hash of the weights. Plain data."""
    entry = next(f for f in saved.manifest["files"] if f["name"] == "model.pt")
    return {"path": str(saved.path), "episodes": saved.step, "sha256": entry["sha256"]}


def warn_of_another(flag: str, named: Path | None, origin: dict[str, Any]) -> None:
    """A resumed run goes on from its own checkpoint, which holds what it began with (`origin`): says so in the log
    where `flag` names other weights now, for instance those of a teacher that was trained on meanwhile."""
    if named is None:
        return
    try:
        found = origin_of(open_checkpoint(named))
    except ValueError:  # no longer there, and no longer needed
        return
    if found["sha256"] != origin.get("sha256"):
        log.warning(
            "%s %s is not what this run was started with: it goes on with the weights of %s (episode %s). For the "
            "others start a new run (another --output_dir, or --overwrite)",
            flag, found["path"], origin.get("path"), origin.get("episodes"),
        )  # fmt: skip


def find_teacher(path: Path | None, cfg: Config, arch: F1Config, flag: str = "--teacher_path") -> Teacher:
    """The newest valid checkpoint at `path`. ValueError naming the flag: none given, none there, damaged, of another
    phase or architecture, without the ensemble heads that this run asks for, with other adapters, of another world."""
    saved = open_run(path, flag, "phase 1 (bash train.sh teacher makes one)")
    run = saved.path.parent
    _check_phase(saved, flag)
    check_architecture(rl_config.read_dict(run / "model_config.yaml"), arch, saved, cfg, flag)
    theirs = rl_config.load_saved(run / "config.yaml", rl_config.POLICY_BLOCKS)
    check_adapters(theirs, cfg, saved, flag)
    check_world(theirs, cfg, saved, flag)
    return Teacher(saved, flag)


def open_run(path: Path | None, flag: str, what: str) -> SavedCheckpoint:
    """A checkpoint with the configuration of its run beside it. ValueError naming the flag."""
    if path is None:
        raise ValueError(f"{flag} DIR is missing: a run or checkpoint of {what}")
    try:
        saved = open_checkpoint(path)
    except ValueError as e:
        raise ValueError(f"{flag}: {e}") from e
    for name in ("model_config.yaml", "config.yaml"):
        if not (saved.path.parent / name).is_file():
            raise ValueError(
                f"{flag} {saved.path}: {saved.path.parent} has no {name}; keep a checkpoint in its run directory"
            )
    return saved


def _check_phase(saved: SavedCheckpoint, flag: str) -> None:
    training = saved.read("training_state.pt", "meta")
    if "states" not in training or "explorer" in training:
        raise ValueError(f"{flag} {saved.path} is no checkpoint of phase 1; name a run of bash train.sh teacher")


def check_architecture(old: dict[str, Any], arch: F1Config, saved: SavedCheckpoint, cfg: Config, flag: str) -> None:
    """Raises ValueError naming the flag and the keys that differ from the run's `model_config.yaml` (old)."""
    before, after = flatten(old), flatten(rl_config.to_dict(arch))
    heads = "world_model.ensemble_heads"
    if before.get(heads, 0) == 0 and after[heads] > 0:
        raise ValueError(
            f"{flag} {saved.path} was trained without ensemble heads, and the disagreement reward needs them; train a "
            f"teacher with arch.{heads}={after[heads]}, or take the entropy of its predictions: arch.{heads}=0 "
            "student.rewards.uncertainty=entropy"
        )
    wrong = [
        f"arch.{k} is {before.get(k, '(absent)')} there and {v} here"
        for k, v in after.items()
        if k not in _RUN_TIME and before.get(k) != v and not (k not in before and after[heads] == 0 and "ensemble" in k)
    ]
    if wrong:
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise ValueError(
            f"{flag} {saved.path} is a model of another architecture than --model_config {cfg.model.config_file}: "
            f"{'; '.join(wrong[:4])}{more}. Give --model_config and arch.* as the teacher had them "
            f"({saved.path.parent / 'model_config.yaml'} works as --model_config)"
        )


def check_adapters(theirs: Config, cfg: Config, saved: SavedCheckpoint, flag: str) -> None:
    """Raises ValueError naming the flag where the run's adapters (theirs) are not those of this one."""
    old, new = theirs.model.lora, cfg.model.lora
    if uses_lora(theirs) != uses_lora(cfg):
        word = "on" if uses_lora(theirs) else "off"
        raise ValueError(f"{flag} {saved.path} was trained with adapters {word}; set model.lora.mode={word} here, too")
    if uses_lora(cfg):
        for name in ("r", "lora_alpha", "target_modules"):
            if getattr(old, name) != getattr(new, name):
                raise ValueError(
                    f"{flag} {saved.path} has adapters with model.lora.{name}={getattr(old, name)}, this run "
                    f"{getattr(new, name)}; give the same"
                )


def check_world(theirs: Config, cfg: Config, saved: SavedCheckpoint, flag: str) -> None:
    """Raises ValueError naming the flag where actions or pictures meant something else in the run (theirs)."""
    old, new = theirs.environment, cfg.environment
    wrong = [
        f"environment.{k} is {getattr(old, k)} there and {getattr(new, k)} here"
        for k in _WORLD
        if getattr(old, k) != getattr(new, k)
    ]
    if wrong:
        raise ValueError(
            f"{flag} {saved.path} was trained in another world: {'; '.join(wrong)}. Give these keys as it had them "
            f"({saved.path.parent / 'config.yaml'})"
        )


def frozen_policy(cfg: Config, arch: F1Config, device: torch.device) -> F1Policy:
    """The policy in its world-model role, laid out but not yet filled."""
    half = uses_lora(cfg) and cfg.training.mixed_precision is MixedPrecision.bf16
    policy = empty_policy(arch, device, torch.bfloat16 if half else torch.float32)
    policy.trunk.act.float()  # as an explorer needs it, before it is filled: what a file holds is then not rounded
    if uses_lora(cfg):
        inject_adapter(policy, cfg, Role.world_model)
    return policy.requires_grad_(False).eval()


def load_teacher(teacher: Teacher, policy: F1Policy) -> Normalizer:
    """Fills the policy; every key and shape must fit. The teacher's statistics of states."""
    try:
        load_model(policy, teacher.saved.read("model.pt"), teacher.saved.base, teacher.saved.path)
    except ValueError as e:
        raise ValueError(f"{teacher.flag}: {e}") from e
    return normalizer_from(teacher.saved.read("training_state.pt")["states"])


def normalizer_from(state: dict[str, torch.Tensor]) -> Normalizer:
    states = Normalizer(state["mask"])
    states.load_state_dict(state)
    return states
