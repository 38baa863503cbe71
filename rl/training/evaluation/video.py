"""Videos of measured episodes: Head | GT wrist | predicted | what the world model does not know.

Letters: T steps, M tokens, S side of a picture in px.
"""

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from f1_vla.rollout import Decoding, Sampling
from rl.data.episode_buffer import EpisodeBuffer, WindowIndex
from rl.training import media
from rl.training.evaluation.loading import LoadedRun
from rl.training.parallel_utils import ParallelContext
from rl.training.world_model_data import WorldModelData
from rl.training.world_model_evaluation import flat_states, flatten_steps
from rl.training.world_model_metrics import as_uint8
from rl.types import EpisodeRecord

BRIGHTEST = 0.99  # quantile of an episode's map that gets the brightest colour


def write_video(run: LoadedRun, record: EpisodeRecord, ctx: ParallelContext, path: Path) -> None:
    """One episode as H.264. Predictions are greedy, one step ahead, in the wrist view."""
    predicted, kind, maps = predict(run, record, ctx)
    stride = run.arch.obs_img_stride
    label = f"{kind.capitalize()} 0 .. {np.quantile(maps, BRIGHTEST):.2g} nats"
    frames = [
        media.labelled_row(
            {
                "Head": record.head[t + stride], "GT wrist": record.wrist[t + stride], "Predicted": predicted[t],
                label: heat,
            }
        )
        for t, heat in enumerate(colours(maps))
    ]  # fmt: skip
    media.save_video(path, frames)


@torch.no_grad()
def predict(
    run: LoadedRun, record: EpisodeRecord, ctx: ParallelContext
) -> tuple[npt.NDArray[np.uint8], str, npt.NDArray[np.float32]]:
    """Greedy predictions (T, S, S, 3), the kind of uncertainty there is, and its map (T, S, S) in nats."""
    data = WorldModelData(run.policy, run.states, run.cfg.environment.instruction, cache_vision=True)
    buffer = EpisodeBuffer(1, run.arch.n_obs_img_steps, run.arch.obs_img_stride)
    buffer.add(data.encode(record, 0))
    steps = len(record.actions) - run.arch.obs_img_stride + 1
    batch = data.batch(buffer.gather(WindowIndex([0], [0], steps, 0)), torch.zeros(1, dtype=torch.bool))
    with ctx.autocast():
        out = run.policy(
            batch, mode="world_model_window", initial_memory_state=run.policy.initial_memory_state(1), uncertainty=True
        )
        pictures = run.policy(
            flatten_steps(batch), mode="predict_images", initial_memory_state=flat_states(out["memory_states"]),
            sampling=Sampling(Decoding.greedy),
        )["images"]  # fmt: skip
    kind = "disagreement" if "disagreement" in out else "entropy"
    scales = run.arch.tokenizer.scales[: run.arch.world_model.num_resolutions]
    return as_uint8(pictures).numpy(), kind, token_map(out[kind][0].float().cpu(), scales, pictures.shape[-1]).numpy()


def token_map(tokens_TM: Tensor, scales: list[int], size: int) -> Tensor:
    """Numbers of tokens as pictures (T, S, S): each scale enlarged, mean over scales."""
    parts = tokens_TM.split([p * p for p in scales], 1)
    squares = [x.unflatten(1, (1, p, p)) for x, p in zip(parts, scales, strict=True)]
    return torch.stack([F.interpolate(x, size=(size, size), mode="nearest")[:, 0] for x in squares]).mean(0)


def colours(maps_TSS: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """(T, S, S, 3) uint8, black to yellow, on one scale for all T."""
    top = max(float(np.quantile(maps_TSS, BRIGHTEST)), 1e-12)
    grey = np.rint(np.clip(maps_TSS / top, 0, 1) * 255).astype(np.uint8)
    return np.stack([cv2.applyColorMap(g, cv2.COLORMAP_INFERNO)[..., ::-1] for g in grey])
