"""All measures of one checkpoint on held-out scenes."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from rl import config as rl_config
from rl.config import ActingPolicy
from rl.data.statistics import Comparison, Interval, bootstrap_mean, compare_paired
from rl.training.collector import RandomActions
from rl.training.evaluation import explored, robustness
from rl.training.evaluation.acting import action_source, held_out_scenes, play
from rl.training.evaluation.frames import FrameScores, score_frames
from rl.training.evaluation.loading import LoadedRun, action_mask
from rl.training.evaluation.video import write_video
from rl.training.parallel_utils import ParallelContext
from rl.training.world_model_data import WorldModelData
from rl.training.world_model_evaluation import WorldModelEvaluator, summarise
from rl.types import EpisodeRecord

BASELINE = ActingPolicy.random


@dataclass
class Measured:
    """One policy on the scenes."""

    records: list[EpisodeRecord]
    frames: FrameScores
    rows: list[dict[str, float]]  # by episode
    measures: dict[str, Interval]
    totals: dict[str, int]  # over all episodes together: no interval


@dataclass
class Result:
    policies: dict[ActingPolicy, Measured]  # the acting one first, then the baseline
    against_baseline: dict[str, Comparison] = field(default_factory=dict)
    against_teacher: dict[str, dict[str, Comparison]] = field(default_factory=dict)  # by whose episodes
    notes: list[str] = field(default_factory=list)


class Measurement:
    """Plays the same scenes with every policy and asks the world model of `run` about them."""

    def __init__(self, run: LoadedRun, actor: LoadedRun, acting: ActingPolicy, ctx: ParallelContext) -> None:
        """Raises ValueError for what can be refused before a simulator starts."""
        self.acting = acting
        self.run, self.actor, self.ctx, self.e = run, actor, ctx, run.cfg.evaluation
        explored.check_scales(run.arch.tokenizer.scales, self.e)
        self.unfamiliar_cfgs = {
            kind: rl_config.with_overrides(
                run.cfg, [f"environment.{o}" for o in kind.split()], f"evaluation.unfamiliar: {kind}"
            )
            for kind in self.e.unfamiliar
        }
        action_source(acting, actor, self.e.seed, ctx)  # refused before a simulator starts
        self.scenes = held_out_scenes(run.cfg, run.arch, ctx)
        self.reference_RL: explored.Ids = np.zeros((0, 0), np.int16)

    def close(self) -> None:
        self.scenes.close()

    def all(self, teacher: LoadedRun | None) -> Result:
        acting = self.acting
        self.reference_RL = self._reference()
        kinds = [acting] if acting is BASELINE else [acting, BASELINE]
        result = Result({kind: self._policy(kind) for kind in kinds})
        first = result.policies[acting]
        self._world_model(first)
        if self.e.unfamiliar_episodes:
            for kind, cfg in self.unfamiliar_cfgs.items():
                scores = self._unfamiliar(cfg, acting)
                first.measures |= robustness.warns_of_unfamiliar(kind, first.frames, scores, self.e)
        if "disagreement" not in first.frames.uncertainty:
            result.notes.append("the world model has no ensemble heads: uncertainty is the entropy alone")
        if "probe/memory" not in first.measures:
            result.notes.append(
                f"memory is not probed: that needs {2 * self.e.probe_folds} episodes with objects out of view"
            )
        if acting is not BASELINE:
            result.against_baseline = self._compare(first.rows, result.policies[BASELINE].rows)
        if teacher is not None:
            for kind, measured in result.policies.items():
                theirs = score_frames(teacher, measured.records, self.ctx)
                result.against_teacher[kind.value] = robustness.compare_models(measured.frames, theirs, self.e)
        return result

    def videos(self, result: Result, directory: Path) -> list[Path]:
        """Of the first episodes of each policy."""
        paths = []
        for kind, measured in result.policies.items():
            for i, record in enumerate(measured.records[: self.e.videos]):
                paths.append(directory / f"{kind}_episode_{i}.mp4")
                write_video(self.run, record, self.ctx, paths[-1])
        return paths

    def _reference(self) -> explored.Ids:
        """Token maps of random actions in the same scenes, other actions than those of the baseline."""
        mask = action_mask(self.run.cfg, self.run.arch)
        records = play(self.scenes, RandomActions(self.e.seed + 1, 0, mask, 1), self.e.num_episodes)
        ids = np.stack([self.run.policy.encode_frames(torch.from_numpy(r.wrist)).ids.cpu().numpy() for r in records])
        return np.concatenate(self._maps(ids))

    def _maps(self, ids: explored.Ids) -> explored.Ids:
        return explored.coarse_maps(ids, self.run.arch.tokenizer.scales, self.e.novelty_scales)

    def _policy(self, kind: ActingPolicy) -> Measured:
        records = play(self.scenes, action_source(kind, self.actor, self.e.seed, self.ctx), self.e.num_episodes)
        frames = score_frames(self.run, records, self.ctx)
        maps = self._maps(frames.ids)
        seen = explored.explored(records, maps, self.reference_RL, self.e)
        if self.run.cfg.environment.domain_randomization.noisy_screen:
            seen = [a | b for a, b in zip(seen, explored.facing_screen(records), strict=True)]
        rows = [a | b for a, b in zip(seen, frames.means(), strict=True)]
        measures = self._intervals(rows) | robustness.worst_frames(frames, self.e)
        measures |= robustness.warns_of_loss(frames, self.e) | explored.probe_memory(records, frames, self.e)
        totals = {
            "wrist_voxels": explored.total_voxels(records, self.e),
            "token_maps": len(np.unique(np.concatenate(maps), axis=0)),
        }
        return Measured(records, frames, rows, measures, totals)

    def _world_model(self, measured: Measured) -> None:
        """Adds the measures of the full view, with their baselines and ablations."""
        run = self.run
        data = WorldModelData(run.policy, run.states, run.cfg.environment.instruction, cache_vision=True)
        numbers = WorldModelEvaluator(run.policy, data, self.ctx, self.e.seed).evaluate(measured.records)
        measured.measures |= summarise(numbers, self.e.bootstrap_samples, self.e.seed)
        for row, n in zip(measured.rows, numbers, strict=True):
            row |= n.values

    def _unfamiliar(self, cfg: rl_config.Config, acting: ActingPolicy) -> FrameScores:
        """Scores in scenes unlike those of training, the same policy acting."""
        scenes = held_out_scenes(cfg, self.run.arch, self.ctx)
        records = play(scenes, action_source(acting, self.actor, self.e.seed, self.ctx), self.e.unfamiliar_episodes)
        scenes.close()
        return score_frames(dataclasses.replace(self.run, cfg=cfg), records, self.ctx)

    def _intervals(self, rows: list[dict[str, float]]) -> dict[str, Interval]:
        e = self.e
        return {k: bootstrap_mean([r[k] for r in rows], e.bootstrap_samples, e.seed) for k in rows[0]}

    def _compare(self, ours: list[dict[str, float]], base: list[dict[str, float]]) -> dict[str, Comparison]:
        e = self.e
        return {
            k: compare_paired(np.array([r[k] for r in ours]), [r[k] for r in base], e.bootstrap_samples, e.seed)
            for k in base[0]
        }
