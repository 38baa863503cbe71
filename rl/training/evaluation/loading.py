"""Checkpoints of any phase, loaded to be measured."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from f1_vla.config import F1Config
from f1_vla.lora import Role
from f1_vla.policy import F1Policy
from rl import config as rl_config
from rl.models.explorer import Explorer
from rl.normalizers import Normalizer
from rl.sims import simulator_class
from rl.training import cli
from rl.training.checkpoint import SavedCheckpoint, open_checkpoint
from rl.training.explorer_setup import make_explorer
from rl.training.model_setup import inject_adapter, uses_lora
from rl.training.released_base import load_model
from rl.training.teacher_source import frozen_policy, normalizer_from


@dataclass
class LoadedRun:
    """A checkpoint with what it was trained with; `explorer` is None for a teacher."""

    saved: SavedCheckpoint
    phase: str
    cfg: rl_config.Config
    arch: F1Config
    policy: F1Policy
    states: Normalizer
    explorer: Explorer | None


def weights_of(saved: SavedCheckpoint) -> dict[str, str]:
    """Directory, from the working directory where it lies below, and hash of the weights: plain data."""
    entry = next(f for f in saved.manifest["files"] if f["name"] == "model.pt")
    path, here = saved.path.resolve(), Path.cwd()
    return {"path": str(path.relative_to(here) if path.is_relative_to(here) else path), "sha256": entry["sha256"]}


def load_run(path: Path | None, flag: str, args: cli.Args, device: torch.device, phase: str | None = None) -> LoadedRun:
    """The newest valid checkpoint at `path`, every entry of its model. Raises ValueError naming `flag`: none given,
    none there, damaged, not of `phase`."""
    if path is None:
        raise ValueError(f"{flag} DIR is missing: a checkpoint-N or a run directory")
    try:
        saved = open_checkpoint(path)
    except ValueError as e:
        raise ValueError(f"{flag}: {e}") from e
    found = phase_of(saved, flag)
    if phase not in (None, found):
        raise ValueError(f"--phase {phase}: {saved.path} is a checkpoint of phase {found}")
    cfg, arch = run_config(args, saved.path.parent)
    policy = frozen_policy(cfg, arch, device)
    explorer = None
    if found != "teacher":
        explorer = make_explorer(cfg.student, policy, action_mask(cfg, arch))
        if uses_lora(cfg):
            inject_adapter(policy, cfg, Role.explorer)
        explorer.to(device).requires_grad_(False).eval()
    try:
        load_model(policy if explorer is None else explorer, saved.read("model.pt"), saved.base, saved.path)
    except ValueError as e:
        raise ValueError(f"{flag}: {e}") from e
    states = normalizer_from(saved.read("training_state.pt")["states"])
    return LoadedRun(saved, found, cfg, arch, policy, states, explorer)


def check_same_pictures(other: LoadedRun, run: LoadedRun, flag: str) -> None:
    """Raises ValueError naming `flag` and the key when `other` sees other pictures than `run`, or another history."""
    keys = [
        ("environment.vlm_size", other.cfg.environment.vlm_size, run.cfg.environment.vlm_size),
        ("environment.wm_size", other.cfg.environment.wm_size, run.cfg.environment.wm_size),
        ("arch.n_obs_img_steps", other.arch.n_obs_img_steps, run.arch.n_obs_img_steps),
        ("arch.obs_img_stride", other.arch.obs_img_stride, run.arch.obs_img_stride),
    ]
    _check_equal(keys, other, flag)


def check_same_tokens(other: LoadedRun, run: LoadedRun, flag: str) -> None:
    """Raises ValueError naming `flag` unless both world models predict the same tokens: only then can their losses be
    compared."""
    theirs, ours = other.arch, run.arch
    keys = [
        ("arch.tokenizer.scales", theirs.tokenizer.scales, ours.tokenizer.scales),
        ("arch.tokenizer.vocab_size", theirs.tokenizer.vocab_size, ours.tokenizer.vocab_size),
        ("arch.world_model.num_resolutions", theirs.world_model.num_resolutions, ours.world_model.num_resolutions),
    ]
    _check_equal(keys, other, flag)
    first, second = (r.policy.tokenizer.state_dict() for r in (other, run))
    if first.keys() != second.keys() or not all(torch.equal(first[k], second[k]) for k in first):
        raise ValueError(
            f"{flag} {other.saved.path}: its tokenizer has other weights than that of {run.saved.path}, so their "
            "losses are of other tokens; compare runs of one model.tokenizer_path"
        )


def _check_equal(keys: list[tuple[str, Any, Any]], other: LoadedRun, flag: str) -> None:
    """keys: name, value of the other run, value of the measured one."""
    for name, theirs, ours in keys:
        if theirs != ours:
            raise ValueError(f"{flag} {other.saved.path}: {name} is {theirs} there and {ours} here")


def phase_of(saved: SavedCheckpoint, flag: str) -> str:
    """teacher, student or adversarial, by what the checkpoint holds. Raises ValueError for anything else."""
    training = saved.read("training_state.pt", "meta")
    if "states" not in training:
        raise ValueError(f"{flag} {saved.path} is of none of the three phases; play measures those of arm and rl")
    for phase, mark in [("adversarial", "adversarial"), ("student", "explorer")]:
        if mark in training:
            return phase
    return "teacher"


def action_mask(cfg: rl_config.Config, arch: F1Config) -> npt.NDArray[np.bool_]:
    """(A,) True where a padded dimension is a real one, known before the simulator starts."""
    return np.arange(arch.max_action_dim) < simulator_class(cfg.environment.simulator).action_dim


def run_config(args: cli.Args, run: Path) -> tuple[rl_config.Config, F1Config]:
    """The configuration and architecture the run was trained with, under what the command line says; a file of
    --rl_config says how to measure (its block `evaluation`), not what was trained."""
    cfg, arch = args.config, args.arch
    if (run / "config.yaml").is_file():
        cfg = rl_config.load_saved(run / "config.yaml", rl_config.POLICY_BLOCKS, args.overrides)
        if args.config_file is not None:
            cfg = replace(cfg, evaluation=args.config.evaluation)
    if (run / "model_config.yaml").is_file():
        given = [o for o in args.overrides if o.startswith("model.config_file=")]
        given += [f"arch.{o}" for o in args.arch_overrides]
        if given:
            what = given[0].replace('"', "")
            raise ValueError(f"{what}: the architecture of a checkpoint is that of {run}/model_config.yaml; drop it")
        arch = rl_config.load_model(str(run / "model_config.yaml"))
    return cfg, arch
