"""What a world model makes of every frame of held-out episodes, in the wrist view.

Letters: E episodes, T steps, F = T + 1 frames, L tokens, D width.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F

from rl.data.episode_buffer import EpisodeBuffer
from rl.training.evaluation.loading import LoadedRun
from rl.training.parallel_utils import ParallelContext
from rl.training.reward_model import RewardModel
from rl.training.world_model_data import WorldModelData
from rl.types import EpisodeRecord

Array = npt.NDArray[np.float32]
POOLED = 4  # side to which the latents of a frame are averaged for probing


@dataclass
class FrameScores:
    nll: Array  # (E, T) of the true next frame, nats a token, scales weigh the same
    uncertainty: dict[str, Array]  # entropy and, with ensemble heads, disagreement: (E, T), nats
    divergence: Array  # (E, T + 1) of the memory states under both views
    memory: Array  # (E, T, D) before each step
    observation: Array  # (E, T, D') what the current frame says by itself: averaged latents and the robot's state
    ids: npt.NDArray[np.int16]  # (E, T + 1, L)

    def means(self) -> list[dict[str, float]]:
        """By episode."""
        columns = {"nll": self.nll, "divergence": self.divergence, **self.uncertainty}
        return [{f"frame/{k}": float(v[e].mean()) for k, v in columns.items()} for e in range(len(self.nll))]


def score_frames(run: LoadedRun, records: list[EpisodeRecord], ctx: ParallelContext) -> FrameScores:
    """Scores of episodes of equal length under the world model of `run`."""
    data = WorldModelData(run.policy, run.states, run.cfg.environment.instruction, cache_vision=True)
    buffer = EpisodeBuffer(len(records), run.arch.n_obs_img_steps, run.arch.obs_img_stride)
    observation = []
    for i, record in enumerate(records):
        episode = data.encode(record, i)
        buffer.add(episode)
        latents = F.adaptive_avg_pool2d(episode.latents_FCPP.float(), POOLED).flatten(1).numpy()
        observation.append(np.concatenate([latents, episode.states_FS.numpy()], 1)[:-1])
    scores = RewardModel(run.policy, data, ctx.autocast).score(buffer, list(range(len(records))))
    return FrameScores(
        scores.nll.numpy(), {k: v.numpy() for k, v in scores.uncertainty.items()}, scores.divergence.numpy(),
        scores.memory.flatten(2).numpy(), np.stack(observation),
        np.stack([e.ids_FL.numpy() for e in buffer.episodes]),
    )  # fmt: skip
