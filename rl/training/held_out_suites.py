"""Fixed scenes that phase 3 never trains on, and what the world model makes of them.

random   random actions: what the world model must not forget      past     the explorer of phase 2, recorded once
noisy    random actions, turned to a noisy screen                  current  the explorer as it is, played each time

The three recorded suites are the same episodes whenever they are measured; `current` has the same scenes and draws.
"""

import copy
from collections.abc import Callable
from typing import Any

from rl.config import Config
from rl.data.episode_buffer import EpisodeBuffer, EpisodeFeatures
from rl.data.ranking import worst_mean
from rl.training.collector import ActionSource, EpisodeCollector, RandomActions
from rl.training.explorer_acting import ExplorerActions
from rl.training.parallel_utils import ParallelContext
from rl.training.reward_model import RewardModel
from rl.training.scripted_actions import TowardsScreen
from rl.training.world_model_data import WorldModelData
from rl.types import EpisodeRecord

WORST_SHARE = 0.1  # of the steps, by loss


class HeldOutSuites:
    """Each process has scenes of its own; numbers are means over all of them."""

    def __init__(
        self, cfg: Config, data: WorldModelData, rewards: RewardModel, make_explorer: Callable[[], ExplorerActions],
        ctx: ParallelContext,
    ) -> None:  # fmt: skip
        """make_explorer: the present explorer, one environment, draws of the held-out seed. rewards: scores under the
        present world model."""
        self.cfg = copy.deepcopy(cfg)
        self.cfg.training.num_envs = 1
        self.cfg.environment.scene_reset_interval = 1
        self.data, self.rewards, self.make_explorer, self.ctx = data, rewards, make_explorer, ctx
        self.episodes: dict[str, list[EpisodeFeatures]] = {}

    @property
    def recorded(self) -> bool:
        return bool(self.episodes)

    def record(self) -> None:
        """Plays the fixed suites; the explorer at this moment becomes `past`."""
        self.episodes = {
            "random": self._play(self._random),
            "past": self._play(lambda scenes: self.make_explorer()),
            "noisy": self._play(self._towards_screen, noisy_screen=True),
        }

    def evaluate(self) -> dict[str, float]:
        """Collective. Loss of every suite (nats a token, mean over scales, wrist view), of its worst steps, and both
        uncertainties, as held_out_{suite}_{measure}."""
        suites = {**self.episodes, "current": self._play(lambda scenes: self.make_explorer())}
        line: dict[str, float] = {}
        for name, episodes in suites.items():
            buffer = EpisodeBuffer(
                len(episodes), self.data.policy.cfg.n_obs_img_steps, self.data.policy.cfg.obs_img_stride
            )
            buffer.episodes.extend(episodes)
            scores = self.rewards.score(buffer, list(range(len(episodes))))
            line[f"held_out_{name}_loss"] = float(scores.nll.mean())
            line[f"held_out_{name}_worst_loss"] = worst_mean(scores.nll.numpy(), WORST_SHARE)
            for kind, value in scores.uncertainty.items():
                line[f"held_out_{name}_{kind}"] = float(value.mean())
        return self.ctx.mean(line)

    def _random(self, scenes: EpisodeCollector) -> RandomActions:
        return RandomActions(self.cfg.adversarial.held_out.seed, self.ctx.rank, scenes.action_mask, 1)

    def _towards_screen(self, scenes: EpisodeCollector) -> ActionSource:
        return TowardsScreen(self._random(scenes), self.cfg.environment.action_scale)

    def _play(
        self, actor: Callable[[EpisodeCollector], ActionSource], noisy_screen: bool = False
    ) -> list[EpisodeFeatures]:
        """Episodes 0.. of the held-out seed; the simulator lives only as long."""
        arch, h, device = self.data.policy.cfg, self.cfg.adversarial.held_out, self.ctx.device
        cfg = copy.deepcopy(self.cfg)
        cfg.environment.domain_randomization.noisy_screen |= noisy_screen
        where = "cpu" if device.type == "cpu" else f"cuda:{device.index or 0}"
        scenes = EpisodeCollector(
            cfg, "student", self.ctx.rank, where, arch.n_obs_img_steps, arch.obs_img_stride, h.seed
        )
        act = actor(scenes)
        records: list[EpisodeRecord] = []
        for _ in range(h.episodes):
            records += scenes.collect_steps(scenes.steps_per_episode, act)
        scenes.close()
        return [self.data.encode(r, i) for i, r in enumerate(records)]

    def state_dict(self) -> dict[str, Any]:
        """Plain data; of this process."""
        return {name: [e.to_dict() for e in episodes] for name, episodes in self.episodes.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.episodes = {name: [EpisodeFeatures(**e) for e in episodes] for name, episodes in state.items()}
