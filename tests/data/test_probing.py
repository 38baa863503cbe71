"""Ridge probes against scikit-like formulas written out, and what cross-validation by episode must not leak."""

import numpy as np
import pytest

from rl.data.probing import balanced_accuracy, probe, ridge_decision


def _samples(episodes: int, per_episode: int, features: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(episodes * per_episode, features)), np.repeat(np.arange(episodes), per_episode)


def test_the_decision_is_the_minimum_of_the_weighted_ridge_loss() -> None:
    x, _ = _samples(30, 1, 3)
    labels = np.where(np.arange(30) % 3 == 0, 1.0, -1.0)  # a third is true
    test = np.random.default_rng(1).normal(size=(4, 3))
    score = ridge_decision(x, labels, test, penalty=5.0)
    mean, std = x.mean(0), x.std(0)
    design = np.column_stack([(x - mean) / std, np.ones(30)])
    weight = np.diag(np.where(labels > 0, 1.5, 0.75))  # 0.5 / (1/3), 0.5 / (2/3)
    penalty = np.diag([5.0, 5.0, 5.0, 0.0])  # normal equations with an unpenalised intercept
    slope = np.linalg.solve(design.T @ weight @ design + penalty, design.T @ weight @ labels)
    np.testing.assert_allclose(score, np.column_stack([(test - mean) / std, np.ones(4)]) @ slope, rtol=1e-9)


def test_a_feature_that_never_varies_is_harmless() -> None:
    x, _ = _samples(20, 1, 2)
    labels = np.sign(x[:, 0])
    constant = np.column_stack([x, np.full(20, 7.0)])
    np.testing.assert_allclose(
        ridge_decision(constant, labels, constant, 1.0), ridge_decision(x, labels, x, 1.0), rtol=1e-9
    )


def test_a_fact_written_in_the_features_is_read_and_one_that_is_not_is_left_to_chance() -> None:
    x, episodes = _samples(60, 5, 4)
    facts = np.column_stack([x[:, 2] > 0.3, np.random.default_rng(9).random(300) < 0.5])
    right, asked = probe(x, facts, np.ones_like(facts), episodes, folds=5, penalty=1.0)
    assert asked.sum() == 600 and (asked.sum((1, 2)) == 10).all()
    assert balanced_accuracy(right[:, :1], asked[:, :1]) > 0.9
    assert abs(balanced_accuracy(right[:, 1:], asked[:, 1:]) - 0.5) < 0.1


def test_what_is_constant_within_an_episode_does_not_leak_between_folds() -> None:
    # Each episode has a code of its own and a random fact: known only to somebody who saw that very episode.
    rng = np.random.default_rng(0)
    codes, truth = rng.normal(size=(40, 60)), rng.random(40) < 0.5
    episodes = np.repeat(np.arange(40), 10)
    x = codes[episodes] + 0.01 * rng.normal(size=(400, 60))
    facts = truth[episodes][:, None]
    right, asked = probe(x, facts, np.ones_like(facts), episodes, folds=5, penalty=1.0)
    assert balanced_accuracy(right, asked) < 0.7
    known = ridge_decision(x, np.where(facts[:, 0], 1.0, -1.0), x, 1.0) > 0
    assert (known == facts[:, 0]).mean() == 1.0  # the probe itself could


def test_questions_that_are_not_asked_do_not_count() -> None:
    x, episodes = _samples(10, 4, 2)
    facts = np.column_stack([x[:, 0] > 0, x[:, 1] > 0, np.ones(40, bool)])
    asked = np.ones_like(facts)
    asked[episodes == 3, 0] = False
    right, counts = probe(x, facts, asked, episodes, folds=2, penalty=1.0)
    assert counts[3, 0].sum() == 0 and counts[:, 1].sum() == 40
    assert counts[:, 2].sum() == 0  # always true: nothing to learn
    assert (right <= counts).all()


def test_balanced_accuracy_by_hand() -> None:
    # Fact 0: 3 of 4 false and 1 of 2 true are right -> (0.75 + 0.5) / 2; fact 1 was never asked where it is true.
    right = np.array([[[2.0, 1.0], [1.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]]])
    asked = np.array([[[2.0, 1.0], [2.0, 0.0]], [[2.0, 1.0], [1.0, 0.0]]])
    assert balanced_accuracy(right[:, :1], asked[:, :1]) == pytest.approx(0.625)
    assert balanced_accuracy(right[:, 1:], asked[:, 1:]) == pytest.approx(1 / 3)
    assert balanced_accuracy(right, asked) == pytest.approx((0.625 + 1 / 3) / 2)
    with pytest.raises(ValueError, match="nothing was asked"):
        balanced_accuracy(right, 0 * asked)


@pytest.mark.parametrize(("folds", "episodes"), [(1, 4), (5, 4)])
def test_too_few_folds_or_episodes_are_refused(folds: int, episodes: int) -> None:
    x, of = _samples(episodes, 2, 2)
    with pytest.raises(ValueError, match="folds"):
        probe(x, x > 0, np.ones_like(x, bool), of, folds, 1.0)
