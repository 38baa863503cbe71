"""What the world model of phase 3 trains on: windows of random, past and adversarial episodes, in fixed shares.

At least half of the windows are not the current explorer's, so the world model cannot forget the rest of its world.
Among the explorer's own, a window is drawn by priority: the mean over its steps of novelty x newest loss. Novelty is
what the ensemble disagreed about when the step was played, which noise does not raise; the loss is that of the newest
training on the step, so what is mastered is left alone. One episode takes at most `max_episode_share` of them.
Importance weights undo the priorities where a number is meant to be of the explorer's episodes as such (the logged
loss); the gradients keep them.

Letters: E episodes, T steps, B windows.
"""

from collections import deque
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor

from rl.config import AdversarialReplayConfig
from rl.data.episode_buffer import EpisodeBuffer, EpisodeFeatures, WindowIndex

FLOOR = 1e-6  # of a priority: no window is out of reach


class Source(StrEnum):
    random = "random"
    past = "past"
    adversarial = "adversarial"


@dataclass
class MixedWindows(WindowIndex):
    """Windows with where they come from; importance (B,): uniform over drawn probability, 1 where that was uniform."""

    source: list[Source] = field(default_factory=list)
    importance: list[float] = field(default_factory=list)


class AdversarialReplay:
    """Three rings of episodes and the mixture drawn from them; one of each process."""

    def __init__(self, cfg: AdversarialReplayConfig, processes: int, num_obs: int, stride: int) -> None:
        """The configured numbers of episodes are shared by `processes`."""
        self.cfg = cfg
        kept = {
            Source.random: cfg.random_episodes, Source.past: cfg.past_episodes,
            Source.adversarial: cfg.adversarial_episodes,
        }  # fmt: skip
        capacity = {s: max(1, n // processes) for s, n in kept.items()}
        self.parts: dict[Source, deque[EpisodeFeatures]] = {s: deque(maxlen=n) for s, n in capacity.items()}
        self.novelty: deque[Tensor] = deque(maxlen=capacity[Source.adversarial])  # (T,) of each adversarial episode
        self.loss: deque[Tensor] = deque(maxlen=capacity[Source.adversarial])  # (T,), the newest
        self.buffer = EpisodeBuffer(sum(capacity.values()), num_obs, stride)  # all episodes: random, past, adversarial
        rest = 1.0 - cfg.random_share - cfg.past_share
        self.shares = {Source.random: cfg.random_share, Source.past: cfg.past_share, Source.adversarial: rest}

    def add(self, source: Source, episode: EpisodeFeatures, novelty_T: Tensor, loss_T: Tensor) -> None:
        """The scores matter for adversarial episodes only."""
        self.parts[source].append(episode)
        if source is Source.adversarial:
            self.novelty.append(novelty_T.float().clone())
            self.loss.append(loss_T.float().clone())
        self._join()

    def _join(self) -> None:
        self.buffer.episodes.clear()
        for part in self.parts.values():
            self.buffer.episodes.extend(part)

    def first(self, source: Source) -> int:
        """Index in `buffer` of the first episode of a source."""
        before = list(Source)[: list(Source).index(source)]
        return sum(len(self.parts[s]) for s in before)

    # --- sampling --------------------------------------------------------------------------------------------------

    def sample(self, batch: int, length: int, burn_in: int, generator: torch.Generator) -> MixedWindows:
        """Windows whose `length` trained steps lie inside an episode, indexed into `buffer`.

        Every batch has each source's share up to rounding; the share of a source without episodes goes to the others.
        Raises ValueError when there is no episode at all.
        """
        sources = self._sources(batch, generator)
        drawn: dict[Source, tuple[list[int], list[int], list[float]]] = {}
        for source in Source:
            count = sources.count(source)
            if count:
                prioritised = source is Source.adversarial
                drawn[source] = (self._by_priority if prioritised else self._uniform)(source, count, length, generator)
        picks = {s: iter(zip(*columns, strict=True)) for s, columns in drawn.items()}
        rows = [next(picks[s]) for s in sources]
        episodes, starts, weights = (list(x) for x in zip(*rows, strict=True))
        return MixedWindows(episodes, [s - burn_in for s in starts], length + burn_in, burn_in, sources, weights)

    def _sources(self, batch: int, generator: torch.Generator) -> list[Source]:
        """Systematic sampling: B equally spaced points from one random offset, over the shares on a line."""
        present = {s: share for s, share in self.shares.items() if self.parts[s] and share > 0}
        if not present:
            raise ValueError("the replay is empty; collect an episode before training on windows")
        edges = torch.tensor(list(present.values()), dtype=torch.float64).cumsum(0)
        points = (torch.arange(batch) + torch.rand(1, generator=generator, dtype=torch.float64)) / batch * edges[-1]
        names = list(present)
        return [names[min(int(i), len(names) - 1)] for i in torch.searchsorted(edges, points, right=True)]

    def _uniform(
        self, source: Source, count: int, length: int, generator: torch.Generator
    ) -> tuple[list[int], list[int], list[float]]:
        first, part = self.first(source), self.parts[source]
        episodes = (first + torch.randint(len(part), (count,), generator=generator)).tolist()
        starts = [
            int(torch.randint(self.buffer.last_start(e, length) + 1, (1,), generator=generator)) for e in episodes
        ]
        return episodes, starts, [1.0] * count

    def _by_priority(
        self, source: Source, count: int, length: int, generator: torch.Generator
    ) -> tuple[list[int], list[int], list[float]]:
        first = self.first(source)
        tables = [self._window_weights(e, length) for e in range(len(self.novelty))]
        shares = capped_shares(torch.stack([t.sum() for t in tables]), self.cfg.max_episode_share)
        probability = torch.cat([t / t.sum() * p for t, p in zip(tables, shares, strict=True)])
        uniform = torch.cat([torch.full_like(t, 1 / (len(t) * len(tables))) for t in tables])
        flat = torch.multinomial(probability, count, replacement=True, generator=generator)
        sizes = torch.tensor([len(t) for t in tables])
        ends = sizes.cumsum(0)
        episodes = torch.searchsorted(ends, flat, right=True)
        starts = flat - (ends - sizes)[episodes]
        weights = (uniform / probability)[flat]
        return (first + episodes).tolist(), starts.tolist(), weights.tolist()

    def _window_weights(self, episode: int, length: int) -> Tensor:
        """Unnormalised probability of each start of a window in an adversarial episode, float64."""
        last = self.buffer.last_start(self.first(Source.adversarial) + episode, length)
        priority = (self.novelty[episode] * self.loss[episode]).double()[: last + length]
        mean = priority.unfold(0, length, 1).mean(-1)
        return (mean + FLOOR) ** self.cfg.priority_exponent

    # --- after an update -------------------------------------------------------------------------------------------

    def record(self, where: WindowIndex, loss_BT: Tensor) -> None:
        """Newest loss of the trained steps (without burn-in) of windows that were just trained on."""
        first = self.first(Source.adversarial)
        for b, (e, s) in enumerate(zip(where.episode, where.start, strict=True)):
            if e >= first:
                begin = s + where.burn_in
                self.loss[e - first][begin : begin + loss_BT.shape[1]] = loss_BT[b].float().cpu()

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "parts": {s.value: [e.to_dict() for e in part] for s, part in self.parts.items()},
            "novelty": list(self.novelty), "loss": list(self.loss),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for s, part in self.parts.items():
            part.clear()
            part.extend(EpisodeFeatures(**e) for e in state["parts"][s.value])
        self.novelty.clear()
        self.novelty.extend(state["novelty"])
        self.loss.clear()
        self.loss.extend(state["loss"])
        self._join()


def capped_shares(mass_E: Tensor, cap: float) -> Tensor:
    """Shares proportional to mass, none above `cap`: what is cut goes to the others in proportion to their mass.

    Equal shares where even those exceed the cap (fewer than 1 / cap episodes).
    """
    n = len(mass_E)
    if n * cap <= 1:
        return torch.full_like(mass_E, 1 / n)
    shares = mass_E / mass_E.sum()
    full = torch.zeros(n, dtype=torch.bool)
    while (over := (shares > cap * (1 + 1e-12)) & ~full).any():
        full |= over
        rest = torch.where(full, torch.zeros_like(mass_E), mass_E)
        shares = torch.where(full, torch.full_like(mass_E, cap), rest / rest.sum() * (1 - cap * int(full.sum())))
    return shares
