"""Collection of episodes from the environments of one process.

Letters: E environments, T steps, A padded action dim, S padded state dim.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium.vector import SyncVectorEnv

from rl.config import Config
from rl.training.parallel_utils import ParallelContext
from rl.training.seeds import words_for
from rl.types import EpisodeRecord, SceneTrace
from rl.vec_env import failures, lost_environments, make_vector_env, true_info, true_next_observation

_FACTS = tuple(f.name for f in fields(SceneTrace))
# An episode that its environment is lost in twice is never played: another one takes its place, this much later.
SUBSTITUTE = 1_000_000

# (observations, episode index, step) -> actions (E, A)
ActionSource = Callable[[dict[str, npt.NDArray[Any]], int, int], npt.NDArray[np.float32]]


class RandomActions:
    """Independent uniform actions in [-1, 1] on the real dims: a function of (seed, rank, environment, episode)."""

    def __init__(self, seed: int, rank: int, action_mask: npt.NDArray[np.bool_], num_envs: int) -> None:
        self.seed, self.rank, self.mask, self.num_envs = seed, rank, action_mask, num_envs
        self._episode = -1
        self._generators: list[np.random.Generator] = []

    def __call__(self, observations: dict[str, npt.NDArray[Any]], episode: int, step: int) -> npt.NDArray[np.float32]:
        if episode != self._episode or step == 0:
            words = [words_for(4, self.seed, self.rank, "random_actions", e, episode) for e in range(self.num_envs)]
            self._generators = [np.random.default_rng(w) for w in words]
            self._episode = episode
        actions = np.zeros((self.num_envs, len(self.mask)), np.float32)
        for e, g in enumerate(self._generators):
            actions[e, self.mask] = g.uniform(-1, 1, int(self.mask.sum()))
        return actions


class EpisodeCollector:
    """Steps all environments of this rank together; every environment runs the same episode index.

    When an environment is lost (`environment.isolation: process`), what was seen of the round is forgotten and the
    round is played again. Episodes are functions of their index, so the others come out as they were, and no part of a
    lost episode is ever seen by a trainer.
    """

    def __init__(
        self, config: Config, phase: str, rank: int, device: str, num_obs: int, stride: int, seed: int,
        scene_facts: bool = False,
    ) -> None:  # fmt: skip
        """scene_facts: records carry their `SceneTrace` (student view only)."""
        assert not (scene_facts and phase == "teacher")
        self.scene_facts = scene_facts
        self.num_envs = config.training.num_envs
        self.steps_per_episode = config.training.steps_per_episode
        envs = make_vector_env(
            config.environment, phase, self.num_envs, rank=rank, seed=seed,
            history_length=num_obs, obs_img_stride=stride, max_steps=self.steps_per_episode, device=device,
            scene_facts=scene_facts,
        )  # fmt: skip
        self.envs: SyncVectorEnv = envs
        self.action_mask: npt.NDArray[np.bool_] = envs.get_attr("action_mask")[0]
        self.state_mask: npt.NDArray[np.bool_] = envs.get_attr("state_mask")[0]
        self.phase = phase
        self._losses = np.zeros(self.num_envs, np.int64)  # in this round
        self._reported = 0  # losses that `failures` has told
        self.episode = 0  # index of the episode that the next collection starts
        self._observations: dict[str, npt.NDArray[Any]] | None = None
        self._infos: dict[str, Any] = {}

    def rebuild(self, episode: int) -> None:
        """Drops all scenes; the next collection starts episode index `episode` in scenes built anew."""
        self.envs.call("rebuild")
        self.episode, self._observations = episode, None

    def collect_steps(self, num_steps: int, act: ActionSource) -> list[EpisodeRecord]:
        """Whole episodes; `num_steps` counts over all environments and must be a multiple of E * steps_per_episode."""
        per_round = self.num_envs * self.steps_per_episode
        if num_steps < 1 or num_steps % per_round:
            raise ValueError(
                f"collect_steps({num_steps}): with {self.num_envs} environments and {self.steps_per_episode} steps an "
                f"episode, ask for a multiple of {per_round}"
            )
        return [record for _ in range(num_steps // per_round) for record in self._collect_episode(act)]

    def failures(self, ctx: ParallelContext) -> dict[str, float]:
        """Collective. Metrics: environments of all ranks lost since the last call; nothing where a loss would have
        ended its rank."""
        count = failures(self.envs)
        if count is None:
            return {}
        new, self._reported = count - self._reported, count
        return {"environment_failures": ctx.mean({"new": float(new)})["new"] * ctx.world_size}

    def _collect_episode(self, act: ActionSource) -> list[EpisodeRecord]:
        self._losses[:] = 0
        while (records := self._play_round(act)) is None:
            self._observations = None
        if (self._losses > 1).any():  # a substitute does not lead to the next episode
            self._observations = None
        return records

    def _episodes(self) -> list[int]:
        """What each environment plays in this round."""
        return [self.episode + SUBSTITUTE * int(n // 2) for n in self._losses]

    def _lost(self) -> bool:
        """Whether an environment was lost in the last step; remembers which."""
        lost = lost_environments(self.envs)
        self._losses += lost
        return bool(lost.any())

    def _play_round(self, act: ActionSource) -> list[EpisodeRecord] | None:
        """One episode of every environment; None when an environment was lost."""
        if self._observations is None:
            self.envs.set_attr("next_episode", self._episodes())
            self._observations, self._infos = self.envs.reset()
            if self._lost():
                return None
        began = {k: v for k, v in self._infos.items() if k != "final_info"}  # which is of the episode before
        frames = [self._frame(self._observations, began)]
        facts = [self._facts(began)]
        actions = []
        for t in range(self.steps_per_episode):
            self._observations, _, terminated, truncated, infos = self.envs.step(
                act(self._observations, self.episode, t)
            )
            if self._lost():
                return None
            assert not terminated.any() and truncated.all() == (t == self.steps_per_episode - 1)
            actions.append(true_info(infos, "executed_action", self.num_envs))
            frames.append(self._frame(true_next_observation(self._observations, infos), infos))
            facts.append(self._facts(infos))
            self._infos = infos
        played = self._episodes()
        self.episode += 1
        head, wrist, wrist_vlm, states = (np.stack([f[i] for f in frames], 1) for i in range(4))
        taken = np.stack(actions, 1)
        known = {k: np.stack([f[k] for f in facts], 1) for k in facts[0]}
        return [
            EpisodeRecord(
                head[e], wrist[e], wrist_vlm[e], states[e], taken[e], e, played[e],
                SceneTrace(**{k: v[e] for k, v in known.items()}) if known else None,
            )
            for e in range(self.num_envs)
        ]  # fmt: skip

    def _frame(self, obs: dict[str, npt.NDArray[Any]], infos: dict[str, Any]) -> tuple[npt.NDArray[Any], ...]:
        """Head (E, vlm, vlm, 3), wrist (E, wm, wm, 3), wrist (E, vlm, vlm, 3) and state (E, S); copies.

        In the student view the head picture is in no observation: it comes from the info, for rewards and videos.
        """
        wrist = obs["image0_history"][:, -1].copy()
        if self.phase == "teacher":
            return obs["image0"].copy(), wrist, obs["image1"].copy(), obs["state"].copy()
        return true_info(infos, "privileged/head", self.num_envs), wrist, obs["image0"].copy(), obs["state"].copy()

    def _facts(self, infos: dict[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """What the simulators know, (E, ...) each; nothing unless asked for."""
        names = _FACTS if self.scene_facts else ()
        return {k: true_info(infos, f"privileged/{k}", self.num_envs) for k in names}

    def close(self) -> None:
        self.envs.close()
