"""Bounded buffer of the last episodes as frozen per-frame features, and the BPTT windows sampled from it.

Letters: E episodes, T steps, F = T + 1 frames, B windows, L tokens, C latent channels, P latent side, A action dim,
S state dim, N n_obs_img_steps. Step t sees frames up to t, executes action t and is followed by frame t + 1.
"""

from collections import deque
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor


@dataclass
class EpisodeFeatures:
    """One episode. Images are gone: what the frozen parts make of them is stored once per frame."""

    ids_FL: Tensor  # int16 token ids of the wrist frames
    latents_FCPP: Tensor  # float16 continuous tokenizer latents of the wrist frames
    vision: Tensor  # (F, cameras, patches, width) float16 tower outputs, or (F, cameras, 3, h, w) uint8 pictures
    actions_TA: Tensor  # float32 executed actions, normalised, padded
    states_FS: Tensor  # float32 normalised states, padded
    memory_TMH: Tensor  # float16 memory state before each step, (T, num_layers, hidden)
    index: int  # global episode index

    @property
    def num_steps(self) -> int:
        return self.actions_TA.shape[0]

    def to_dict(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass
class WindowIndex:
    """Where the windows lie: window b covers steps start[b] .. start[b] + length - 1 of episode[b].

    A negative start means that the first -start steps lie before the episode; they are invalid and repeat frame 0.
    """

    episode: list[int]
    start: list[int]
    length: int
    burn_in: int  # leading steps that only refresh the memory state


class EpisodeBuffer:
    """The last `capacity` episodes; sampling is uniform over their steps and driven by the caller's generator."""

    def __init__(self, capacity: int, num_obs: int, stride: int) -> None:
        self.episodes: deque[EpisodeFeatures] = deque(maxlen=capacity)
        self.num_obs, self.stride = num_obs, stride

    def __len__(self) -> int:
        return len(self.episodes)

    def add(self, episode: EpisodeFeatures) -> None:
        self.episodes.append(episode)

    def sample(self, batch: int, length: int, burn_in: int, generator: torch.Generator) -> WindowIndex:
        """Windows whose `length` trained steps lie inside an episode; burn-in may reach before its start."""
        if not self.episodes:
            raise ValueError("the episode buffer is empty; collect an episode before training on windows")
        chosen = torch.randint(len(self.episodes), (batch,), generator=generator).tolist()
        starts = []
        for e in chosen:
            last = self.last_start(e, length)
            starts.append(int(torch.randint(last + 1, (1,), generator=generator)) - burn_in)
        return WindowIndex(chosen, starts, length + burn_in, burn_in)

    def last_start(self, episode: int, length: int) -> int:
        """Last step at which a window of `length` trained steps may begin (the target lies `stride` frames ahead)."""
        last = self.episodes[episode].num_steps - self.stride + 1 - length
        if last < 0:
            raise ValueError(
                f"episodes of {self.episodes[episode].num_steps} steps are shorter than a window of {length} steps; "
                "raise training.steps_per_episode or lower training.bptt_length"
            )
        return last

    def gather(self, where: WindowIndex) -> dict[str, Tensor]:
        """Tensors of the windows, batch first, by the names of `F1Batch`; see `window_of` for the alignment."""
        rows = [
            window_of(self.episodes[e], s, where.length, self.num_obs, self.stride)
            for e, s in zip(where.episode, where.start, strict=True)
        ]
        with torch.autocast("cpu", enabled=False):  # which refuses to stack float16 features under bfloat16
            batch = {k: torch.stack([r[k] for r in rows]) for k in rows[0]}
        batch["valid"][:, : where.burn_in] = False
        return batch

    def write_memory(self, where: WindowIndex, memory_BTMH: Tensor) -> None:
        """Stores fresh memory states (before each step) of windows that were just computed."""
        states = memory_BTMH.detach().to("cpu", torch.float16)
        for b, (e, s) in enumerate(zip(where.episode, where.start, strict=True)):
            first = max(s, 0)
            self.episodes[e].memory_TMH[first : s + where.length] = states[b, first - s :]

    def state_dict(self) -> dict[str, Any]:
        return {"episodes": [e.to_dict() for e in self.episodes]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.episodes.clear()
        for e in state["episodes"]:
            self.episodes.append(EpisodeFeatures(**e))


def window_of(ep: EpisodeFeatures, start: int, length: int, num_obs: int, stride: int) -> dict[str, Tensor]:
    """One window of consecutive steps.

    Slot i of step t holds frame t - (num_obs - 1 - i) * stride and the sum of the `stride` actions that follow it;
    the last slot's action is a_t .. a_{t+stride-1} and the target is frame t + stride. Frames before the episode repeat
    frame 0 with zero action and validity False. `reset` marks the step at which the memory starts from zeros.
    """
    steps = torch.arange(start, start + length)
    inside = (steps >= 0) & (steps + stride <= ep.num_steps)
    now = steps.clamp(0, ep.num_steps - stride)
    offsets = (torch.arange(num_obs) - (num_obs - 1)) * stride
    slots = now[:, None] + offsets  # (T, N)
    frame = slots.clamp_min(0)
    padded = torch.cat([ep.actions_TA.new_zeros(1, ep.actions_TA.shape[1]), ep.actions_TA]).cumsum(0)
    summed = padded[(slots + stride).clamp_min(0)] - padded[slots.clamp_min(0)]
    return {
        "history_ids": ep.ids_FL[frame].long(),
        "history_latents": ep.latents_FCPP[frame].float(),
        "history_mask": slots >= 0,
        "vision": ep.vision[now],
        "actions": summed,
        "state": ep.states_FS[now],
        "target_ids": ep.ids_FL[now + stride].long(),
        "target_latents": ep.latents_FCPP[now + stride].float(),
        "reset": steps == 0,
        "valid": inside,
        "memory": ep.memory_TMH[now[0]].float(),
    }
