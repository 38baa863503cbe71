"""Who acts while a checkpoint is measured. Everybody meets the same scenes: episode i of a seed is one scene."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from f1_vla.config import F1Config
from rl.config import ActingPolicy, Config
from rl.training import cli
from rl.training.collector import ActionSource, EpisodeCollector, RandomActions
from rl.training.evaluation.loading import LoadedRun, action_mask, check_same_pictures, check_same_tokens, load_run
from rl.training.explorer_acting import ExplorerActions
from rl.training.parallel_utils import ParallelContext
from rl.training.teacher_source import check_world
from rl.types import EpisodeRecord

STUDENT_FLAG, TEACHER_FLAG = "--student_checkpoint", "--teacher_checkpoint"


class ZeroActions:
    """The arm keeps its first pose."""

    def __init__(self, num_envs: int, action_dim: int) -> None:
        self.actions = np.zeros((num_envs, action_dim), np.float32)

    def __call__(self, observations: dict[str, npt.NDArray[Any]], episode: int, step: int) -> npt.NDArray[np.float32]:
        return self.actions


def load_explorer(run: LoadedRun, seed: int, ctx: ParallelContext) -> ActionSource:
    """The explorer of a student checkpoint; its draws are a function of seed and episode. Raises ValueError when the
    checkpoint has none."""
    if run.explorer is None:
        raise ValueError(
            f"--policy explorer: {run.saved.path} is of phase {run.phase} and has no explorer; name one with "
            "--student_checkpoint, or take --policy random"
        )
    return ExplorerActions(run.explorer, run.states, run.cfg.environment.instruction, seed, 0, 1, ctx.autocast)


def find_actor(args: cli.Args, run: LoadedRun, device: torch.device) -> LoadedRun:
    """The run whose explorer acts: of --student_checkpoint, else the measured one itself. Raises ValueError when it
    would see other pictures than the measured run, or act in another world."""
    if args.student is None:
        return run
    actor = load_run(args.student, STUDENT_FLAG, args, device)
    check_same_pictures(actor, run, STUDENT_FLAG)
    check_world(actor.cfg, run.cfg, actor.saved, STUDENT_FLAG)
    return actor


def find_other_model(args: cli.Args, run: LoadedRun, device: torch.device) -> LoadedRun | None:
    """The run of --teacher_checkpoint, if one is given. Raises ValueError when its losses cannot be compared with those
    of the measured run: other pictures, another world, other tokens."""
    if args.teacher is None:
        return None
    other = load_run(args.teacher, TEACHER_FLAG, args, device)
    check_same_pictures(other, run, TEACHER_FLAG)
    check_world(other.cfg, run.cfg, other.saved, TEACHER_FLAG)
    check_same_tokens(other, run, TEACHER_FLAG)
    return other


def chosen_policy(cfg: Config, actor: LoadedRun) -> ActingPolicy:
    """`evaluation.policy`; not given: the explorer where there is one, else random."""
    if cfg.evaluation.policy is not None:
        return cfg.evaluation.policy
    return ActingPolicy.random if actor.explorer is None else ActingPolicy.explorer


def action_source(kind: ActingPolicy, actor: LoadedRun, seed: int, ctx: ParallelContext) -> ActionSource:
    mask = action_mask(actor.cfg, actor.arch)
    if kind is ActingPolicy.random:
        return RandomActions(seed, 0, mask, 1)
    if kind is ActingPolicy.zero:
        return ZeroActions(1, len(mask))
    return load_explorer(actor, seed, ctx)


def held_out_scenes(cfg: Config, arch: F1Config, ctx: ParallelContext) -> EpisodeCollector:
    """One environment whose episodes each have a scene of their own that no training uses."""
    cfg.environment.scene_reset_interval = 1
    cfg.training.num_envs = 1
    device = "cpu" if ctx.device.type == "cpu" else f"cuda:{ctx.device.index or 0}"
    return EpisodeCollector(
        cfg, "student", 0, device, arch.n_obs_img_steps, arch.obs_img_stride, cfg.evaluation.seed, scene_facts=True
    )


def play(scenes: EpisodeCollector, act: ActionSource, episodes: int) -> list[EpisodeRecord]:
    """Episodes 0 .. episodes - 1 of the seed, whoever played before."""
    scenes.rebuild(0)
    return scenes.collect_steps(episodes * scenes.steps_per_episode, act)


def per_episode_file(json_file: Path) -> Path:
    """Where the numbers of single episodes go: numbers.json -> numbers.jsonl."""
    return json_file.with_suffix(".jsonl")
