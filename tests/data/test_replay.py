"""The replay against a brute-force book of everything that happened.

Every observation is a number that names (environment, episode, step), so a row that mixes episodes cannot hide.
"""

from dataclasses import dataclass, field

import gymnasium as gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.data.free_memory import require_memory
from rl.data.replay import Replay
from rl.data.replay_layout import Entry, layout_of, replay_bytes
from rl.types import VectorStep

VECTOR = {"": Entry((2,), torch.float32, torch.float32)}


@dataclass
class Book:
    """Environments whose ends are given; remembers every transition by its first observation."""

    num_envs: int
    episode: list[int] = field(default_factory=list)
    t: list[int] = field(default_factory=list)
    transitions: dict[tuple[int, int, int], tuple[float, bool, bool]] = field(default_factory=dict)

    def reset(self) -> torch.Tensor:
        self.episode = [e + 1 for e in self.episode] or [0] * self.num_envs
        self.t = [0] * self.num_envs
        return self.observe()

    def name(self, env: int) -> list[float]:
        return [float(env * 1000 + self.episode[env]), float(self.t[env])]

    def observe(self) -> torch.Tensor:
        return torch.tensor([self.name(e) for e in range(self.num_envs)])

    def step(self, ends: list[str]) -> tuple[torch.Tensor, VectorStep]:
        """ends: of each environment run, terminated, truncated, both or invalid (a reset step)."""
        actions = self.observe()[:, 1:] / 10
        rewards = torch.rand(self.num_envs)
        final, kinds = [], torch.zeros(3, self.num_envs, dtype=torch.bool)
        for e, end in enumerate(ends):
            term, trunc = end in ("terminated", "both"), end in ("truncated", "both")
            kinds[:, e] = torch.tensor([term, trunc, end != "invalid"])
            if end == "invalid":
                self.cut(e)
                self.episode[e] += 1
                self.t[e] = 0
            else:
                self.transitions[e, self.episode[e], self.t[e]] = (float(rewards[e]), term, term or trunc)
                self.t[e] += 1
            final.append(self.name(e))
            if term or trunc:
                self.episode[e] += 1
                self.t[e] = 0
        return actions, VectorStep(self.observe(), torch.tensor(final), rewards, *kinds, {})

    def cut(self, env: int) -> None:
        """A running episode ends after its newest transition, as if truncated there."""
        last = (env, self.episode[env], self.t[env] - 1)
        if last in self.transitions:
            self.transitions[last] = (*self.transitions[last][:2], True)

    def window(self, env: int, episode: int, t: int, n: int, gamma: float) -> tuple[float, float, int]:
        """Return, discount and length of the n-step window from a transition, by the definition."""
        total, m = 0.0, 0
        while m < n and (env, episode, t + m) in self.transitions:
            reward, terminated, ended = self.transitions[env, episode, t + m]
            total += gamma**m * reward
            m += 1
            if ended:
                return total, 0.0 if terminated else gamma**m, m
        return total, gamma**m, m


def check_rows(replay: Replay, book: Book, rows: int = 200) -> set[tuple[int, int, int]]:
    batch = replay.sample(rows)
    seen = set()
    assert isinstance(batch.observation, torch.Tensor) and isinstance(batch.next_observation, torch.Tensor)
    for i in range(rows):
        code, t = batch.observation[i].tolist()
        env, episode = divmod(int(code), 1000)
        total, discount, m = book.window(env, episode, int(t), replay.n_step, replay.gamma)
        assert m > 0, "a row that is no transition"
        assert batch.next_observation[i].tolist() == [code, t + m]
        assert batch.action[i].item() == pytest.approx(t / 10)
        assert batch.reward[i].item() == pytest.approx(total, rel=1e-5)
        assert batch.discount[i].item() == pytest.approx(discount, rel=1e-5)
        seen.add((env, episode, int(t)))
    return seen


ends = st.lists(
    st.lists(st.sampled_from(["run"] * 5 + ["terminated", "truncated", "both", "invalid"]), min_size=2, max_size=2),
    min_size=1, max_size=40,
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(ends=ends, slots=st.integers(5, 16), n_step=st.integers(1, 4), reset_at=st.integers(0, 40))
def test_no_row_ever_mixes_episodes_whatever_ends_when_and_how_often_the_ring_turned(
    ends: list[list[str]], slots: int, n_step: int, reset_at: int
) -> None:
    torch.manual_seed(0)
    book = Book(2)
    replay = Replay(VECTOR, 1, 2, slots, "cpu", gamma=0.9, n_step=n_step)
    replay.begin(book.reset())
    for i, kinds in enumerate(ends):
        if i == 0:
            kinds = ["run" if k == "invalid" else k for k in kinds]  # a reset step cannot come first
        if i == reset_at:
            book.cut(0)
            book.cut(1)
            replay.begin(book.reset())
        replay.add(*book.step(kinds))
        check_rows(replay, book, 30)
    assert len(replay) <= 2 * slots


def test_every_transition_that_is_kept_is_drawn_and_the_newest_is_among_them() -> None:
    book, replay = Book(2), Replay(VECTOR, 1, 2, 12, "cpu")
    replay.begin(book.reset())
    for i in range(30):
        replay.add(*book.step(["truncated" if i % 7 == 6 else "run", "run"]))
    seen = check_rows(replay, book, 3000)
    assert len(seen) == len(replay)
    assert {(1, 0, t) for t in range(19, 30)} == {s for s in seen if s[0] == 1}  # 12 slots: 11 transitions


def test_transitions_are_drawn_uniformly() -> None:
    book, replay = Book(2), Replay(VECTOR, 1, 2, 9, "cpu")
    replay.begin(book.reset())
    for _ in range(20):
        replay.add(*book.step(["run", "run"]))
    batch = replay.sample(16000)
    assert isinstance(batch.observation, torch.Tensor)
    _, counts = batch.observation.unique(dim=0, return_counts=True)
    assert len(counts) == 16 and (counts.float() / 1000 - 1).abs().max() < 0.15  # 5 standard deviations


def test_a_restored_replay_gives_the_rows_of_the_saved_one_and_goes_on_like_it() -> None:
    book = Book(2)
    replays = [Replay(VECTOR, 1, 2, 8, "cpu", n_step=2) for _ in range(2)]
    replays[0].begin(book.reset())
    for i in range(5):
        replays[0].add(*book.step(["terminated" if i == 3 else "run", "truncated" if i == 1 else "run"]))
    replays[1].load_state_dict(replays[0].state_dict())
    for _ in range(12):
        step = book.step(["run", "truncated"])
        rows = []
        for replay in replays:
            replay.add(*step)
            rows.append(replay.sample(50, torch.Generator().manual_seed(3)))
        for a, b in zip(vars(rows[0]).values(), vars(rows[1]).values(), strict=True):
            assert torch.equal(a, b)


def test_a_saved_replay_of_another_size_or_task_is_refused() -> None:
    state = Replay(VECTOR, 1, 2, 8, "cpu").state_dict()
    with pytest.raises(ValueError, match="saved replay has 8 slots for 2 environments, this one 9 for 2"):
        Replay(VECTOR, 1, 2, 9, "cpu").load_state_dict(state)
    with pytest.raises(ValueError, match="holds other observations or actions"):
        Replay(VECTOR, 3, 2, 8, "cpu").load_state_dict(state)
    with pytest.raises(ValueError, match="replay is empty"):
        Replay(VECTOR, 1, 2, 8, "cpu").sample(1)


# --- pictures: every frame once --------------------------------------------------------------------------------------


def test_frame_stacks_are_rebuilt_and_do_not_reach_before_the_start_of_their_episode() -> None:
    space = gym.spaces.Dict(
        {"pixels": gym.spaces.Box(0, 255, (6, 2, 2), np.uint8), "state": gym.spaces.Box(-1, 1, (2,), np.float32)}
    )
    layout = layout_of(space, torch.bfloat16, frame_stack=3)
    assert layout["pixels"].frame == (2, 2, 2) and layout["state"].stored == torch.bfloat16
    replay = Replay(layout, 1, 1, 14, "cpu")
    frames: list[torch.Tensor] = []
    counter = 0

    def observe(first: bool) -> dict[str, torch.Tensor]:
        nonlocal counter, frames
        counter += 1
        frame = torch.full((1, 2, 2, 2), counter, dtype=torch.uint8)
        frames = [frame] * 3 if first else [*frames[1:], frame]
        return {"pixels": torch.cat(frames, 1), "state": torch.tensor([[counter / 256, 0.5]])}

    seen: dict[int, dict[str, torch.Tensor]] = {}
    obs = observe(True)
    replay.begin(obs)
    for i in range(40):
        final = observe(False)
        ended = i % 6 == 5
        seen[i] = {"now": obs["pixels"], "next": final["pixels"], "state": obs["state"]}
        obs = observe(True) if ended else final
        flag = torch.tensor([ended])
        step = VectorStep(obs, final, torch.tensor([float(i)]), torch.tensor([False]), flag, torch.tensor([True]), {})
        replay.add(torch.zeros(1, 1), step)
    batch = replay.sample(200)
    assert isinstance(batch.observation, dict) and isinstance(batch.next_observation, dict)
    for row, i in enumerate(batch.reward.int().tolist()):
        assert torch.equal(batch.observation["pixels"][row], seen[i]["now"][0])
        assert torch.equal(batch.next_observation["pixels"][row], seen[i]["next"][0])
        assert torch.equal(batch.observation["state"][row], seen[i]["state"][0])  # exact in bfloat16
    assert len(batch.reward.unique()) == len(replay) >= 9


# --- memory ----------------------------------------------------------------------------------------------------------


def test_the_announced_memory_is_what_the_rings_take() -> None:
    space = gym.spaces.Dict(
        {"pixels": gym.spaces.Box(0, 255, (12, 8, 8), np.uint8), "state": gym.spaces.Box(-1, 1, (5,), np.float32)}
    )
    replay = Replay(layout_of(space, torch.bfloat16, 4), 7, 3, 10, "cpu")
    held = [*replay._rings.values(), *replay._observations.values()]
    assert replay.bytes == sum(t.nbytes for t in held) == 30 * (3 * 64 + 2 * 5 + 4 * 7 + 4 + 2 + 8)


def test_memory_that_is_not_there_is_refused_with_bytes_and_flag() -> None:
    needed = replay_bytes(VECTOR, 7, 10**9, 1000)
    with pytest.raises(ValueError, match=rf"needs {needed} bytes on cpu, .* lower sac\.buffer_size"):
        require_memory(needed, torch.device("cpu"), "the replay", "sac.buffer_size")


def test_observations_without_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="replay needs a Box"):
        layout_of(gym.spaces.Discrete(3), torch.float32)
    with pytest.raises(ValueError, match="does not consist of 4 frames"):
        layout_of(gym.spaces.Box(0, 255, (3, 8, 8), np.uint8), torch.float32, 4)
