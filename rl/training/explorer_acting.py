"""The explorer as a source of actions: looks, remembers and draws for all environments of a process at once.

What it decides goes into the rollout PPO learns from, if one is given. Evaluation uses the same class and gives none.
Letters: E environments, T steps, N decisions of an episode, O history slots, L tokens, Q actions of a chunk, A padded
action dims.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from f1_vla.batch import F1Batch, FrameFeatures
from f1_vla.text import encode_instruction
from rl.data.rollout import RolloutStorage
from rl.models.explorer import Explorer, Prefix
from rl.normalizers import Normalizer
from rl.training.seeds import seed_for
from rl.types import EpisodeRecord

Observations = dict[str, npt.NDArray[Any]]


class Stopwatch:
    """Seconds by name; reading a number from the device waits for what was queued there."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def lap(self, name: str, since: float) -> float:
        now = time.monotonic()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - since
        return now


class ExplorerActions:
    """`ActionSource` of `EpisodeCollector`; every environment runs the same episode index.

    The draws of an episode are a function of (seed, rank, environment, episode).
    """

    def __init__(
        self, explorer: Explorer, states: Normalizer, instruction: str, seed: int, rank: int, num_envs: int,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:  # fmt: skip
        """autocast: makes the precision context of the frozen streams."""
        self.explorer, self.states, self.seed, self.rank, self.num_envs = explorer, states, seed, rank, num_envs
        self.autocast = autocast
        cfg = explorer.policy.cfg
        self.lang_tokens, self.lang_masks = encode_instruction(cfg, instruction)
        self.clock = Stopwatch()
        self.frames: list[FrameFeatures] = []  # of the running or newest episodes, E wrist frames each
        self._rollout: RolloutStorage | None = None
        self._first_row = 0  # of the rollout, of the running episodes
        self._h = torch.zeros(0)
        self._batch: F1Batch | None = None
        self._features: Tensor | None = None  # what the memory reads of the last step; None: it was no decision
        self._chunk = torch.zeros(0)
        self._generators: list[torch.Generator] = []

    def __call__(self, observations: Observations, episode: int, step: int) -> npt.NDArray[np.float32]:
        """Actions (E, A) in [-1, 1], zero on padding."""
        if step == 0:
            self._begin(episode)
        start = time.monotonic()
        with self.autocast():
            self._remember(observations)
            self._batch = self._see(observations)
            start = self.clock.lap("encode", start)
            part = step % self.explorer.execute
            if part == 0:
                prefix, self._features = self.explorer.look(self._batch, self._h)
                start = self.clock.lap("look", start)
                self._decide(prefix)
                self.clock.lap("denoise", start)
        action = self._chunk[:, part].clamp(-1, 1) * self.explorer.real_A
        return action.float().cpu().numpy()

    @contextmanager
    def filling(self, rollout: RolloutStorage) -> Iterator[None]:
        """Decisions of the episode played inside go into `rollout`, after the rows it has; `finish` ends it.

        Row (E, ...): prefix as observation, chain (x, steps), log_prob and value when acting. Episodes that are played
        again from their first step take the place of what was seen of them.
        """
        self._rollout, self._first_row = rollout, rollout.length
        try:
            yield
        finally:
            self._rollout = None

    @torch.no_grad()
    def finish(self, records: Sequence[EpisodeRecord]) -> None:
        """Looks at the last observation of the episodes just played, whose value ends them in the rollout."""
        cfg = self.explorer.policy.cfg
        observations = last_observation(records, cfg.n_obs_img_steps, cfg.obs_img_stride)
        start = time.monotonic()
        with self.autocast():
            self._remember(observations)
            prefix, _ = self.explorer.look(self._see(observations), self._h)
        value = self.explorer.value_of(prefix)
        self.clock.lap("look", start)
        if self._rollout is not None:
            self._rollout.cut(torch.arange(self.num_envs, device=value.device), value=value)

    def wrist(self, env: int) -> FrameFeatures:
        """What acting computed of the T + 1 frames of one environment."""
        parts = [(f.ids[env], f.latents[env], f.vision[env]) for f in self.frames if f.vision is not None]
        ids, latents, vision = (torch.stack(p) for p in zip(*parts, strict=True))
        return FrameFeatures(ids, latents, vision)

    def _begin(self, episode: int) -> None:
        self.frames = []
        if self._rollout is not None:
            self._rollout.begin(self._first_row)
        self._h = self.explorer.policy.initial_memory_state(self.num_envs)
        self._batch = self._features = None
        seeds = [seed_for(self.seed, self.rank, "explorer", e, episode) for e in range(self.num_envs)]
        self._generators = [torch.Generator().manual_seed(s) for s in seeds]

    def _decide(self, prefix: Prefix) -> None:
        chain, log_prob, value = self.explorer.act(prefix, self._generators)
        self._chunk = chain.actions
        if self._rollout is not None:
            self._rollout.add(vars(prefix), x=chain.x, steps=chain.steps, log_prob=log_prob, value=value)

    def _remember(self, observations: Observations) -> None:
        """Writes the step before into the memory, now that its action was executed.

        With a stride the newest complete slot holds the sum of the last actions, as the memory knows it from training.
        """
        if self._batch is None:
            return
        policy, batch = self.explorer.policy, self._batch.hide_current_action()
        executed = torch.from_numpy(observations["action_history"][:, -2]).to(policy.device)
        batch.actions = batch.actions.clone()
        batch.actions[:, 0, -1] = executed
        with torch.no_grad():
            if self._features is None:
                self._h = policy(batch, mode="memory_only", initial_memory_state=self._h)["memory_state"]
            else:
                self._h = policy(
                    batch, mode="write_memory", initial_memory_state=self._h, memory_features=self._features,
                    action=executed,
                )["memory_state"]  # fmt: skip
        self._features = None

    def _see(self, observations: Observations) -> F1Batch:
        """One step of the wrist view. Only the newest frame is encoded; older ones are remembered."""
        policy = self.explorer.policy
        wrist = torch.from_numpy(observations["image0_history"][:, -1])
        frame = policy.encode_frames(wrist, torch.from_numpy(observations["image0"])[:, None])
        assert frame.vision is not None
        frames = self.frames
        frames.append(frame)
        stride, count = policy.cfg.obs_img_stride, policy.cfg.n_obs_img_steps
        slots = [frames[max(len(frames) - 1 - stride * back, 0)] for back in range(count - 1, -1, -1)]
        E, device = self.num_envs, policy.device

        def tensor(key: str, dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(observations[key]).to(device, dtype)[:, None]

        return F1Batch(
            lang_tokens=self.lang_tokens.to(device).expand(E, -1),
            lang_masks=self.lang_masks.to(device).expand(E, -1),
            camera_mask=torch.ones(E, 1, 1, dtype=torch.bool, device=device),
            history_ids=torch.stack([f.ids for f in slots], 1)[:, None],
            history_latents=torch.stack([f.latents for f in slots], 1)[:, None],
            history_mask=tensor("history_mask", torch.bool),
            actions=tensor("action_history", torch.float32),
            action_known=tensor("action_known", torch.bool),
            state=self.states.normalize(tensor("state", torch.float32)),
            vision=frame.vision[:, None],
        )


def last_observation(records: Sequence[EpisodeRecord], num_obs: int, stride: int) -> Observations:
    """The student's observation after the last action of finished episodes, as the environment would give it; of the
    pictures of the history only the newest."""
    actions = np.stack([r.actions for r in records])
    E, T, A = actions.shape
    times = T - stride * np.arange(num_obs - 1, -1, -1)
    history = np.zeros((E, num_obs, A), np.float32)
    for i, t in enumerate(times[:-1]):
        history[:, i] = actions[:, max(t, 0) : max(t + stride, 0)].sum(1)
    return {
        "image0": np.stack([r.wrist_vlm[-1] for r in records]),
        "image0_history": np.stack([r.wrist[-1] for r in records])[:, None],
        "history_mask": np.tile(times >= 0, (E, 1)).astype(np.int8),
        "action_history": history,
        "action_known": np.tile(np.arange(num_obs) < num_obs - 1, (E, 1)).astype(np.int8),
        "state": np.stack([r.states[-1] for r in records]),
    }
