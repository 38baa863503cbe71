"""The history object against a brute-force construction from the full list of an episode."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.envs.history import History


def _image(t: int) -> np.ndarray:
    return np.full((2, 2, 3), t + 1, np.uint8)


def _action(t: int) -> np.ndarray:
    return np.array([2.0**-t, t], np.float32)


@settings(max_examples=150, deadline=None)
@given(slots=st.integers(1, 5), stride=st.integers(1, 4), steps=st.integers(0, 18), earlier=st.integers(0, 7))
def test_view_equals_brute_force_over_the_episode(slots: int, stride: int, steps: int, earlier: int) -> None:
    history = History(slots, stride, (2, 2, 3), 2)
    history.reset(np.full((2, 2, 3), 200, np.uint8))  # an earlier episode leaves nothing behind
    for _ in range(earlier):
        history.append(np.full(2, 99.0, np.float32), np.full((2, 2, 3), 250, np.uint8))
    history.reset(_image(0))
    for t in range(steps):
        history.append(_action(t), _image(t + 1))

    view = history.view()

    for i in range(slots):
        time = steps - (slots - 1 - i) * stride
        np.testing.assert_array_equal(view.images[i], _image(max(time, 0)))
        assert view.valid[i] == (time >= 0)
        assert view.action_known[i] == (i < slots - 1)
        expected = np.zeros(2)
        for executed in range(time, time + stride):
            if i < slots - 1 and executed >= 0:
                expected += _action(executed)
        np.testing.assert_allclose(view.actions[i], expected, rtol=1e-6)


def test_example_of_the_design_document() -> None:
    # [img0..img3] + [a0, a1, a2, unknown]: image i was seen before action i.
    history = History(4, 1, (1, 1, 3), 1)
    history.reset(np.full((1, 1, 3), 10, np.uint8))
    for t in range(3):
        history.append(np.array([t + 1.0], np.float32), np.full((1, 1, 3), 11 + t, np.uint8))
    view = history.view()
    assert view.images[:, 0, 0, 0].tolist() == [10, 11, 12, 13]
    assert view.actions[:, 0].tolist() == [1.0, 2.0, 3.0, 0.0]
    assert view.valid.tolist() == [True] * 4
    assert view.action_known.tolist() == [True, True, True, False]


def test_start_of_an_episode_repeats_the_first_frame_with_zero_actions() -> None:
    history = History(4, 1, (1, 1, 3), 1)
    history.reset(np.full((1, 1, 3), 7, np.uint8))
    history.append(np.array([0.5], np.float32), np.full((1, 1, 3), 8, np.uint8))
    view = history.view()
    assert view.images[:, 0, 0, 0].tolist() == [7, 7, 7, 8]
    assert view.actions[:, 0].tolist() == [0.0, 0.0, 0.5, 0.0]
    assert view.valid.tolist() == [False, False, True, True]


def test_views_are_copies() -> None:
    history = History(2, 1, (1, 1, 3), 1)
    history.reset(np.zeros((1, 1, 3), np.uint8))
    before = history.view()
    history.append(np.ones(1, np.float32), np.full((1, 1, 3), 9, np.uint8))
    assert before.images.max() == 0 and before.actions.max() == 0


@pytest.mark.parametrize(("slots", "stride"), [(0, 1), (1, 0), (-1, 2)])
def test_lengths_below_one_are_refused(slots: int, stride: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        History(slots, stride, (1, 1, 3), 1)


def test_using_the_history_before_an_episode_is_a_bug() -> None:
    with pytest.raises(AssertionError, match="reset"):
        History(2, 1, (1, 1, 3), 1).view()
