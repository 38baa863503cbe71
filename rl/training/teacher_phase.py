"""Phase 1: the world model learns to predict the next wrist frame from random interaction.

Every new episode is first predicted, then trained on: the numbers of `collect` are measured on unseen data. That pass
also yields the memory state before every step, which windows start from (stored state, Kapturowski et al. 2019).
"""

import time
from pathlib import Path
from typing import Any

import torch

from f1_vla.lora import Role
from rl.config import Config
from rl.data.episode_buffer import EpisodeBuffer, WindowIndex
from rl.normalizers import Normalizer
from rl.training import teacher_media
from rl.training.checkpoint import CheckpointState, LoadedCheckpoint
from rl.training.collector import EpisodeCollector, RandomActions
from rl.training.model_setup import Model
from rl.training.optim import guarded_step, setup_scheduler
from rl.training.parallel_utils import ParallelContext
from rl.training.released_base import load_model
from rl.training.scripted_actions import TowardsScreen
from rl.training.seeds import seed_for
from rl.training.world_model_data import WorldModelData
from rl.training.world_model_metrics import copy_accuracy, window_metrics
from rl.training.world_model_update import WorldModelUpdate
from rl.types import EpisodeRecord


class TeacherPhase:
    name, unit = "teacher", "episode"
    head_visible = True  # in pictures

    def __init__(self, cfg: Config, model: Model, ctx: ParallelContext) -> None:
        t, arch = cfg.training, model.policy.cfg
        self.cfg, self.ctx, self.model, self.policy = cfg, ctx, model, model.policy
        device = f"cuda:{ctx.device.index or 0}" if ctx.device.type == "cuda" else "cpu"
        self.collector = EpisodeCollector(
            cfg, "teacher", ctx.rank, device, arch.n_obs_img_steps, arch.obs_img_stride, t.seed
        )
        random = RandomActions(t.seed, ctx.rank, self.collector.action_mask, t.num_envs)
        self.act = TowardsScreen(random, cfg.environment.action_scale, cfg.teacher.screen_share)
        self.states = Normalizer(torch.from_numpy(self.collector.state_mask))
        self.data = WorldModelData(
            model.policy, self.states, cfg.environment.instruction, cfg.teacher.freeze.freeze_vision_encoder
        )
        capacity = cfg.teacher.buffer_episodes // ctx.world_size
        if capacity < t.num_envs:
            raise ValueError(
                f"teacher.buffer_episodes is {cfg.teacher.buffer_episodes}; {ctx.world_size} processes with "
                f"{t.num_envs} environments need at least {ctx.world_size * t.num_envs}"
            )
        self.buffer = EpisodeBuffer(capacity, arch.n_obs_img_steps, arch.obs_img_stride)
        self.generator = torch.Generator().manual_seed(seed_for(t.seed, ctx.rank, "windows"))
        self.units_per_iteration = t.num_envs * ctx.world_size
        self._round = t.num_envs * t.steps_per_episode  # environment steps of this rank in one iteration
        self.updates_per_iteration = cfg.teacher.updates_per_episode * t.num_envs
        horizon = t.schedule_episodes or t.num_episodes
        self.schedule = setup_scheduler(model.optimizer, "cosine", horizon, t.min_learning_rate, t.warmup_updates)
        self.updates = 0
        self.learner = WorldModelUpdate(cfg, model, self.data, self.buffer, ctx, self.generator)
        self.shown: tuple[EpisodeRecord, int] | None = None  # what the pictures of this iteration show

    # --- collection ------------------------------------------------------------------------------------------------

    def collect(self, step: int) -> dict[str, float]:
        t = self.cfg.training
        start = time.monotonic()
        records = self.collector.collect_steps(self._round, self.act)
        simulated = time.monotonic()
        self._update_normalizer(records)
        for record in records:
            index = step + self.ctx.rank * t.num_envs + record.env_index
            self.buffer.add(self.data.encode(record, index))
        first = len(self.buffer) - len(records)
        numbers = self._predict_unseen(list(range(first, len(self.buffer))))
        self.shown = (records[0], first)
        numbers = self.ctx.mean(numbers) | self.collector.failures(self.ctx)
        env_steps = t.num_envs * t.steps_per_episode * self.ctx.world_size
        numbers["env_steps"] = env_steps
        numbers["env_steps_per_s"] = env_steps / (simulated - start)
        return numbers

    def _update_normalizer(self, records: list[EpisodeRecord]) -> None:
        """Collective: every rank's normaliser sees the episodes of all ranks."""
        own = Normalizer(self.states.mask)
        for record in records:
            own.update(torch.from_numpy(record.states))
        for state in self.ctx.gather_objects(own.state_dict()):
            other = Normalizer(self.states.mask)
            other.load_state_dict(state)
            self.states.merge(other)

    @torch.no_grad()
    def _predict_unseen(self, episodes: list[int]) -> dict[str, float]:
        """Teacher-forced pass over whole episodes with all cameras; stores the memory states."""
        stride = self.buffer.stride
        length = self.cfg.training.steps_per_episode - stride + 1
        where = WindowIndex(episodes, [0] * len(episodes), length, burn_in=0)
        windows = self.buffer.gather(where)
        batch = self.data.batch(windows, torch.ones(len(episodes), dtype=torch.bool))
        self.model.wrapped.eval()
        with self.ctx.autocast():
            out = self.model.wrapped(
                batch,
                mode="world_model_window",
                initial_memory_state=self.model.policy.initial_memory_state(len(episodes)),
            )
        self.buffer.write_memory(where, out["memory_states"])
        numbers = window_metrics(out["metrics"], prefix="unseen_")
        numbers["copy_accuracy"] = copy_accuracy(windows)
        return numbers

    # --- updates ---------------------------------------------------------------------------------------------------

    def update(self, progress: float) -> dict[str, float]:
        t, start = self.cfg.training, time.monotonic()
        lr = self.schedule.set(progress, self.updates)
        made = self.learner.gradients(self._sample)
        norm = guarded_step(
            self.ctx, self.model.optimizer, self.model.trainable, made.loss, t.max_grad_norm,
            f"teacher update {self.updates}", self.model.heads,
        )  # fmt: skip
        self.updates += 1
        line = self.ctx.mean(made.line)
        seconds = time.monotonic() - start
        return {
            **line, "grad_norm": norm, "learning_rate": lr,
            "train_steps_per_s": made.samples * self.ctx.world_size / seconds,
        }  # fmt: skip

    def _sample(self) -> WindowIndex:
        t = self.cfg.training
        if t.sequential_training:
            return self.buffer.sample(t.batch_size, t.bptt_length, self.cfg.teacher.burn_in, self.generator)
        return self.buffer.sample(t.batch_size * t.bptt_length, 1, 0, self.generator)

    def _forward(self, where: WindowIndex) -> tuple[dict[str, Any], torch.Tensor]:
        return self.learner.forward(where)

    # --- checkpoints and pictures ----------------------------------------------------------------------------------

    def boundary(self, step: int) -> None:
        self.collector.rebuild(step // self.units_per_iteration)
        self.ctx.assert_ranks_equal(self.model.policy, f"parameters at episode {step}")

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
            },
            per_rank={"generator": self.generator.get_state()},
            rank_files={"buffer": self.buffer.state_dict()},
            peft_adapter=self.model.adapter_writer(Role.world_model, self.ctx),
        )

    def restore(self, saved: LoadedCheckpoint) -> None:
        policy, base, path = self.model.policy, saved.saved.base, saved.saved.path
        self.ctx.load_whole(policy, saved.model, lambda weights: load_model(policy, weights, base, path))
        self.ctx.load_optimizer(self.model.optimizer, saved.training["optimizer"])
        self.updates = saved.training["updates"]
        self.states.load_state_dict(saved.training["states"])
        buffer = saved.rank_file("buffer")
        if buffer is not None and saved.per_rank is not None:
            self.buffer.load_state_dict(buffer)
            self.generator.set_state(saved.per_rank["generator"])
        loop = saved.training["loop"]
        next_episode = loop["step"] // self.units_per_iteration
        if loop["updates_done"] == 0 or saved.per_rank is None:
            self.collector.rebuild(next_episode)
        else:  # stopped while training on an episode: its pictures were not saved, so it is played again
            self.collector.rebuild(next_episode - 1)
            records = self.collector.collect_steps(self._round, self.act)
            self.shown = (records[0], len(self.buffer) - len(records))

    def last_batch(self) -> dict[str, torch.Tensor]:
        return self.learner.windows

    def close(self) -> None:
        self.collector.close()
