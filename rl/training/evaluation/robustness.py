"""Where the world model fails, and whether it knows that it does."""

import numpy as np
import numpy.typing as npt

from rl.config import EvaluationConfig
from rl.data.ranking import auroc, worst_mean
from rl.data.statistics import Comparison, Interval, bootstrap, compare_paired
from rl.training.evaluation.frames import FrameScores

Array = npt.NDArray[np.float32]
WORST = "robust/nll_worst_frames"


def worst_frames(scores: FrameScores, e: EvaluationConfig) -> dict[str, Interval]:
    """Mean loss of the worst share of all frames; resampled by episode."""
    statistic = lambda i: worst_mean(scores.nll[i], e.worst_share)  # noqa: E731
    return {WORST: bootstrap(statistic, [len(scores.nll)], e.bootstrap_samples, e.seed)}


def compare_models(ours: FrameScores, theirs: FrameScores, e: EvaluationConfig) -> dict[str, Comparison]:
    """Two world models on the same episodes: loss over all frames, and over the worst frames of each."""
    again = (e.bootstrap_samples, e.seed)

    def worst(index: np.ndarray) -> tuple[float, float]:
        return worst_mean(ours.nll[index], e.worst_share), worst_mean(theirs.nll[index], e.worst_share)

    count = [len(ours.nll)]
    return {
        "frame/nll": compare_paired(ours.nll.mean(1), theirs.nll.mean(1), *again),
        WORST: Comparison(
            bootstrap(lambda i: float(np.subtract(*worst(i))), count, *again),
            bootstrap(lambda i: float(np.divide(*worst(i))), count, *again),
        ),
    }


def warns_of_loss(scores: FrameScores, e: EvaluationConfig) -> dict[str, Interval]:
    """AUROC of each uncertainty for the worst share of frames by loss (by chance 0.5)."""

    def statistic(uncertainty: Array, index: np.ndarray) -> float:
        loss = scores.nll[index].ravel()
        rank = np.argsort(np.argsort(loss, kind="stable"), kind="stable")
        worst = rank >= loss.size - max(1, round(e.worst_share * loss.size))
        return auroc(uncertainty[index].ravel(), worst)

    return {
        f"auroc/high_loss/{kind}": bootstrap(
            lambda i, u=u: statistic(u, i), [len(u)], e.bootstrap_samples, e.seed  # type: ignore[misc]
        )
        for kind, u in scores.uncertainty.items()
    }  # fmt: skip


def warns_of_unfamiliar(
    kind: str, familiar: FrameScores, unfamiliar: FrameScores, e: EvaluationConfig
) -> dict[str, Interval]:
    """AUROC of each uncertainty, and of the loss itself, for frames of unfamiliar scenes (by chance 0.5).

    `kind` names the scenes. Where the loss does not tell them apart, an uncertainty need not either.
    """
    columns = {k: (v, unfamiliar.uncertainty[k]) for k, v in familiar.uncertainty.items()}
    columns["nll"] = (familiar.nll, unfamiliar.nll)

    def statistic(pair: tuple[Array, Array], index: np.ndarray) -> float:
        both = np.concatenate(pair)[index]
        return auroc(both, np.broadcast_to((index >= len(pair[0]))[:, None], both.shape))

    return {
        f"auroc/unfamiliar/{kind}/{uncertainty}": bootstrap(
            lambda i, p=p: statistic(p, i), [len(p[0]), len(p[1])], e.bootstrap_samples, e.seed  # type: ignore[misc]
        )
        for uncertainty, p in columns.items()
    }  # fmt: skip
