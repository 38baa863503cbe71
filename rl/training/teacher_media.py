"""Pictures and videos of a phase with a world model: greedy predictions of the newest episode."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from f1_vla.policy import F1Policy
from f1_vla.rollout import Decoding, Sampling
from rl.config import Config
from rl.data.episode_buffer import EpisodeBuffer, WindowIndex
from rl.training import media
from rl.training.parallel_utils import ParallelContext
from rl.training.world_model_data import WorldModelData
from rl.training.world_model_metrics import as_uint8
from rl.types import EpisodeRecord


class Shown(Protocol):
    """What pictures need of a phase."""

    cfg: Config
    ctx: ParallelContext
    units_per_iteration: int

    @property
    def policy(self) -> F1Policy: ...
    @property
    def data(self) -> WorldModelData: ...
    @property
    def buffer(self) -> EpisodeBuffer: ...
    @property
    def head_visible(self) -> bool:
        """False: predictions are made in the wrist view."""
        ...


def due(step: int, units: int, every: int, last: bool) -> bool:
    """A multiple of `every` was reached in this iteration, or it is the last; `every` 0 means never."""
    return every > 0 and (last or step // every > (step - units) // every)


@torch.no_grad()
def predict(phase: Shown, episode: int) -> Tensor:
    """Greedy next-frame predictions of a whole episode in the buffer, (T, S, S, 3) uint8; row t predicts frame
    t + stride. Memory states are the stored ones."""
    length = phase.cfg.training.steps_per_episode - phase.buffer.stride + 1
    rows = [phase.buffer.gather(WindowIndex([episode], [t], 1, 0)) for t in range(length)]
    windows = {k: torch.cat([r[k] for r in rows]) for k in rows[0]}
    batch = phase.data.batch(windows, torch.full((length,), phase.head_visible))
    h = windows["memory"].permute(1, 0, 2).contiguous().to(phase.ctx.device)
    phase.policy.eval()
    with phase.ctx.autocast():
        out = phase.policy(batch, mode="predict_images", initial_memory_state=h, sampling=Sampling(Decoding.greedy))
    return as_uint8(out["images"])


def write(phase: Shown, run_dir: Path, step: int, last: bool, record: EpisodeRecord, episode: int) -> None:
    """Rank 0. Writes samples/episode_{n}.png and videos/episode_{n}.mp4 when they are due, and thins old ones."""
    t, units = phase.cfg.training, phase.units_per_iteration
    sample, video = due(step, units, t.sample_save_every, last), due(step, units, t.video_save_every, last)
    if not (sample or video):
        return
    predicted = predict(phase, episode).numpy()
    stride = phase.buffer.stride
    if sample:
        row = len(predicted) // 2
        truth, last_frame = record.wrist[row + stride], record.wrist[row]
        error = np.abs(truth.astype(np.int16) - predicted[row].astype(np.int16)).clip(0, 127).astype(np.uint8) * 2
        columns = {"Last frame": last_frame, "Ground truth": truth, "Prediction": predicted[row], "Error x2": error}
        media.sample_picture(columns, run_dir / "samples" / f"episode_{step}.png")
        media.thin(run_dir / "samples", t.keep_samples)
    if video:
        frames = [
            media.video_frame(record.head[i + stride], record.wrist[i + stride], predicted[i])
            for i in range(len(predicted))
        ]
        media.save_video(run_dir / "videos" / f"episode_{step}.mp4", frames)
        media.thin(run_dir / "videos", t.keep_videos)
