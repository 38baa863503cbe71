"""Collection of the explorer: what it sees, remembers and is rewarded for, and the batch PPO learns from."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from rl.config import F1Config, FlowPPOConfig, load, load_model
from rl.data.episode_buffer import EpisodeBuffer, WindowIndex
from rl.data.intrinsic import memory_divergence, reward_components, total_reward
from rl.data.rollout import RolloutStorage
from rl.f1_rl_env import StudentEnv
from rl.normalizers import Normalizer
from rl.training import explorer_update
from rl.training.collector import EpisodeCollector
from rl.training.errors import CollectiveError
from rl.training.explorer_acting import ExplorerActions, Observations, last_observation
from rl.training.explorer_setup import make_explorer
from rl.training.parallel_utils import ParallelContext
from rl.training.reward_model import RewardModel
from rl.training.step_reward import IntrinsicStepReward
from rl.training.teacher_source import Teacher, find_teacher, frozen_policy, load_teacher
from rl.training.world_model_data import WorldModelData
from rl.types import EpisodeRecord
from tests.training.student_runs import HEADS, STEPS

E, CPU = 2, torch.device("cpu")


class Setting:
    """A collector, an explorer on a teacher, and two episodes of it."""

    def __init__(self, teacher_run: Path, overrides: list[str]) -> None:
        self.cfg = load(None, [
            "model.config_file=debug_test", f"training.steps_per_episode={STEPS}", f"training.num_envs={E}",
            "environment.num_objects=2", "student.flow.num_steps=2", *overrides,
        ])  # fmt: skip
        self.arch: F1Config = load_model(
            "debug_test", [f"world_model.ensemble_heads={HEADS}", "world_model.ensemble_features=8"]
        )
        self.teacher: Teacher = find_teacher(teacher_run, self.cfg, self.arch)
        self.policy = frozen_policy(self.cfg, self.arch, CPU)
        self.states: Normalizer = load_teacher(self.teacher, self.policy)
        self.collector = EpisodeCollector(self.cfg, "student", 0, "cpu", 4, 1, seed=0)
        torch.manual_seed(0)
        self.explorer = make_explorer(self.cfg.student, self.policy, self.collector.action_mask).eval()
        torch.nn.init.normal_(self.explorer.value.layers[-1].weight)  # type: ignore[arg-type]  # values that differ
        self.data = WorldModelData(self.policy, self.states, self.cfg.environment.instruction, cache_vision=True)
        self.act = ExplorerActions(self.explorer, self.states, self.cfg.environment.instruction, 0, 0, E)
        self.chunk = self.cfg.student.chunk_exec_steps
        self.decisions = STEPS // self.chunk  # of an episode
        self.played = [self.play() for _ in range(2)]

    def play(self, episode: int | None = None) -> tuple[list[EpisodeRecord], RolloutStorage]:
        """The next episode, or `episode` in scenes built anew, as after a checkpoint."""
        if episode is not None:
            self.collector.rebuild(episode)
        rollout = RolloutStorage(self.decisions, E, CPU)
        with self.act.filling(rollout):
            records = self.collector.collect_steps(E * STEPS, self.act)
            self.act.finish(records)
        return records, rollout


@pytest.fixture(scope="module")
def setting(teacher_with_heads: Path) -> Iterator[Setting]:
    made = Setting(teacher_with_heads, [])
    yield made
    made.collector.close()


@pytest.fixture(scope="module")
def in_pairs(teacher_with_heads: Path) -> Iterator[Setting]:
    """Two actions of every chunk are carried out."""
    made = Setting(teacher_with_heads, ["student.chunk_exec_steps=2"])
    yield made
    made.collector.close()


@pytest.fixture(params=["setting", "in_pairs"])
def either(request: pytest.FixtureRequest) -> Setting:
    found: Setting = request.getfixturevalue(request.param)
    return found


def test_records_of_the_student_hold_the_head_picture_of_every_frame(setting: Setting) -> None:
    records, _ = setting.play(1)
    teacher = EpisodeCollector(setting.cfg, "teacher", 0, "cpu", 4, 1, seed=0)
    teacher.rebuild(1)
    for env, record in zip(teacher.envs.envs, records, strict=True):
        observation, _ = env.reset(options={"episode": 1})
        for t in range(STEPS + 1):
            # Executed actions are float32, so in the replay the edge of an object may fall on the next pixel.
            for seen, recorded in (
                (observation["image0"], record.head[t]),
                (observation["image1"], record.wrist_vlm[t]),
            ):
                assert (np.abs(seen.astype(int) - recorded.astype(int)) > 2).mean() < 0.002
            if t < STEPS:
                observation, *_ = env.step(record.actions[t])
    teacher.close()


def test_the_explorer_sees_what_a_wrist_only_window_of_training_holds(either: Setting) -> None:
    """Independent path: episode buffer and `WorldModelData.batch` with the head hidden, a_t unknown. The memory is
    written at every step, also where a chunk goes on and nothing is decided."""
    setting = either
    records, rollout = setting.played[0]
    stored = rollout.observation
    buffer = EpisodeBuffer(E, 4, 1)
    for e, record in enumerate(records):
        buffer.add(setting.data.encode(record, e))
    windows = buffer.gather(WindowIndex([0, 1], [0, 0], STEPS, 0))
    full = setting.data.batch(windows, torch.zeros(E, dtype=torch.bool), torch.zeros(E, STEPS, dtype=torch.bool))
    h = setting.policy.initial_memory_state(E)
    for t in range(STEPS):
        batch = full.window(t, t + 1)
        batch.actions[:, 0, -1] = 0.0  # not known yet
        with torch.no_grad():
            prefix, features = setting.explorer.look(batch, h)
            if t % setting.chunk == 0:
                n = t // setting.chunk
                # float16 features of the buffer against float32 ones; the head's tokens are masked, not absent
                torch.testing.assert_close(stored["features"][n], prefix.features, rtol=0, atol=2e-2)
                torch.testing.assert_close(stored["state"][n], prefix.state, rtol=1e-5, atol=1e-5)
                assert stored["valid"][n].sum(1).tolist() == prefix.valid.sum(1).tolist()
            action = torch.from_numpy(np.stack([r.actions[t] for r in records]))
            h = setting.policy(
                batch, mode="write_memory", initial_memory_state=h, memory_features=features, action=action
            )["memory_state"]


def test_features_kept_while_acting_are_those_of_encoding_the_episode(setting: Setting) -> None:
    records, _ = setting.play()
    for e, record in enumerate(records):
        kept, fresh = setting.data.encode(record, e, setting.act.wrist(e)), setting.data.encode(record, e)
        for name, value in fresh.to_dict().items():
            if isinstance(value, torch.Tensor):
                torch.testing.assert_close(getattr(kept, name).float(), value.float(), rtol=1e-3, atol=2e-3)


def test_executed_actions_are_the_clipped_ends_of_the_chains(either: Setting) -> None:
    records, rollout = either.played[0]
    assert rollout.full and len(rollout["x"]) == STEPS // either.chunk
    for t in range(STEPS):
        decision, part = divmod(t, either.chunk)
        asked = rollout["x"][decision, :, -1, part, :8].clamp(-1, 1).numpy()
        executed = np.stack([r.actions[t] for r in records])
        assert not executed[:, 8:].any()
        # joint limits may cut an action, never turn or enlarge it
        assert (np.abs(executed[:, :8]) <= np.abs(asked) + 1e-5).all()
        assert (np.abs(executed[:, :8] - asked) < 1e-5).mean() > 0.5


def test_an_episode_is_a_function_of_seed_rank_environment_and_index(setting: Setting) -> None:
    (records, rollout), (expected, before) = setting.play(1), setting.play(1)
    for a, b in zip(records, expected, strict=True):
        np.testing.assert_array_equal(a.actions, b.actions)
    assert torch.equal(rollout["x"], before["x"])
    assert not torch.equal(setting.played[0][1]["x"][0], before["x"][0])


def test_an_episode_that_is_played_again_takes_the_place_of_what_was_seen_of_it(either: Setting) -> None:
    """As after the loss of an environment: the collector starts a second time with step 0."""
    setting, decisions = either, either.decisions
    _, expected = setting.play(1)
    rollout = RolloutStorage(2 * decisions, E, CPU)

    def lost(observations: Observations, episode: int, step: int) -> np.ndarray:
        if step == 3:
            raise ConnectionError
        return setting.act(observations, episode, step)

    for breaks in (False, True):
        with setting.act.filling(rollout):
            if breaks:
                setting.collector.rebuild(1)
                with pytest.raises(ConnectionError):
                    setting.collector.collect_steps(E * STEPS, lost)
                assert rollout.length == decisions + math.ceil(3 / setting.chunk)
            setting.collector.rebuild(1)
            setting.act.finish(setting.collector.collect_steps(E * STEPS, setting.act))
    assert rollout.full and rollout.cut_index[0].tolist() == [decisions - 1] * E + [2 * decisions - 1] * E
    for half in rollout["x"].split(decisions):
        assert torch.equal(half, expected["x"])
    setting.collector.collect_steps(E * STEPS, setting.act)  # outside `filling`: kept nowhere
    assert rollout.full


def test_the_last_observation_is_that_of_the_environment(setting: Setting) -> None:
    env = setting.collector.envs.envs[0].unwrapped
    for stride in (1, 2):
        student = type(env)(setting.cfg.environment, obs_img_stride=stride, max_steps=STEPS)
        observation, _ = student.reset()
        pictures, states, executed = [observation["image0"]], [observation["state"]], []
        rng = np.random.default_rng(0)
        for _ in range(STEPS):
            action = np.zeros(32, np.float32)
            action[:8] = rng.uniform(-1, 1, 8)
            observation, _, _, _, info = student.step(action)
            pictures.append(observation["image0"])
            states.append(observation["state"])
            executed.append(info["executed_action"])
        wrist = np.stack(pictures)
        record = EpisodeRecord(wrist, wrist, wrist, np.stack(states), np.stack(executed), 0, 0)
        found = last_observation([record], 4, stride)
        for key in ("history_mask", "action_history", "action_known", "state", "image0"):
            np.testing.assert_allclose(found[key][0], observation[key], atol=1e-6, err_msg=key)
        np.testing.assert_array_equal(found["image0_history"][0, -1], observation["image0_history"][-1])
        student.close()


# --- rewards ---------------------------------------------------------------------------------------------------------


def _scored(setting: Setting) -> tuple[EpisodeBuffer, RewardModel]:
    buffer = EpisodeBuffer(2 * E, 4, 1)
    for r, (records, _) in enumerate(setting.played):
        for e, record in enumerate(records):
            buffer.add(setting.data.encode(record, r * E + e))
    return buffer, RewardModel(setting.policy, setting.data)


def test_scores_are_those_of_unrolling_both_views_step_by_step(setting: Setting) -> None:
    buffer, model = _scored(setting)
    scores = model.score(buffer, [1, 2])
    windows = buffer.gather(WindowIndex([1, 2], [0, 0], STEPS, 0))
    states = {}
    for head in (False, True):
        batch = setting.data.batch(windows, torch.full((2,), head))
        h, seen = setting.policy.initial_memory_state(2), []
        for t in range(STEPS):
            seen.append(h)
            with torch.no_grad():
                out = setting.policy(
                    batch.window(t, t + 1), mode="world_model_window", initial_memory_state=h, uncertainty=True
                )
            h = out["memory_state"]
            if not head:
                sizes = [1, 4, 16]
                per_scale = [x.mean(-1) for x in out["disagreement"][:, 0].split(sizes, -1)]
                torch.testing.assert_close(
                    scores.uncertainty["disagreement"][:, t], torch.stack(per_scale).mean(0), rtol=1e-4, atol=1e-6
                )
        states[head] = torch.stack([*seen, h]).permute(2, 0, 1, 3)  # (E, T + 1, layers, hidden)
    expected = memory_divergence(states[True], states[False])
    torch.testing.assert_close(scores.divergence, expected, rtol=1e-4, atol=1e-5)
    assert not scores.divergence[:, 0].any() and (scores.divergence[:, 1:] > 0).all()
    torch.testing.assert_close(scores.memory, states[False][:, :-1], rtol=1e-4, atol=1e-5)


def test_scores_do_not_depend_on_how_episodes_and_steps_are_grouped(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer, model = _scored(setting)
    together = model.score(buffer, [0, 1, 2, 3])
    monkeypatch.setattr("rl.training.reward_model.TOGETHER", 3)
    monkeypatch.setattr("rl.training.reward_model.WINDOW", 4)
    apart = model.score(buffer, [0, 1, 2, 3])
    for name in ("divergence", "nll", "memory"):
        torch.testing.assert_close(getattr(apart, name), getattr(together, name), rtol=1e-4, atol=1e-5)
    assert together.uncertainty.keys() == apart.uncertainty.keys() == {"entropy", "disagreement"}


def test_a_single_environment_pays_what_scoring_its_whole_episode_gives(setting: Setting) -> None:
    student, mask = setting.cfg.student, torch.from_numpy(setting.collector.action_mask)
    model = RewardModel(setting.policy, setting.data)
    env = StudentEnv(setting.cfg.environment, teacher_policy=IntrinsicStepReward(model, student, mask), max_steps=STEPS)
    with pytest.raises(ValueError, match="before begin"):
        env.teacher_policy.step(np.zeros(32, np.float32), None)
    frames, actions, rewards, parts = [], [], [], []
    observation, info = env.reset()
    rng = np.random.default_rng(0)
    while True:
        wrist = observation["image0"], observation["image0_history"][-1]
        frames.append((info["privileged"]["head"], wrist[1], wrist[0], observation["state"]))
        if len(rewards) == STEPS:
            break
        action = np.zeros(32, np.float32)
        action[:8] = rng.uniform(-1, 1, 8)
        observation, reward, _, _, info = env.step(action)
        rewards.append(reward)
        parts.append(info["reward_components"])
        actions.append(info["executed_action"])
    env.close()
    record = EpisodeRecord(*(np.stack(x) for x in zip(*frames, strict=True)), np.stack(actions), 0, 0)
    buffer = EpisodeBuffer(1, 4, 1)
    buffer.add(setting.data.encode(record, 0))
    scores = model.score(buffer, [0])
    raw = reward_components(
        student.rewards, scores.divergence, scores.uncertainty, torch.from_numpy(record.actions)[None], mask,
        student.ppo.gamma, chunk=1,
    )  # fmt: skip
    for name, values in raw.items():
        torch.testing.assert_close(torch.tensor([p[name] for p in parts]), values[0], rtol=1e-3, atol=1e-5, msg=name)
    expected = total_reward(student.rewards, raw, raw)[0]
    torch.testing.assert_close(torch.tensor(rewards), expected, rtol=1e-3, atol=1e-5)


# --- the batch of PPO ------------------------------------------------------------------------------------------------


def _rollout(values: torch.Tensor, finals: torch.Tensor) -> RolloutStorage:
    """R rounds of N decisions of E environments whose prefixes and chains carry their row number."""
    R, N, E = values.shape
    rollout = RolloutStorage(R * N, E, CPU)
    for r in range(R):
        for n in range(N):
            ids = (r * N + n) * E + torch.arange(E).float()
            prefix = dict.fromkeys(("keys", "values", "valid", "block", "state", "features"), ids[:, None])
            x, steps = ids[:, None, None, None].expand(-1, 2, 1, 1), ids[:, None].long()
            rollout.add(prefix, x=x, steps=steps, log_prob=-ids, value=values[r, n])
        rollout.cut(torch.arange(E), value=finals[r])
    return rollout


def test_advantages_belong_to_their_rows_and_time_limits_are_bootstrapped(world: ParallelContext) -> None:
    """Two rounds of two environments and three decisions; oracle: GAE written as a loop over one episode."""
    R, N = 2, 3
    g = torch.Generator().manual_seed(0)
    values, finals, rewards = (torch.randn(s, generator=g) for s in ((R, N, E), (R, E), (R, E, N)))
    cfg = FlowPPOConfig(gamma=0.9, gae_lambda=0.8)
    batch = explorer_update.make_batch(_rollout(values, finals), rewards, cfg, world)
    advantage, returns = torch.zeros(R * N * E), torch.zeros(R * N * E)
    for r in range(R):
        for e in range(E):
            running = 0.0
            for n in reversed(range(N)):
                after = finals[r, e] if n == N - 1 else values[r, n + 1, e]
                delta = rewards[r, e, n] + 0.9 * after - values[r, n, e]
                running = float(delta) + 0.9 * 0.8 * running
                row = r * N * E + n * E + e
                advantage[row], returns[row] = running, running + values[r, n, e]
    torch.testing.assert_close(batch.returns, returns)
    torch.testing.assert_close(batch.advantage, (advantage - advantage.mean()) / advantage.std(), rtol=1e-4, atol=1e-5)
    assert torch.equal(batch.value, values.flatten())
    for carried in (batch.prefix.state[:, 0], -batch.log_prob, batch.chain.x[:, 0, 0, 0]):
        assert torch.equal(carried, torch.arange(12.0))
    # an episode is one environment of one round, in time order
    assert batch.episodes.tolist() == [[0, 2, 4], [1, 3, 5], [6, 8, 10], [7, 9, 11]]


def test_the_rows_of_ppo_are_the_decisions_that_were_played(either: Setting, world: ParallelContext) -> None:
    """Likelihoods by the training forward, and GAE as a loop from the last decision back, of one played episode."""
    records, rollout = either.played[1]
    N, mask = either.decisions, torch.from_numpy(either.collector.action_mask)
    actions = torch.stack([torch.from_numpy(r.actions) for r in records])
    none = torch.zeros(E, STEPS + 1)
    raw = reward_components(either.cfg.student.rewards, none, {}, actions, mask, 0.9, either.chunk)
    change = (actions[:, 1:] - actions[:, :-1])[..., :8].square().mean(-1)
    steps = torch.cat([torch.zeros(E, 1), change], 1)
    reward = torch.stack([steps[:, n * either.chunk : (n + 1) * either.chunk].sum(1) for n in range(N)], 1)
    torch.testing.assert_close(raw["action_rate"], reward)
    cfg = FlowPPOConfig(gamma=0.9, gae_lambda=0.8)
    batch = explorer_update.make_batch(rollout, raw["action_rate"][None], cfg, world)
    assert batch.episodes.tolist() == [[n * E + e for n in range(N)] for e in range(E)]
    with torch.no_grad():
        out = either.explorer(batch.prefix, batch.chain)
    torch.testing.assert_close(out["log_prob"], batch.log_prob, rtol=0, atol=1e-3)
    torch.testing.assert_close(out["value"], batch.value, rtol=0, atol=1e-4)
    assert len(batch.value.unique()) == E * N
    values, final = rollout["value"], rollout.cut_states()["value"]
    for e in range(E):
        running, after = 0.0, float(final[e])
        for n in reversed(range(N)):
            running = float(reward[e, n]) + 0.9 * after - float(values[n, e]) + 0.9 * 0.8 * running
            after = float(values[n, e])
            assert float(batch.returns[n * E + e]) == pytest.approx(running + after, abs=1e-5)


def test_every_epoch_of_an_update_draws_whole_episodes_in_even_minibatches(world: ParallelContext) -> None:
    cfg = FlowPPOConfig(minibatches=3)
    batch = explorer_update.make_batch(
        _rollout(torch.zeros(2, 3, E), torch.zeros(2, E)), torch.zeros(2, E, 3), cfg, world
    )
    update = explorer_update.ExplorerUpdate(cfg, None, world, 1, 1.0)  # type: ignore[arg-type]
    partitions = list(update._partitions(batch, 2, torch.Generator().manual_seed(0)))
    assert len(partitions) == 2
    g = torch.Generator().manual_seed(0)
    for partition in partitions:
        order = torch.randperm(4, generator=g).tolist()
        expected = [[order[0], order[1]], [order[2]], [order[3]]]
        found = [p.view(-1, 3).tolist() for p in partition]
        assert found == [[batch.episodes[i].tolist() for i in episodes] for episodes in expected]


def test_log_probs_that_do_not_agree_stop_a_run_before_its_first_step(world: ParallelContext) -> None:
    update = explorer_update.ExplorerUpdate(FlowPPOConfig(), None, world, 1, 1.0)  # type: ignore[arg-type]
    with pytest.raises(CollectiveError, match=r"differ by 2\.00e-03"):
        update._check(2e-3, 0.0)
    with pytest.raises(CollectiveError, match=r"differs from 1 by 2\.00e-05"):
        update._check(0.0, 2e-5)
    with pytest.raises(CollectiveError):
        update._check(float("nan"), 0.0)
    assert not update.checked
    update._check(1e-4, 1e-6)
    assert update.checked
    update._check(1.0, 1.0)  # later updates only report
