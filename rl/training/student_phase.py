"""Phase 2: the explorer learns to go where the frozen world model is uncertain, by PPO on its own rollouts.

Letters: R rounds of episodes in an iteration, E environments, N decisions of an episode, T steps.
"""

import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from f1_vla.policy import F1Policy
from rl.config import Config
from rl.data.episode_buffer import EpisodeBuffer
from rl.data.intrinsic import (
    Components,
    ReturnScale,
    credited_reward,
    normalised_names,
    potential,
    reward_components,
    total_reward,
)
from rl.data.rollout import RolloutStorage
from rl.normalizers import Normalizer
from rl.training import teacher_media
from rl.training.checkpoint import CheckpointState, LoadedCheckpoint
from rl.training.collector import EpisodeCollector
from rl.training.explorer_acting import ExplorerActions
from rl.training.explorer_metrics import reward_metrics
from rl.training.explorer_setup import build_explorer
from rl.training.explorer_update import ExplorerUpdate, make_batch
from rl.training.optim import setup_scheduler
from rl.training.parallel_utils import ParallelContext
from rl.training.released_base import load_model
from rl.training.reward_model import RewardModel, Scores
from rl.training.seeds import seed_for
from rl.training.teacher_source import normalizer_from, warn_of_another
from rl.training.world_model_data import WorldModelData
from rl.types import EpisodeRecord


class StudentPhase:
    name, unit = "student", "episode"
    head_visible = False  # predictions in pictures are made in the wrist view
    updates_per_iteration = 1  # all epochs of PPO

    def __init__(
        self, cfg: Config, policy: F1Policy, states: Normalizer | None, origin: dict[str, Any], ctx: ParallelContext
    ) -> None:
        """policy and states of the teacher; states None: both will be restored. origin: see `Teacher.origin`."""
        t, s, arch = cfg.training, cfg.student, policy.cfg
        self.cfg, self.ctx, self.origin = cfg, ctx, origin
        self.named_teacher: tuple[str, Path | None] = ("--teacher_path", None)  # as the command line names it
        device = f"cuda:{ctx.device.index or 0}" if ctx.device.type == "cuda" else "cpu"
        self.collector = EpisodeCollector(
            cfg, "student", ctx.rank, device, arch.n_obs_img_steps, arch.obs_img_stride, t.seed
        )
        self.model = build_explorer(cfg, policy, self.collector.action_mask, ctx)
        self.policy = policy
        self.states = Normalizer(torch.from_numpy(self.collector.state_mask)) if states is None else states
        self.data = WorldModelData(policy, self.states, cfg.environment.instruction, cache_vision=True)
        self.rewards = RewardModel(policy, self.data, ctx.autocast)
        self.act = ExplorerActions(
            self.model.explorer, self.states, cfg.environment.instruction, t.seed, ctx.rank, t.num_envs, ctx.autocast
        )
        has_ensemble = policy.world_model.ensemble is not None
        self.scale = ReturnScale(normalised_names(s.rewards, has_ensemble), s.ppo.gamma, s.rewards.clip)
        self.update_step = ExplorerUpdate(s.ppo, self.model, ctx, t.gradient_accumulation_steps, t.max_grad_norm)
        self.episodes_at_once = t.num_envs * ctx.world_size
        self.units_per_iteration = s.episodes_per_iteration * self.episodes_at_once
        horizon = t.schedule_episodes or t.num_episodes
        self.schedule = setup_scheduler(self.model.optimizer, "cosine", horizon, s.min_learning_rate)
        self.updates = 0
        capacity = s.episodes_per_iteration * t.num_envs
        self.buffer = EpisodeBuffer(capacity, arch.n_obs_img_steps, arch.obs_img_stride)  # of this iteration
        decisions = t.steps_per_episode // s.chunk_exec_steps
        self.rollout = RolloutStorage(s.episodes_per_iteration * decisions, t.num_envs, ctx.device)  # of this iteration
        self.reward_REN = torch.zeros(0)
        self.shown: tuple[EpisodeRecord, int] | None = None

    # --- collection ------------------------------------------------------------------------------------------------

    def collect(self, step: int) -> dict[str, float]:
        start, clock = time.monotonic(), self.act.clock
        clock.seconds.clear()
        self.model.wrapped.eval()
        self.rollout.begin()
        records = []
        for r in range(self.cfg.student.episodes_per_iteration):
            records += self._play(step + r * self.episodes_at_once)
        lap = time.monotonic()
        scores = self.rewards.score(self.buffer, list(range(len(self.buffer))))
        for features, memory in zip(self.buffer.episodes, scores.memory, strict=True):
            features.memory_TMH[: len(memory)] = memory.half()
        clock.lap("score", lap)
        self.shown = (records[-1], len(records) - 1)
        raw, scaled, total = self._rewards(scores, records)
        reward = self._credited(total, scaled, scores)
        self.reward_REN = reward.unflatten(0, (-1, self.cfg.training.num_envs)).float()
        seconds = time.monotonic() - start
        numbers = reward_metrics(raw, scaled, reward, scores, records, self.collector.action_mask)
        numbers |= {f"scale_{name}": self.scale.std(name) for name in self.scale.names}
        numbers |= {f"time_{k}_s": v for k, v in clock.seconds.items()}
        numbers["time_simulate_s"] = seconds - sum(clock.seconds.values())
        env_steps = self.units_per_iteration * self.cfg.training.steps_per_episode
        numbers = self.ctx.mean(numbers) | self.collector.failures(self.ctx)
        return numbers | {"env_steps": env_steps, "env_steps_per_s": env_steps / seconds}

    def _play(self, index: int) -> list[EpisodeRecord]:
        """One episode in every environment, acted and encoded; `index` counts episodes over all ranks."""
        t = self.cfg.training
        with self.act.filling(self.rollout):
            records = self.collector.collect_steps(t.num_envs * t.steps_per_episode, self.act)
            self.act.finish(records)
        start = time.monotonic()
        first = index + self.ctx.rank * t.num_envs
        for e, record in enumerate(records):
            self.buffer.add(self.data.encode(record, first + e, self.act.wrist(e)))
        self.act.clock.lap("encode", start)
        self.act.frames.clear()
        return records

    def _rewards(self, scores: Scores, records: list[EpisodeRecord]) -> tuple[Components, Components, Tensor]:
        """Collective. Raw and scaled components and the reward of every decision, (R x E, N) each."""
        s = self.cfg.student
        raw = reward_components(
            s.rewards, scores.divergence, scores.uncertainty,
            torch.stack([torch.from_numpy(r.actions) for r in records]),
            torch.from_numpy(self.collector.action_mask), s.ppo.gamma, s.chunk_exec_steps,
        )  # fmt: skip
        self._update_scale(raw)
        scaled = self.scale.scaled(raw)
        return raw, scaled, total_reward(s.rewards, raw, scaled)

    def _credited(self, reward: Tensor, scaled: Components, scores: Scores) -> Tensor:
        """What PPO learns from, (R x E, N)."""
        r, name = self.cfg.student.rewards, "memory_divergence"
        last = (potential(r, scores.divergence[:, -1]) / self.scale.std(name)).clamp(-r.clip, r.clip)
        return credited_reward(r, reward, scaled[name], last, self.cfg.student.ppo.gamma)

    def _update_scale(self, raw: Components) -> None:
        """Collective: every rank's scale sees the rewards of all ranks, in one order."""
        for moments in self.ctx.gather_objects(self.scale.moments(raw)):
            self.scale.merge(*moments)

    # --- update ----------------------------------------------------------------------------------------------------

    def update(self, progress: float) -> dict[str, float]:
        start = time.monotonic()
        lr = self.schedule.set(progress, self.updates)
        batch = make_batch(self.rollout, self.reward_REN, self.cfg.student.ppo, self.ctx)
        seed = seed_for(self.cfg.training.seed, self.ctx.rank, "minibatches", self.updates)
        line = self.update_step.run(batch, torch.Generator().manual_seed(seed))
        self.rollout.free()
        self.updates += 1
        return line | {"learning_rate": lr, "time_update_s": time.monotonic() - start}

    # --- checkpoints and pictures ----------------------------------------------------------------------------------

    def boundary(self, step: int) -> None:
        self.collector.rebuild(step // self.episodes_at_once)
        self.ctx.assert_ranks_equal(self.model.explorer, f"parameters at episode {step}")

    def media(self, run_dir: Path, step: int, last: bool) -> None:
        assert self.shown is not None
        record, episode = self.shown
        teacher_media.write(self, run_dir, step, last, record, episode)

    def checkpoint(self) -> CheckpointState:
        return CheckpointState(
            **self.model.checkpoint(),
            training={
                "optimizer": self.model.optimizer.state_dict(),
                "updates": self.updates,
                "states": self.states.state_dict(),
                "explorer": {"scale": self.scale.state_dict(), "teacher": self.origin},
            },
            peft_adapter=self.model.adapter_writer(),
        )

    def restore(self, saved: LoadedCheckpoint) -> None:
        load_model(self.model.explorer, saved.model, saved.saved.base, saved.saved.path)
        training = saved.training
        self.model.optimizer.load_state_dict(training["optimizer"])
        self.updates = training["updates"]
        self.states.load_state_dict(normalizer_from(training["states"]).state_dict())
        self.scale.load_state_dict(training["explorer"]["scale"])
        self.origin = training["explorer"]["teacher"]
        if self.ctx.is_main:
            warn_of_another(*self.named_teacher, self.origin)

    def last_batch(self) -> dict[str, Tensor]:
        return self.update_step.last

    def close(self) -> None:
        self.collector.close()
