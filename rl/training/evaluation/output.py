"""Results as JSON data and as tables of text."""

from typing import Any

from rl.data.statistics import Comparison, Interval
from rl.training.evaluation.measure import BASELINE, Measured, Result

HEADLINES = (
    "greedy_minus_copy/psnr", "soft_minus_copy/psnr", "latent_minus_copy/psnr", "shuffled_minus_true/nll",
    "generated_minus_copy/accuracy", "no_memory_minus_true/nll",
)  # fmt: skip


def intervals_data(intervals: dict[str, Interval]) -> dict[str, dict[str, float]]:
    return {k: vars(v) for k, v in intervals.items()}


def comparison_data(rows: dict[str, Comparison]) -> dict[str, dict[str, Any]]:
    return {
        k: {"difference": vars(c.difference), "ratio": None if c.ratio is None else vars(c.ratio)}
        for k, c in rows.items()
    }


def result_data(result: Result) -> dict[str, Any]:
    """JSON data of everything but single episodes."""
    acting = next(iter(result.policies))
    first = result.policies[acting]
    data: dict[str, Any] = {
        "policy": acting.value, "episodes": len(first.records), "measures": intervals_data(first.measures),
        "totals": first.totals, "notes": result.notes,
    }  # fmt: skip
    if acting is not BASELINE:
        base = result.policies[BASELINE]
        data["baseline"] = {
            "policy": BASELINE.value, "measures": intervals_data(base.measures), "totals": base.totals,
            "comparison": comparison_data(result.against_baseline),
        }  # fmt: skip
    if result.against_teacher:
        data["against_teacher"] = {k: comparison_data(v) for k, v in result.against_teacher.items()}
    return data


def episode_rows(result: Result) -> list[dict[str, Any]]:
    """One line of the episodes file each; episode i of all policies is the same scene."""
    return [
        {"policy": kind.value, "episode": i, **row}
        for kind, measured in result.policies.items()
        for i, row in enumerate(measured.rows)
    ]


def measures_table(measured: Measured) -> str:
    """Measures as text, the deciding differences first."""
    m = measured.measures
    names = [n for n in HEADLINES if n in m] + sorted(n for n in m if n not in HEADLINES)
    width = max(len(n) for n in names)
    return "\n".join(f"{n:<{width}}  {m[n]}" for n in names)


def comparison_table(rows: dict[str, Comparison], ours: str, base: str) -> str:
    """Paired differences and ratios as text."""
    width = max(len(n) for n in rows)
    difference, ratio = f"{ours} - {base}", f"{ours} / {base}"
    lines = [f"{'':<{width}}  {difference:<28}  {ratio}"]
    lines += [f"{n:<{width}}  {c.difference!s:<28}  {'-' if c.ratio is None else c.ratio}" for n, c in rows.items()]
    return "\n".join(lines)
