"""Intervals (95 %) of an algorithm's results, one result.json a seed.

Another seed changes more than other episodes of the same policy would: several seeds are resampled as wholes. A single
one has only the spread of its episodes, and `basis` says so.
"""

from typing import Any

from rl.data.statistics import Interval, bootstrap_mean, wilson_interval

SAMPLES = 2000
EXPLAINED = "Intervals of 95 %: over seeds by bootstrap; where there is one seed, over its episodes"


def of_success(runs: list[dict[str, Any]]) -> Interval:
    """Success rate, 0 to 1; Wilson's interval for one seed."""
    rates = [r["success_rate"] for r in runs]
    if len(runs) > 1:
        return bootstrap_mean(rates, SAMPLES, seed=0)
    episodes = runs[0]["episodes"]
    low, high = wilson_interval(round(rates[0] * episodes), episodes)
    return Interval(rates[0], low, high, episodes)


def of_return(runs: list[dict[str, Any]]) -> Interval:
    """Mean return of an episode; the normal interval for one seed."""
    returns = [r["mean_return"] for r in runs]
    if len(runs) > 1:
        return bootstrap_mean(returns, SAMPLES, seed=0)
    episodes = runs[0]["episodes"]
    half = 1.959964 * runs[0]["return_std"] / episodes**0.5
    return Interval(returns[0], returns[0] - half, returns[0] + half, episodes)


def basis(runs: list[dict[str, Any]]) -> str:
    """What the intervals of these runs are over: "5 seeds", or "1000 episodes" of one."""
    return f"{len(runs)} seeds" if len(runs) > 1 else f"{runs[0]['episodes']} episodes"
