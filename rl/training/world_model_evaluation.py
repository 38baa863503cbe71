"""How good is the world model on scenes it has never seen? Baselines and ablations on the same steps.

Per episode (the unit of the intervals): NLL and accuracy of the teacher-forced tokens, accuracy of the generated ones,
PSNR of decoded predictions against the tokenizer's reconstruction of the true next frame. Rows:
  true        memory carried, true actions           shuffled    the action of the step taken from another episode
  no_memory   memory zeroed before every step        copy        last frame instead of a prediction
Letters: E episodes, T steps, M tokens, N steps of one episode.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from f1_vla.batch import F1Batch
from f1_vla.policy import F1Policy
from f1_vla.rollout import Decoding, Sampling
from rl.data.episode_buffer import EpisodeBuffer, WindowIndex
from rl.data.statistics import Interval, bootstrap_mean
from rl.training.parallel_utils import ParallelContext
from rl.training.world_model_data import WorldModelData
from rl.training.world_model_metrics import psnr_per_picture
from rl.types import EpisodeRecord

CHUNK = 8  # episodes evaluated together


@dataclass
class EpisodeNumbers:
    """Measures of one held-out episode, `name -> mean over its steps`."""

    index: int
    values: dict[str, float] = field(default_factory=dict)


class WorldModelEvaluator:
    def __init__(self, policy: F1Policy, data: WorldModelData, ctx: ParallelContext, seed: int) -> None:
        self.policy, self.data, self.ctx = policy.eval(), data, ctx
        self.generator = torch.Generator().manual_seed(seed)
        sizes = [p * p for p in policy.cfg.tokenizer.scales]
        self.sizes = sizes[: policy.cfg.world_model.num_resolutions]

    @torch.no_grad()
    def evaluate(self, records: list[EpisodeRecord]) -> list[EpisodeNumbers]:
        """Numbers of every episode. At least two are needed, or there would be nothing to shuffle with."""
        if len(records) < 2:
            raise ValueError(f"evaluation of {len(records)} episode: ask for at least 2 (--episodes)")
        result: list[EpisodeNumbers] = []
        for first in range(0, len(records), CHUNK):
            start = min(first, len(records) - 2)  # a last episode alone takes its neighbour along, to be shuffled with
            result += self._evaluate_chunk(records[start : first + CHUNK], start)[first - start :]
        return result

    def _evaluate_chunk(self, records: list[EpisodeRecord], first: int) -> list[EpisodeNumbers]:
        cfg, E = self.policy.cfg, len(records)
        buffer = EpisodeBuffer(E, cfg.n_obs_img_steps, cfg.obs_img_stride)
        for i, record in enumerate(records):
            buffer.add(self.data.encode(record, first + i))
        steps = records[0].actions.shape[0] - cfg.obs_img_stride + 1
        windows = buffer.gather(WindowIndex(list(range(E)), [0] * E, steps, 0))
        batch = self.data.batch(windows, torch.ones(E, dtype=torch.bool))
        h = self.policy.initial_memory_state(E)
        true = self._forced(batch, h)
        shuffled = self._forced(_with_other_actions(batch, self.generator), h, states=true["memory_states"])
        forgetful = self._forced(_always_reset(batch), h)
        numbers = [EpisodeNumbers(first + i) for i in range(E)]
        for name, out in [("true", true), ("shuffled", shuffled), ("no_memory", forgetful)]:
            self._add_forced(numbers, name, out)
        targets = windows["target_ids"].to(self.policy.device)
        last = windows["history_ids"][:, :, -1].to(self.policy.device)
        self._add_accuracy(numbers, "copy", last == targets)
        self._add_generated(numbers, batch, true["memory_states"], targets, last, records)
        return numbers

    def _forced(self, batch: F1Batch, h: Tensor, states: Tensor | None = None) -> dict[str, Any]:
        """Teacher-forced pass; with `states` (E, T, layers, hidden) every step reads the given memory state."""
        with self.ctx.autocast():
            if states is None:
                return self.policy(batch, mode="world_model_window", initial_memory_state=h)
            flat = flatten_steps(batch)
            out = self.policy(flat, mode="world_model_window", initial_memory_state=flat_states(states))
        E, T = batch.size, batch.steps
        return {"nll": out["nll"].view(E, T, -1), "correct": out["correct"].view(E, T, -1)}

    def _add_forced(self, numbers: list[EpisodeNumbers], row: str, out: dict[str, Any]) -> None:
        for e, n in enumerate(numbers):
            n.values[f"{row}/nll"] = float(out["nll"][e].mean())
            for k, part in enumerate(out["nll"][e].split(self.sizes, -1), 1):
                n.values[f"{row}/nll_scale_{k}"] = float(part.mean())
        self._add_accuracy(numbers, row, out["correct"])

    def _add_accuracy(self, numbers: list[EpisodeNumbers], row: str, correct_ETM: Tensor) -> None:
        for e, n in enumerate(numbers):
            n.values[f"{row}/accuracy"] = float(correct_ETM[e].float().mean())
            for k, part in enumerate(correct_ETM[e, :, : sum(self.sizes)].float().split(self.sizes, -1), 1):
                n.values[f"{row}/accuracy_scale_{k}"] = float(part.mean())

    def _add_generated(
        self, numbers: list[EpisodeNumbers], batch: F1Batch, states: Tensor, targets: Tensor, last: Tensor,
        records: list[EpisodeRecord],
    ) -> None:  # fmt: skip
        """Greedy and soft roll-outs, decoded, beside the copied frame. PSNR per picture, then mean over the episode."""
        tok, stride = self.policy.tokenizer, self.policy.cfg.obs_img_stride
        flat = flatten_steps(batch)
        with self.ctx.autocast():
            runs = {
                d: self.policy(
                    flat, mode="predict_images", initial_memory_state=flat_states(states), sampling=Sampling(d)
                )
                for d in (Decoding.greedy, Decoding.soft)
            }
        truth = torch.cat([tok.decode(tok.ids_to_fhat(x)) for x in targets.flatten(0, 1).split(64)])
        copied = torch.cat([tok.decode(tok.ids_to_fhat(x)) for x in last.flatten(0, 1).split(64)])
        frames = torch.from_numpy(np.stack([r.wrist for r in records])).to(self.policy.device)
        raw = frames.float().permute(0, 1, 4, 2, 3) / 127.5 - 1
        real = raw[:, stride:].flatten(0, 1)
        pictures = {"greedy": runs[Decoding.greedy]["images"], "soft": runs[Decoding.soft]["images"], "copy": copied}
        latent = runs[Decoding.greedy]["predicted_latent"]
        if latent is not None:
            pictures["latent"] = torch.cat([tok.decode(z.float()) for z in latent.split(64)])
        E = len(numbers)
        for name, picture in pictures.items():
            for against, reference in [("psnr", truth), ("psnr_camera", real)]:
                for n, value in zip(numbers, psnr_per_picture(picture, reference).view(E, -1).mean(1), strict=True):
                    n.values[f"{name}/{against}"] = float(value)
        raw_copy = psnr_per_picture(raw[:, :-stride].flatten(0, 1), truth).view(E, -1).mean(1)
        ceiling = psnr_per_picture(truth, real).view(E, -1).mean(1)
        for e, n in enumerate(numbers):
            n.values["copy_camera/psnr"] = float(raw_copy[e])
            n.values["tokenizer/psnr_camera"] = float(ceiling[e])
        ids = runs[Decoding.greedy]["ids"].view(*targets.shape[:2], -1)
        self._add_accuracy(numbers, "generated", ids == targets[..., : ids.shape[-1]])


def flatten_steps(batch: F1Batch) -> F1Batch:
    """(E, T, ...) -> (E * T, 1, ...), every step on its own and no reset."""
    T = batch.steps
    steps = [batch.window(t, t + 1) for t in range(T)]
    merged = {}
    for name, value in vars(steps[0]).items():
        if isinstance(value, Tensor):
            merged[name] = torch.stack([getattr(s, name) for s in steps], 1).flatten(0, 1)
    merged["reset"] = torch.zeros_like(merged["reset"])
    return F1Batch(**merged)


def flat_states(states: Tensor) -> Tensor:
    """(E, T, layers, hidden) -> (layers, E * T, hidden)."""
    return states.flatten(0, 1).permute(1, 0, 2).contiguous()


def _always_reset(batch: F1Batch) -> F1Batch:
    changed = batch.rows(slice(None))
    changed.reset = torch.ones_like(batch.require("reset", "evaluation"))
    return changed


def _with_other_actions(batch: F1Batch, generator: torch.Generator) -> F1Batch:
    """The current action of every step from another episode (same step); histories and memory stay true."""
    E = batch.size
    shift = int(torch.randint(1, E, (1,), generator=generator))
    changed = batch.rows(slice(None))
    actions = batch.actions.clone()
    actions[:, :, -1] = batch.actions.roll(shift, 0)[:, :, -1]
    changed.actions = actions
    return changed


def summarise(numbers: list[EpisodeNumbers], samples: int, seed: int) -> dict[str, Interval]:
    """Intervals over episodes of every measure, and of the paired differences that decide."""
    table = {k: np.array([n.values[k] for n in numbers]) for k in numbers[0].values}
    pairs = {
        "greedy_minus_copy/psnr": ("greedy/psnr", "copy/psnr"),
        "soft_minus_copy/psnr": ("soft/psnr", "copy/psnr"),
        "latent_minus_copy/psnr": ("latent/psnr", "copy/psnr"),
        "greedy_minus_copy_camera/psnr": ("greedy/psnr", "copy_camera/psnr"),
        "shuffled_minus_true/nll": ("shuffled/nll", "true/nll"),
        "no_memory_minus_true/nll": ("no_memory/nll", "true/nll"),
        "generated_minus_copy/accuracy": ("generated/accuracy", "copy/accuracy"),
    }
    for name, (a, b) in pairs.items():
        if a in table:
            table[name] = table[a] - table[b]
    return {k: bootstrap_mean(v, samples, seed) for k, v in table.items()}
