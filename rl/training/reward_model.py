"""What a frozen world model says about whole episodes: how much the head camera would add, what it does not know.

Letters: E episodes, T steps, M memory layers, S tokens predicted, O history slots.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from f1_vla.ensemble import mean_over_scales
from f1_vla.policy import F1Policy
from rl.data.episode_buffer import EpisodeBuffer, WindowIndex
from rl.data.intrinsic import memory_divergence
from rl.training.world_model_data import WorldModelData

KINDS: tuple[str, ...] = ("entropy", "disagreement")
WINDOW, TOGETHER = 16, 8  # steps and episodes computed together: bounds the memory that logits take


@dataclass
class Scores:
    """Of E episodes, on the CPU, float32."""

    divergence: Tensor  # (E, T + 1): before each step and after the last
    uncertainty: dict[str, Tensor]  # entropy and, with ensemble heads, disagreement: (E, T), nats, mean over scales
    nll: Tensor  # (E, T) of the true next frame, nats a token, mean over scales
    memory: Tensor  # (E, T, M, hidden) states of the wrist view before each step


class RewardModel:
    """Scores episodes under `policy`, which never sees a gradient here: that of the teacher, or a copy of it."""

    def __init__(
        self, policy: F1Policy, data: WorldModelData, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    ) -> None:
        self.policy, self.data, self.autocast = policy, data, autocast
        sizes = [p * p for p in policy.cfg.tokenizer.scales]
        self.sizes = sizes[: policy.cfg.world_model.num_resolutions]

    @torch.no_grad()
    def score(self, buffer: EpisodeBuffer, episodes: list[int]) -> Scores:
        """Scores of episodes of equal length in `buffer`, actions known.

        With a stride of k the last k - 1 steps have no target: they repeat the numbers of the step before them.
        """
        groups = [episodes[i : i + TOGETHER] for i in range(0, len(episodes), TOGETHER)]
        parts = [self._score(buffer, group) for group in groups]
        return Scores(
            torch.cat([p.divergence for p in parts]),
            {k: torch.cat([p.uncertainty[k] for p in parts]) for k in parts[0].uncertainty},
            torch.cat([p.nll for p in parts]), torch.cat([p.memory for p in parts]),
        )  # fmt: skip

    def _score(self, buffer: EpisodeBuffer, episodes: list[int]) -> Scores:
        E, T = len(episodes), buffer.episodes[episodes[0]].num_steps
        steps = T - buffer.stride + 1
        windows = buffer.gather(WindowIndex(episodes, [0] * E, steps, 0))
        self.policy.eval()
        h = self.policy.initial_memory_state(E)
        wrist_out, wrist_states = self.unroll(windows, steps, h, head=False)
        _, full_states = self.unroll(windows, steps, h, head=True)
        uncertainty = {k: _extended(mean_over_scales(wrist_out[k], self.sizes), T) for k in KINDS if k in wrist_out}
        nll = _extended(mean_over_scales(wrist_out["nll"], self.sizes), T)
        divergence = _extended(memory_divergence(full_states, wrist_states), T + 1)
        return Scores(divergence, uncertainty, nll, wrist_states[:, :-1])

    @torch.no_grad()
    def unroll(self, windows: dict[str, Tensor], steps: int, h: Tensor, head: bool) -> tuple[dict[str, Tensor], Tensor]:
        """One view over all steps from the state h: outputs a token (E, steps, S), states (E, steps + 1, M, hidden).

        The full view only carries its memory; the wrist view predicts, too.
        """
        E = len(windows["reset"])
        states: list[Tensor] = []
        parts: dict[str, list[Tensor]] = {}
        for first in range(0, steps, WINDOW):
            span = {k: v[:, first : first + WINDOW] if k != "memory" else v for k, v in windows.items()}
            batch = self.data.batch(span, torch.full((E,), head))
            with self.autocast():
                if head:
                    out = self.policy(batch, mode="memory_only", initial_memory_state=h)
                else:
                    out = self.policy(batch, mode="world_model_window", initial_memory_state=h, uncertainty=True)
            h = out["memory_state"]
            states.append(out["memory_states"].float().cpu())
            for k in (*KINDS, "nll"):
                if k in out:
                    parts.setdefault(k, []).append(out[k].float().cpu())
        states.append(h.permute(1, 0, 2)[:, None].float().cpu())
        return {k: torch.cat(v, 1) for k, v in parts.items()}, torch.cat(states, 1)


def _extended(x: Tensor, length: int) -> Tensor:
    """(E, n) -> (E, length) by repeating the last column."""
    return torch.cat([x, x[:, -1:].expand(-1, length - x.shape[1])], 1)
