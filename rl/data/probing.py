"""What a memory state knows: ridge probes that read hidden facts of the scene from it, cross-validated by episode.

Letters: N samples, D features, C facts, E episodes. A fact is true or false, and asked of a sample or not.
"""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Bools = npt.NDArray[np.bool_]


def ridge_decision(train_ND: Array, labels_N: Array, test_MD: Array, penalty: float) -> Array:
    """Scores (M,) of a ridge regression on labels of -1 and 1 (positive: true). Features are standardised by the
    training samples, both classes weigh the same, and the intercept is not penalised."""
    mean, std = train_ND.mean(0), train_ND.std(0)
    std = np.where(std > 1e-8, std, 1.0)
    x, test = (train_ND - mean) / std, (test_MD - mean) / std
    positive = labels_N > 0
    weight = np.where(positive, 0.5 / positive.mean(), 0.5 / (~positive).mean())
    center, target = (weight @ x) / weight.sum(), (weight @ labels_N) / weight.sum()
    x = x - center
    gram = (x * weight[:, None]).T @ x + penalty * np.eye(x.shape[1])
    slope = np.linalg.solve(gram, x.T @ (weight * (labels_N - target)))
    return (test - center) @ slope + target


def probe(
    features_ND: Array, facts_NC: Bools, asked_NC: Bools, episodes_N: npt.NDArray[np.integer], folds: int,
    penalty: float,
) -> tuple[Array, Array]:  # fmt: skip
    """Right answers and questions (E, C, 2), by episode (ascending), fact and truth (0: false, 1: true).

    An episode is answered by a probe that was trained on the episodes of other folds only. A fact that is always true
    or always false where a probe could learn it is not asked. Raises ValueError for fewer than two folds or for fewer
    episodes than folds.
    """
    names, of = np.unique(episodes_N, return_inverse=True)
    if folds < 2 or len(names) < folds:
        raise ValueError(f"probing with {folds} folds needs 2 or more folds and as many episodes; got {len(names)}")
    x, labels = np.asarray(features_ND, np.float64), np.where(facts_NC, 1.0, -1.0)
    right, asked = np.zeros((2, len(names), facts_NC.shape[1], 2))
    for c in range(facts_NC.shape[1]):
        for fold in range(folds):
            test = asked_NC[:, c] & (of % folds == fold)
            train = asked_NC[:, c] & (of % folds != fold)
            if not test.any() or len(np.unique(labels[train, c])) < 2:
                continue
            answer = ridge_decision(x[train], labels[train, c], x[test], penalty) > 0
            truth = facts_NC[test, c]
            np.add.at(asked, (of[test], c, truth.astype(int)), 1)
            np.add.at(right, (of[test], c, truth.astype(int)), answer == truth)
    return right, asked


def balanced_accuracy(right_EC2: Array, asked_EC2: Array) -> float:
    """Mean over facts of the mean over true and false of the share of right answers; 0.5 is chance. A fact of which
    only one of both was asked counts by that one. Raises ValueError when nothing was asked."""
    right, asked = right_EC2.sum(0), asked_EC2.sum(0)
    if not asked.any():
        raise ValueError("nothing was asked: probe more episodes")
    share = np.divide(right, asked, out=np.full_like(right, np.nan), where=asked > 0)
    return float(np.nanmean(share[asked.any(1)], axis=1).mean())
