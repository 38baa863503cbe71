"""Phase 3: the explorer goes where the world model is ignorant, the world model learns what it finds there.

One iteration: episodes of the present explorer, of a past one and of random actions; the explorer's update against a
frozen world model; the world model's updates on a mixture of all episodes ever kept; now and then the held-out suites,
a fresh copy of the world model for the rewards, and a new past explorer. Nobody moves while the other learns.
Letters: E environments, T steps.
"""

import logging
import time
from pathlib import Path
from typing import Any

import torch

from f1_vla.policy import F1Policy
from rl.config import Config, Player
from rl.data.adversarial_replay import AdversarialReplay, Source
from rl.data.episode_buffer import EpisodeBuffer, EpisodeFeatures
from rl.data.intrinsic import rewarded_names
from rl.normalizers import Normalizer
from rl.training import collapse, teacher_media
from rl.training.checkpoint import CheckpointState, LoadedCheckpoint
from rl.training.collector import RandomActions
from rl.training.explorer_acting import ExplorerActions
from rl.training.explorer_gate import Gate
from rl.training.explorer_player import ExplorerPlayer
from rl.training.held_out_suites import HeldOutSuites
from rl.training.parallel_utils import ParallelContext
from rl.training.seeds import seed_for
from rl.training.student_source import FLAG as STUDENT_FLAG
from rl.training.teacher_source import warn_of_another
from rl.training.world_model_player import WorldModelPlayer, build_role
from rl.types import EpisodeRecord

log = logging.getLogger(__name__)


class AdversarialPhase:
    name, unit = "adversarial", "iteration"
    units_per_iteration = 1
    head_visible = False  # predictions in pictures are made in the wrist view

    def __init__(
        self, cfg: Config, policy: F1Policy, states: Normalizer | None, origin: dict[str, Any], ctx: ParallelContext
    ) -> None:
        """policy and states of the teacher; states None: both will be restored. origin: see `Teacher.origin`."""
        t, a, arch = cfg.training, cfg.adversarial, policy.cfg
        self.cfg, self.ctx, self.policy = cfg, ctx, policy
        self.explorer = ExplorerPlayer(cfg, policy, states, origin, ctx)
        self.data, self.collector = self.explorer.data, self.explorer.collector
        self.random = RandomActions(t.seed, ctx.rank, self.collector.action_mask, t.num_envs)
        self.replay = AdversarialReplay(a.replay, ctx.world_size, arch.n_obs_img_steps, arch.obs_img_stride)
        self.generator = torch.Generator().manual_seed(seed_for(t.seed, ctx.rank, "windows"))
        roles = [p for p in policy.parameters() if p.requires_grad]  # the explorer's, until its partner is built
        model = build_role(cfg, policy, ctx)
        self.world_model = WorldModelPlayer(cfg, model, self.data, self.replay, ctx, self.generator)
        for p in roles:
            p.requires_grad_(True)
        self.held_out = HeldOutSuites(cfg, self.data, self.explorer.rewards, self._present_explorer, ctx)
        self.explorer.attach(self.world_model.parameters)
        self.rounds_per_iteration = cfg.student.episodes_per_iteration + a.replay.random_rounds + a.replay.past_rounds
        self.iteration = 0  # the running one
        self.done = 0  # its updates
        self.gate = Gate(a.held_out.max_wait)
        self.watch = collapse.CollapseWatch(a.collapse, rewarded_names(cfg.student.rewards))
        self.explorer_waits = False  # in the running iteration
        self.student: dict[str, Any] = {}  # origin of the explorer
        self.named_student: Path | None = None  # as the command line names it
        self.shown: tuple[EpisodeRecord, int] | None = None

    def start_from(self, origin: dict[str, Any]) -> None:
        """The explorer has the weights of phase 2 now (origin: `Student.origin`), and keeps them as its reference."""
        self.student = origin
        self.explorer.take_reference()
        self.ctx.assert_ranks_equal(self.explorer.model.explorer, "parameters at the start")

    def _present_explorer(self) -> ExplorerActions:
        return ExplorerActions(
            self.explorer.model.explorer, self.explorer.states, self.cfg.environment.instruction,
            self.cfg.adversarial.held_out.seed, self.ctx.rank, 1, self.ctx.autocast,
        )  # fmt: skip

    # --- who plays and who learns ----------------------------------------------------------------------------------

    def trains(self, player: Player) -> bool:
        """In the running iteration."""
        a = self.cfg.adversarial
        if self.iteration < a.warmup_iterations:
            return a.warmup_player is player
        return player is Player.world_model or not self.explorer_waits

    @property
    def updates_per_iteration(self) -> int:
        a = self.cfg.adversarial
        return int(self.trains(Player.explorer)) + self.trains(Player.world_model) * a.wm_updates_per_iter

    def _first_round(self, iteration: int) -> int:
        """Index of the first episode that every environment plays in an iteration."""
        return self.cfg.adversarial.replay.initial_random_rounds + iteration * self.rounds_per_iteration

    # --- collection ------------------------------------------------------------------------------------------------

    def collect(self, step: int) -> dict[str, float]:
        self.iteration, self.done, self.explorer_waits = step, 0, self.gate.closed
        r, start, steps = self.cfg.adversarial.replay, time.monotonic(), 0
        self.world_model.model.wrapped.eval()
        line: dict[str, float] = {}
        if not self.held_out.recorded:
            self.held_out.record()
        if step == 0 and self.world_model.updates == 0:
            line |= self._examine()
        if not self.replay.parts[Source.random]:
            self.collector.rebuild(0)
            steps += self._play_others(Source.random, 0, r.initial_random_rounds)[1]
            self.collector.rebuild(self._first_round(step))
        first = self._first_round(step)
        for source, rounds in [(Source.random, r.random_rounds), (Source.past, r.past_rounds)]:
            numbers, more = self._play_others(source, first, rounds)
            first, steps, line = first + rounds, steps + more, line | numbers
        line |= self.explorer.collect(self._index(first))
        steps += int(line.pop("env_steps"))
        line |= self._keep_explorers_episodes()
        line |= self.watch.judge(line, self.iteration + 1, self.ctx.is_main)
        if not self.trains(Player.explorer):
            self.explorer.wait()
        line["env_steps_per_s"] = steps / (time.monotonic() - start)
        return line | {"env_steps": steps}

    def _index(self, round_index: int) -> int:
        """Global index of environment 0 of rank 0 in a round."""
        return round_index * self.explorer.episodes_at_once

    def _play_others(self, source: Source, first: int, rounds: int) -> tuple[dict[str, float], int]:
        """Random rounds, or rounds of past explorers, into the replay: mean scores, and steps over all ranks."""
        if rounds == 0:
            return {}, 0
        t, fresh = self.cfg.training, self._empty_buffer(rounds * self.cfg.training.num_envs)
        for number in range(first, first + rounds):
            index = self._index(number) + self.ctx.rank * t.num_envs
            episodes = self._random_round(index) if source is Source.random else self._past_round(index, number)
            fresh.episodes.extend(episodes)
        scores = self.explorer.slow.score(fresh, list(range(len(fresh))))
        for features, memory, loss in zip(fresh.episodes, scores.memory, scores.nll, strict=True):
            features.memory_TMH[: len(memory)] = memory.half()
            self.replay.add(source, features, loss, loss)
        steps = rounds * self.explorer.episodes_at_once * t.steps_per_episode
        return self.ctx.mean({f"unseen_{source.value}_loss": float(scores.nll.mean())}), steps

    def _empty_buffer(self, capacity: int) -> EpisodeBuffer:
        return EpisodeBuffer(capacity, self.replay.buffer.num_obs, self.replay.buffer.stride)

    def _random_round(self, index: int) -> list[EpisodeFeatures]:
        t = self.cfg.training
        records = self.collector.collect_steps(t.num_envs * t.steps_per_episode, self.random)
        return [self.data.encode(record, index + e) for e, record in enumerate(records)]

    def _past_round(self, index: int, number: int) -> list[EpisodeFeatures]:
        t, pool = self.cfg.training, self.explorer.pool
        with pool.acting(pool.choose(t.seed, self.ctx.rank, number)):
            records = self.collector.collect_steps(t.num_envs * t.steps_per_episode, self.explorer.act)
            self.explorer.act.finish(records)
        wrist = self.explorer.act.wrist
        return [self.data.encode(record, index + e, wrist(e)) for e, record in enumerate(records)]

    def _keep_explorers_episodes(self) -> dict[str, float]:
        """What the explorer just played goes into the replay with what is new about it; signs of a collapse."""
        scores, episodes = self.explorer.slow.last, list(self.explorer.buffer.episodes)
        assert scores is not None
        if "disagreement" in scores.uncertainty:
            novelty = scores.uncertainty["disagreement"]
        else:  # surprise beyond what the prediction itself expects
            novelty = (scores.nll - scores.uncertainty["entropy"]).clamp_min(0)
        for e, features in enumerate(episodes):
            self.replay.add(Source.adversarial, features, novelty[e], scores.nll[e])
        self.shown = self.explorer.shown
        top = collapse.token_share([e.ids_FL for e in episodes], self.policy.cfg.tokenizer.vocab_size)
        return self.ctx.mean({"token_top_share": top})

    @property
    def buffer(self) -> EpisodeBuffer:
        """What the pictures of this iteration show."""
        return self.explorer.buffer

    # --- updates ---------------------------------------------------------------------------------------------------

    def update(self, progress: float) -> dict[str, float]:
        """The explorer's update comes first, while its episodes are at hand; then those of the world model."""
        if self.done == 0 and self.trains(Player.explorer):
            line = self.explorer.update(progress)
        else:
            line = self.world_model.update(progress)
        self.done += 1
        return line | (self._settle() if self.done == self.updates_per_iteration else {})

    def _settle(self) -> dict[str, float]:
        """The end of an iteration: judge the world model, refresh what is due."""
        a, number = self.cfg.adversarial, self.iteration + 1
        line = {"rollbacks": float(self.world_model.rollbacks), "past_explorers": float(len(self.explorer.pool))}
        rejected = False
        if number % a.held_out.every == 0:
            line |= self._examine()
            rejected = bool(line["held_out_regressed"])
        # The present copy may be of weights that were just taken back: rewards of a world model that does not exist.
        if rejected or number % a.reward_refresh_every == 0:
            self.explorer.refresh_rewards()
        if number % a.pool_every == 0 and self.trains(Player.explorer):
            self.explorer.pool.add()
        return line

    def _examine(self) -> dict[str, float]:
        """Collective. The held-out suites; on a regression the world model goes back."""
        line = self.held_out.evaluate()
        self.gate.judge(line["held_out_random_loss"] + line["held_out_past_loss"])
        line["held_out_regressed"] = float(self.world_model.judge(line["held_out_random_loss"]))
        return line | {"explorer_waits": float(self.gate.closed)}

    # --- checkpoints and pictures ----------------------------------------------------------------------------------

    def boundary(self, step: int) -> None:
        self.collector.rebuild(self._first_round(step))
        self.ctx.assert_ranks_equal(self.explorer.model.explorer, f"parameters at iteration {step}")

    def media(self, run_dir: Path, step: int, last: bool) -> None:
        if self.shown is not None:  # None: the iteration was collected before a resume
            record, episode = self.shown
            teacher_media.write(self, run_dir, step, last, record, episode)

    def checkpoint(self) -> CheckpointState:
        """The explorer's as in phase 2, which holds the whole policy, and what the game adds."""
        state = self.explorer.checkpoint()
        state.training["adversarial"] = {
            "world_model": self.world_model.state_dict(), "explorer": self.explorer.player_state(),
            "student": self.student, "gate": self.gate.state_dict(), "explorer_waits": self.explorer_waits,
            "collapse": self.watch.state_dict(),
        }  # fmt: skip
        state.per_rank = {"generator": self.generator.get_state()}
        state.rank_files = {"replay": self.replay.state_dict(), "held_out": self.held_out.state_dict()}
        return state

    def restore(self, saved: LoadedCheckpoint) -> None:
        """Replay and suites of another number of processes are filled anew, the suite `past` then by the explorer of
        the resume."""
        self.explorer.restore(saved)
        game = saved.training["adversarial"]
        self.world_model.load_state_dict(game["world_model"])
        self.explorer.load_player_state(game["explorer"])
        self.student, self.explorer_waits = game["student"], game["explorer_waits"]
        if self.ctx.is_main:
            warn_of_another(STUDENT_FLAG, self.named_student, self.student)
        self.gate.load_state_dict(game["gate"])
        if "collapse" in game:  # not of a game begun before this sign was watched: it counts from the resume on
            self.watch.load_state_dict(game["collapse"])
        replay = saved.rank_file("replay")
        if replay is not None and saved.per_rank is not None:
            self.replay.load_state_dict(replay)
            self.held_out.load_state_dict(saved.rank_file("held_out"))
            self.generator.set_state(saved.per_rank["generator"])
        loop = saved.training["loop"]
        self.done = loop["updates_done"] if saved.per_rank is not None else 0
        if self.done:  # stopped while training on this iteration
            self.iteration = loop["step"] - 1
            self.collector.rebuild(self._first_round(loop["step"]))

    def last_batch(self) -> Any:
        return {"world_model": self.world_model.learner.windows, "explorer": self.explorer.last_batch()}

    def close(self) -> None:
        self.explorer.close()
