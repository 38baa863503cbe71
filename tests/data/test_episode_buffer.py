"""The windows of the episode buffer against a brute-force construction from the list of steps.

Features are numbers that tell their frame: token l of frame f is 10 f + l, its latent f + 0.5, its state 100 + f.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.data.episode_buffer import EpisodeBuffer, EpisodeFeatures, WindowIndex, window_of
from rl.envs.history import History

TOKENS, ACTION_DIM, LAYERS, HIDDEN = 3, 2, 2, 4


def _action(t: int) -> list[float]:
    return [2.0 ** -(t + 1), float(t + 1)]  # sums of the first entry tell which actions are in it


def _episode(steps: int, index: int = 0) -> EpisodeFeatures:
    frames = torch.arange(steps + 1)
    return EpisodeFeatures(
        ids_FL=(10 * frames[:, None] + torch.arange(TOKENS)).to(torch.int16),
        latents_FCPP=(frames + 0.5).half()[:, None, None, None].expand(-1, 2, 1, 1).clone(),
        vision=(frames + 0.25).half()[:, None, None, None].expand(-1, 2, 1, 5).clone(),
        actions_TA=torch.tensor([_action(t) for t in range(steps)]),
        states_FS=(frames + 100.0)[:, None].expand(-1, 3).clone(),
        memory_TMH=(frames[:-1].half() / 8)[:, None, None].expand(-1, LAYERS, HIDDEN).clone(),
        index=index,
    )


@settings(max_examples=120, deadline=None)
@given(
    steps=st.integers(4, 12), stride=st.integers(1, 3), num_obs=st.integers(1, 5), start=st.integers(-5, 8),
    length=st.integers(1, 6),
)  # fmt: skip
def test_a_window_equals_brute_force_over_the_episode(
    steps: int, stride: int, num_obs: int, start: int, length: int
) -> None:
    window = window_of(_episode(steps), start, length, num_obs, stride)
    for k in range(length):
        step = start + k
        now = min(max(step, 0), steps - stride)
        for i in range(num_obs):
            time = now - (num_obs - 1 - i) * stride
            frame = max(time, 0)
            assert window["history_ids"][k, i].tolist() == [10 * frame + token for token in range(TOKENS)]
            assert window["history_latents"][k, i].unique().tolist() == [frame + 0.5]
            assert bool(window["history_mask"][k, i]) == (time >= 0)
            executed = [_action(t) for t in range(time, time + stride) if t >= 0]
            expected = np.sum([[0.0, 0.0], *executed], axis=0)
            np.testing.assert_allclose(window["actions"][k, i].numpy(), expected, atol=1e-5)
        assert window["vision"][k].float().unique().tolist() == [now + 0.25]
        assert window["state"][k].tolist() == [100.0 + now] * 3
        assert window["target_ids"][k].tolist() == [10 * (now + stride) + token for token in range(TOKENS)]
        assert window["target_latents"][k].unique().tolist() == [now + stride + 0.5]
        assert bool(window["reset"][k]) == (step == 0)
        assert bool(window["valid"][k]) == (step >= 0 and step + stride <= steps)
    first = min(max(start, 0), steps - stride)
    assert window["memory"].unique().tolist() == [first / 8] and window["memory"].shape == (LAYERS, HIDDEN)


@pytest.mark.parametrize("stride", [1, 2, 3])
def test_a_window_shows_what_the_history_of_the_environment_shows(stride: int) -> None:
    steps, slots = 9, 4
    window = window_of(_episode(steps), 0, steps - stride + 1, slots, stride)
    history = History(slots, stride, (1, 1, 1), ACTION_DIM)
    history.reset(np.zeros((1, 1, 1), np.uint8))
    for t in range(steps - stride + 1):
        view = history.view()
        assert (window["history_ids"][t, :, 0] // 10).tolist() == view.images[:, 0, 0, 0].tolist()
        assert window["history_mask"][t].tolist() == view.valid.tolist()
        # The newest action is unknown to whoever observes; the buffer knows what was done.
        np.testing.assert_allclose(window["actions"][t, :-1].numpy(), view.actions[:-1], atol=1e-5)
        history.append(np.array(_action(t), np.float32), np.full((1, 1, 1), t + 1, np.uint8))


def test_stride_two_by_hand() -> None:
    # Six steps, two slots, stride 2, step 3: frames 1 and 3, actions a_1 + a_2 and a_3 + a_4, target frame 5.
    window = window_of(_episode(6), 3, 1, 2, 2)
    assert window["history_ids"][0, :, 0].tolist() == [10, 30] and window["target_ids"][0, 0] == 50
    assert window["actions"][0, :, 1].tolist() == [2 + 3, 4 + 5]
    assert window["history_mask"][0].tolist() == [True, True]


def test_burn_in_may_reach_before_the_episode_but_trained_steps_never_leave_it() -> None:
    buffer = EpisodeBuffer(4, num_obs=4, stride=2)
    for i in range(4):
        buffer.add(_episode(9, i))
    where = buffer.sample(400, length=3, burn_in=2, generator=torch.Generator().manual_seed(0))
    # Trained steps begin at 0 .. 9 - 2 + 1 - 3 = 5, so windows begin at -2 .. 3; with 400 draws all of them occur.
    assert set(where.start) == set(range(-2, 4)) and set(where.episode) == {0, 1, 2, 3}
    assert (where.length, where.burn_in) == (5, 2)
    valid = buffer.gather(where)["valid"]
    assert valid.shape == (400, 5) and not valid[:, :2].any() and valid[:, 2:].all()


def test_windows_that_begin_with_an_episode_reset_the_memory_there() -> None:
    buffer = EpisodeBuffer(1, num_obs=4, stride=1)
    buffer.add(_episode(6))
    batch = buffer.gather(WindowIndex([0, 0, 0], [-2, 0, 1], length=4, burn_in=2))
    assert batch["reset"].tolist() == [[False, False, True, False], [True, False, False, False], [False] * 4]
    assert batch["memory"][:, 0, 0].tolist() == [0.0, 0.0, 1 / 8]  # the state stored before steps 0, 0 and 1


def test_sampling_is_driven_by_the_generator_alone() -> None:
    buffer = EpisodeBuffer(3, 4, 1)
    for i in range(3):
        buffer.add(_episode(8, i))

    def draw(seed: int) -> WindowIndex:
        return buffer.sample(16, 3, 1, torch.Generator().manual_seed(seed))

    torch.manual_seed(5)
    first = draw(7)
    torch.manual_seed(6)
    assert draw(7) == first and draw(8) != first


def test_fresh_memory_states_are_stored_at_the_steps_they_belong_to() -> None:
    buffer = EpisodeBuffer(2, 4, 1)
    buffer.add(_episode(6, 0))
    buffer.add(_episode(6, 1))
    fresh = torch.arange(2 * 4).float().view(2, 4, 1, 1).expand(2, 4, LAYERS, HIDDEN) + 1
    buffer.write_memory(WindowIndex([1, 0], [-1, 2], length=4, burn_in=0), fresh)
    old = [t / 8 for t in range(6)]
    # Window 0 covers steps -1 .. 2 of episode 1 (its first state lies before the episode), window 1 steps 2 .. 5.
    assert buffer.episodes[1].memory_TMH[:, 1, 3].tolist() == [2, 3, 4, *old[3:]]
    assert buffer.episodes[0].memory_TMH[:, 0, 0].tolist() == [*old[:2], 5, 6, 7, 8]


def test_the_buffer_keeps_the_last_episodes() -> None:
    buffer = EpisodeBuffer(2, 4, 1)
    for i in range(5):
        buffer.add(_episode(6, i))
    assert len(buffer) == 2 and [e.index for e in buffer.episodes] == [3, 4]


def test_the_state_restores_every_episode_bit_for_bit() -> None:
    buffer, other = EpisodeBuffer(3, 4, 1), EpisodeBuffer(3, 4, 1)
    for i in range(2):
        buffer.add(_episode(5 + i, i))
    other.add(_episode(9, 9))
    other.load_state_dict(buffer.state_dict())
    assert [e.index for e in other.episodes] == [0, 1]
    for a, b in zip(buffer.episodes, other.episodes, strict=True):
        for name, value in a.to_dict().items():
            restored = getattr(b, name)
            assert torch.equal(value, restored) if isinstance(value, torch.Tensor) else value == restored


def test_an_empty_buffer_and_episodes_shorter_than_a_window_are_refused() -> None:
    buffer, generator = EpisodeBuffer(2, 4, 2), torch.Generator()
    with pytest.raises(ValueError, match="empty; collect an episode"):
        buffer.sample(1, 3, 0, generator)
    buffer.add(_episode(4))
    assert buffer.last_start(0, 3) == 0
    with pytest.raises(ValueError, match=r"episodes of 4 steps .* window of 4 .*steps_per_episode .*bptt_length"):
        buffer.sample(1, 4, 0, generator)
