"""The mixture of phase 3: shares, priorities, the cap of an episode, importance weights."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl.config import AdversarialReplayConfig
from rl.data.adversarial_replay import AdversarialReplay, MixedWindows, Source, capped_shares
from rl.data.episode_buffer import EpisodeFeatures

T = 6


def episode(index: int, steps: int = T) -> EpisodeFeatures:
    return EpisodeFeatures(
        ids_FL=torch.full((steps + 1, 2), index, dtype=torch.int16),
        latents_FCPP=torch.zeros(steps + 1, 1, 1, 1).half(), vision=torch.zeros(steps + 1, 1, 1, 1).half(),
        actions_TA=torch.zeros(steps, 1), states_FS=torch.zeros(steps + 1, 1),
        memory_TMH=torch.zeros(steps, 1, 1).half(), index=index,
    )  # fmt: skip


def replay(
    counts: tuple[int, int, int], novelty: torch.Tensor | None = None, **settings_of: float
) -> AdversarialReplay:
    """Episodes 0.., random first; novelty (E, T) of the adversarial ones, whose loss is 2 everywhere."""
    made = AdversarialReplay(AdversarialReplayConfig(**settings_of), 1, 1, 1)
    number = 0
    for source, count in zip(Source, counts, strict=True):
        for e in range(count):
            given_novelty = torch.ones(T) if novelty is None else novelty[e]
            made.add(source, episode(number), given_novelty, torch.full((T,), 2.0))
            number += 1
    return made


def draw(
    made: AdversarialReplay, batches: int, batch: int = 8, length: int = 2, burn_in: int = 1
) -> list[MixedWindows]:
    generator = torch.Generator().manual_seed(0)
    return [made.sample(batch, length, burn_in, generator) for _ in range(batches)]


def test_every_batch_has_the_share_of_each_source_up_to_rounding() -> None:
    for where in draw(replay((3, 2, 4), random_share=0.35, past_share=0.25), 50):
        counts = Counter(where.source)
        for source, share in [(Source.random, 0.35), (Source.past, 0.25), (Source.adversarial, 0.4)]:
            assert abs(counts[source] - 8 * share) < 1
        for e, source in zip(where.episode, where.source, strict=True):
            assert source is [*[Source.random] * 3, *[Source.past] * 2, *[Source.adversarial] * 4][e]


def test_half_and_half_is_exact_in_every_batch_of_an_even_size() -> None:
    for where in draw(replay((1, 1, 1), random_share=0.3, past_share=0.2), 50, batch=4):
        assert where.source.count(Source.adversarial) == 2


def test_the_share_of_an_empty_source_goes_to_the_others_in_proportion() -> None:
    sources = Counter(s for w in draw(replay((2, 0, 2), random_share=0.3, past_share=0.2), 200) for s in w.source)
    assert sources[Source.past] == 0
    assert sources[Source.random] / sources.total() == pytest.approx(0.3 / 0.8, abs=0.01)


def test_a_share_of_one_is_the_control_that_never_sees_the_explorer() -> None:
    made = replay((2, 2, 2), random_share=1.0, past_share=0.0)
    assert {s for w in draw(made, 50) for s in w.source} == {Source.random}


def test_an_empty_replay_is_refused() -> None:
    with pytest.raises(ValueError, match="collect an episode"):
        draw(replay((0, 0, 0)), 1)


def test_windows_lie_inside_their_episode_and_burn_in_may_reach_before_it() -> None:
    starts = {s for w in draw(replay((1, 0, 1)), 200) for s in w.start}
    assert starts == {-1, 0, 1, 2, 3}  # trained steps 2 of 6, one step of burn-in
    (where,) = draw(replay((1, 0, 1)), 1)
    assert (where.length, where.burn_in) == (3, 1)


def test_adversarial_windows_are_drawn_by_priority_and_weights_undo_it() -> None:
    """One prioritised step: windows of two steps that hold it have mean priority 1 + 1e-6, the others 1e-6."""
    novelty = torch.zeros(2, T)
    novelty[1, 4] = 1.0  # x loss 2, mean over 2 steps: 1
    made = replay((1, 0, 2), novelty, priority_exponent=1.0, max_episode_share=1.0)
    found: Counter = Counter()
    weight_of: dict[tuple[int, int], float] = {}
    for where in draw(made, 400):
        for e, s, source, w in zip(where.episode, where.start, where.source, where.importance, strict=True):
            if source is Source.adversarial:
                found[e, s + where.burn_in] += 1
                weight_of[e, s + where.burn_in] = w
            else:
                assert w == 1.0
    assert set(found) == {(2, 3), (2, 4)}
    total = 2 * (1 + 1e-6) + 8 * 1e-6
    for w in weight_of.values():
        assert w == pytest.approx((1 / 10) / ((1 + 1e-6) / total), rel=1e-6)


def test_importance_weights_make_the_mean_that_of_uniform_windows() -> None:
    novelty = torch.rand(5, T, generator=torch.Generator().manual_seed(1))
    made = replay((1, 0, 5), novelty, priority_exponent=1.0)
    value = novelty.unfold(1, 2, 1).mean(-1)  # of each window of two steps: what draws it
    numbers, weights = [], []
    for where in draw(made, 1000):
        for e, s, source, w in zip(where.episode, where.start, where.source, where.importance, strict=True):
            if source is Source.adversarial:
                numbers.append(float(value[e - 1, s + 1]))
                weights.append(w)
    w, x = torch.tensor(weights), torch.tensor(numbers)
    truth, spread = float(value.mean()), float(value.std())
    assert float((w * x).sum() / w.sum()) == pytest.approx(truth, abs=0.1 * spread)
    assert float(w.mean()) == pytest.approx(1.0, abs=0.05)
    assert float(x.mean()) > truth + 0.15 * spread  # what is not corrected is above


def test_what_is_mastered_is_drawn_less() -> None:
    made = replay((1, 0, 2), priority_exponent=1.0, max_episode_share=1.0)
    (where,) = draw(made, 1)
    everything = MixedWindows([1] * 5, [0, 1, 2, 3, 4], 2, 0)
    made.record(everything, torch.zeros(5, 2))  # no loss is left in the first adversarial episode
    counts = Counter(
        e for w in draw(made, 100) for e, s in zip(w.episode, w.source, strict=True) if s is Source.adversarial
    )
    assert counts[1] == 0 and counts[2] > 0 and len(where.episode) == 8


def test_losses_are_recorded_at_the_trained_steps_without_burn_in() -> None:
    made = replay((1, 0, 1))
    made.record(MixedWindows([0, 1], [1, 2], 3, 1), torch.tensor([[7.0, 7.0], [0.5, 0.25]]))
    assert made.loss[0].tolist() == [2, 2, 2, 0.5, 0.25, 2]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=12), st.floats(0.05, 1.0)
)  # fmt: skip
def test_no_share_exceeds_the_cap_and_the_order_stays(mass: list[float], cap: float) -> None:
    shares = capped_shares(torch.tensor(mass, dtype=torch.float64), cap)
    assert float(shares.sum()) == pytest.approx(1.0)
    assert float(shares.max()) <= max(cap, 1 / len(mass)) * (1 + 1e-9)
    order = torch.tensor(mass, dtype=torch.float64).argsort()
    assert (shares[order].diff() >= -1e-12).all()


def test_the_cut_goes_to_the_others_in_proportion() -> None:
    shares = capped_shares(torch.tensor([8.0, 1.0, 1.0, 2.0], dtype=torch.float64), 0.4)
    torch.testing.assert_close(shares, torch.tensor([0.4, 0.15, 0.15, 0.3], dtype=torch.float64))
    # The rest overflows in turn: 0.4 + 0.4 are full, 0.2 is left for the last two.
    shares = capped_shares(torch.tensor([50.0, 40.0, 1.0, 1.0], dtype=torch.float64), 0.4)
    torch.testing.assert_close(shares, torch.tensor([0.4, 0.4, 0.1, 0.1], dtype=torch.float64))


def test_one_episode_never_takes_more_than_its_cap() -> None:
    novelty = torch.full((4, T), 0.01)
    novelty[2] = 100.0
    made = replay((1, 0, 4), novelty, priority_exponent=1.0, max_episode_share=0.4)
    counts = Counter(
        e for w in draw(made, 500) for e, s in zip(w.episode, w.source, strict=True) if s is Source.adversarial
    )
    assert counts[3] / counts.total() == pytest.approx(0.4, abs=0.03)


def test_rings_keep_the_newest_and_their_scores_and_survive_a_checkpoint() -> None:
    made = AdversarialReplay(
        AdversarialReplayConfig(random_episodes=4, past_episodes=4, adversarial_episodes=6), 2, 1, 1
    )
    for i in range(5):
        for source in Source:
            made.add(source, episode(10 * i + list(Source).index(source)), torch.full((T,), float(i)), torch.ones(T))
    assert [e.index for e in made.buffer.episodes] == [30, 40, 31, 41, 22, 32, 42]
    assert [float(n[0]) for n in made.novelty] == [2, 3, 4]
    again = AdversarialReplay(made.cfg, 2, 1, 1)
    again.load_state_dict(made.state_dict())
    for a, b in zip(draw(made, 20), draw(again, 20), strict=True):
        assert a == b
