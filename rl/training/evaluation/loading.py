"""Checkpoints of any phase, loaded to be measured."""

from dataclasses import dataclass
from pathlib import Path

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
    """Directory and hash of the weights: plain data."""
    entry = next(f for f in saved.manifest["files"] if f["name"] == "model.pt")
    return {"path": str(saved.path), "sha256": entry["sha256"]}


def load_run(path: Path | None, flag: str, args: cli.Args, device: torch.device, phase: str | None = None) -> LoadedRun:
    """The newest valid checkpoint at `path`, every entry of its model. Raises ValueError naming `flag`: none given,
    none there, damaged, not of `phase`."""
    if path is None:
        raise ValueError(f"{flag} DIR is missing: a checkpoint-N or a run directory")
    saved = open_checkpoint(path)
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
    load_model(policy if explorer is None else explorer, saved.read("model.pt"), saved.base, saved.path)
    states = normalizer_from(saved.read("training_state.pt")["states"])
    return LoadedRun(saved, found, cfg, arch, policy, states, explorer)


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
    """The configuration and architecture the run was trained with, under what the command line says."""
    cfg, arch = args.config, args.arch
    if (run / "config.yaml").is_file():
        cfg = rl_config.load_saved(run / "config.yaml", rl_config.POLICY_BLOCKS, args.overrides)
    if (run / "model_config.yaml").is_file():
        given = [o for o in args.overrides if o.startswith("model.config_file=")]
        given += [f"arch.{o}" for o in args.arch_overrides]
        if given:
            what = given[0].replace('"', "")
            raise ValueError(f"{what}: the architecture of a checkpoint is that of {run}/model_config.yaml; drop it")
        arch = rl_config.load_model(str(run / "model_config.yaml"))
    return cfg, arch
