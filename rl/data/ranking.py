"""How well a score tells two groups apart."""

import numpy as np
import numpy.typing as npt


def auroc(scores_N: npt.ArrayLike, positive_N: npt.ArrayLike) -> float:
    """Area under the ROC curve: probability that a positive scores higher than a negative, ties counting half
    (Mann and Whitney 1947). Raises ValueError unless both groups are there and all scores are finite."""
    scores, positive = np.asarray(scores_N, np.float64).ravel(), np.asarray(positive_N, bool).ravel()
    if scores.shape != positive.shape:
        raise ValueError(f"auroc: {scores.size} scores and {positive.size} labels")
    if not np.isfinite(scores).all():
        raise ValueError("auroc: scores that are not finite have no rank")
    count = int(positive.sum())
    if count in (0, len(scores)):
        raise ValueError(f"auroc: {count} of {len(scores)} samples are positive; both groups are needed")
    _, group, sizes = np.unique(scores, return_inverse=True, return_counts=True)
    last = np.cumsum(sizes)
    rank = (last - (sizes - 1) / 2)[group]  # mean rank of equal scores, from 1
    return float((rank[positive].sum() - count * (count + 1) / 2) / (count * (len(scores) - count)))


def worst_mean(values_N: npt.ArrayLike, share: float) -> float:
    """Mean of the largest `share` of the values, at least one (expected shortfall)."""
    values = np.sort(np.asarray(values_N, np.float64).ravel())
    if values.size == 0 or not 0 < share <= 1:
        raise ValueError(f"the worst {share:g} of {values.size} values: give values and a share in (0, 1]")
    return float(values[-max(1, round(share * values.size)) :].mean())
