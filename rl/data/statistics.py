"""Confidence intervals over episodes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Interval:
    """Mean of a per-episode measure with a percentile-bootstrap interval (Efron 1979)."""

    mean: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.3f} [{self.low:.3f}, {self.high:.3f}]"


def bootstrap_mean(values: np.ndarray | list[float], samples: int, seed: int, level: float = 0.95) -> Interval:
    """Interval of the mean; resamples episodes. One value gives an interval of zero width.

    Raises ValueError when there is no value or one is not finite.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.size == 0 or not np.isfinite(x).all():
        raise ValueError(f"an interval needs finite values of at least one episode, got {x.size} values")
    rng = np.random.default_rng(seed)
    means = x[rng.integers(0, x.size, (samples, x.size))].mean(1)
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(x.mean()), float(low), float(high), int(x.size))


def bootstrap(
    statistic: Callable[[npt.NDArray[np.intp]], float], strata: Sequence[int], samples: int, seed: int,
    level: float = 0.95,
) -> Interval:  # fmt: skip
    """Interval of a statistic that is no mean of episodes. It is given indices of episodes: of the first stratum
    0 .. strata[0] - 1, the next ones counted on. Episodes are resampled within their stratum.
    """
    rng = np.random.default_rng(seed)
    starts = np.cumsum([0, *strata[:-1]])
    values = [
        statistic(np.concatenate([first + rng.integers(0, n, n) for first, n in zip(starts, strata, strict=True)]))
        for _ in range(samples)
    ]
    tail, count = (1 - level) / 2, int(sum(strata))
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(statistic(np.arange(count))), float(low), float(high), count)


@dataclass(frozen=True)
class Comparison:
    """Two measures of the same episodes: mean of a - b, and mean(a) / mean(b); None where b can resample to zero."""

    difference: Interval
    ratio: Interval | None


def compare_paired(a: npt.ArrayLike, b: npt.ArrayLike, samples: int, seed: int, level: float = 0.95) -> Comparison:
    """Resamples episodes, never the two measures apart. Raises ValueError unless they are of the same episodes."""
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.shape != y.shape:
        raise ValueError(f"a paired comparison needs the same episodes, got {x.size} and {y.size}")
    difference, ratio = bootstrap_mean(x - y, samples, seed, level), None
    index = np.random.default_rng(seed).integers(0, x.size, (samples, x.size))
    below = y[index].mean(1)
    if (below > 0).all():
        low, high = np.quantile(x[index].mean(1) / below, [(1 - level) / 2, (1 + level) / 2])
        ratio = Interval(float(x.mean() / y.mean()), float(low), float(high), int(x.size))
    return Comparison(difference, ratio)


def wilson_interval(successes: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a success rate (Wilson 1927): within [0, 1], also for none or all of few episodes.

    Raises ValueError for no episode and for more successes than episodes.
    """
    if not 0 <= successes <= count or count == 0:
        raise ValueError(f"{successes} successes of {count} episodes have no interval")
    share, spread = successes / count, z * z / count
    centre = (share + spread / 2) / (1 + spread)
    half = z * ((share * (1 - share) + spread / 4) / count) ** 0.5 / (1 + spread)
    return max(0.0, centre - half), min(1.0, centre + half)
