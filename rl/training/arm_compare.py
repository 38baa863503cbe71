"""`train.sh arm --compare`: all algorithms with the same seeds; table, learning curves, markdown.

Each run has a directory of its own below compare-STEPS and is not repeated when it is done: the same command goes on
where it was stopped.
"""

import dataclasses
import fnmatch
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rl import config as rl_config
from rl.training import cli, config_drift, policies, policy_results, provenance, seed_intervals
from rl.training.atomic_io import atomic_path, write_atomic
from rl.training.run_dir import ResumeMode

CURVE_POINTS = 10  # evaluations along each run, at least
_OF_COMPARE = ("arm.compare", "arm.algorithm", "arm.steps", "arm.output_dir", "training.seed")
# A resume may change these, but the numbers of a finished run are of the old ones.
_MEASURED = (
    "arm.steps", "arm.eval_*", "arm.final_episodes", "arm.export", "training.device", "training.num_threads"
)  # fmt: skip


def compare(args: cli.Args, train: Callable[[cli.Args], None]) -> None:
    """Runs what is missing, then writes comparison.{json,md,png}.

    Raises ValueError for flags of a single run and for runs there that were done with another configuration.
    """
    arm = args.config.arm
    if args.resume is ResumeMode.path or args.overwrite:
        raise ValueError("--compare continues by itself; leave --resume and --overwrite out")
    folder = Path(arm.output_dir) if arm.output_dir is not None else _folder(args.config)
    seeds = range(args.config.training.seed, args.config.training.seed + arm.compare_seeds)
    # All command lines, and what is there, are checked before the first run begins.
    runs = [_single(args, algorithm, seed, folder) for algorithm in rl_config.ALGORITHMS for seed in seeds]
    for single in runs:
        policies.check_settings(single.config, "arm")
        if policy_results.read(single.output_dir) is not None:
            _check_same(single)
    results = []
    for single in runs:
        if policy_results.read(single.output_dir) is None:
            train(single)
        result = policy_results.read(single.output_dir)
        assert result is not None
        results.append(result)
    if os.environ.get("RANK", "0") == "0":
        write(folder, results, arm.compare_steps, args.json)


def _folder(config: rl_config.Config) -> Path:
    name = config.arm.experiment_name or f"compare-{config.arm.compare_steps}"
    return Path("outputs") / config.arm.task / name


def _single(args: cli.Args, algorithm: str, seed: int, folder: Path) -> cli.Args:
    """The command line of one of the runs, so that it gets the presets of its algorithm."""
    place = folder / f"{algorithm.lower()}_seed{seed}"
    given = [o for o in args.overrides if o.split("=")[0] not in _OF_COMPARE]
    given += [
        f"arm.algorithm={algorithm}", f"training.seed={seed}", f"arm.steps={args.config.arm.compare_steps}",
        f"arm.output_dir={json.dumps(str(place))}",
    ]  # fmt: skip
    if not any(o.split("=")[0] == "arm.eval_every" for o in given):
        arm = args.config.arm
        given.append(f"arm.eval_every={max(1, min(arm.eval_every, arm.compare_steps // CURVE_POINTS))}")
    config = rl_config.load(args.config_file, given, "arm")
    return dataclasses.replace(args, config=config, resume=ResumeMode.auto, json=None, overrides=given)


def _check_same(single: cli.Args) -> None:
    """Raises ValueError when the finished run of this place was done with other settings than these."""
    policies.prefer_small_machine(single.config, "arm")  # as when it was saved
    saved = single.output_dir / "config.yaml"
    changed = config_drift.changes(rl_config.read_dict(saved), rl_config.to_dict(single.config))
    other = [
        text for key, text in changed.items()
        if not config_drift.is_benign(key, "arm") or any(fnmatch.fnmatchcase(key, p) for p in _MEASURED)
    ]  # fmt: skip
    if other:
        raise ValueError(
            f"{saved}: this run of the comparison is done, with another configuration: {'; '.join(other)}. Restore "
            f"the old values, give another --output_dir, or remove {single.output_dir.parent} to measure anew"
        )


def write(folder: Path, results: list[dict[str, Any]], steps: int, json_file: Path | None) -> None:
    """comparison.json, .md and .png, and the table on the console."""
    table = markdown(results, steps)
    summary = {"steps": steps, "machine": provenance.machine(), "runs": results}
    for path in (folder / "comparison.json", *([json_file] if json_file is not None else [])):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, json.dumps(summary, indent=1) + "\n")
    write_atomic(folder / "comparison.md", table)
    draw(results, folder / "comparison.png")
    print(table)
    print(f"written to {folder}/comparison.md, .json and .png")


def markdown(results: list[dict[str, Any]], steps: int) -> str:
    """One row an algorithm: means over seeds, success and return with their intervals (`seed_intervals`)."""
    lines = [
        f"# {results[0]['task']} after {steps} steps",
        "",
        f"Deterministic policy, fresh episodes. {seed_intervals.EXPLAINED}. Machine: {provenance.machine()}.",
        "",
        "| algorithm | seeds | success [95 %] | return [95 %] | interval over | steps/s | seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for algorithm, runs in by_algorithm(results).items():
        rate, seconds = (sum(r[k] for r in runs) / len(runs) for k in ("steps_per_second", "wall_seconds"))
        success, value = seed_intervals.of_success(runs), seed_intervals.of_return(runs)
        seeds = " ".join(str(r["seed"]) for r in runs)
        measured = f"{success} | {value.mean:.2f} [{value.low:.2f}, {value.high:.2f}] | {seed_intervals.basis(runs)}"
        lines.append(f"| {algorithm} | {seeds} | {measured} | {rate:.0f} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def by_algorithm(results: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    grouped: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        grouped.setdefault(result["algorithm"], []).append(result)
    return grouped


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Learning curves: success in the evaluations of training, mean over seeds and the range of seeds."""
    import matplotlib  # a second to import: only where a picture is drawn

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4))
    for axis, key, label in zip(axes, ("success_rate", "mean_return"), ("success rate", "return"), strict=True):
        for algorithm, runs in by_algorithm(results).items():
            curves = [r["curve"] for r in runs]
            length = min(len(c) for c in curves)
            x = [sum(c[i]["env_steps"] for c in curves) / len(curves) for i in range(length)]
            ys = [[c[i][key] for c in curves] for i in range(length)]
            axis.plot(x, [sum(y) / len(y) for y in ys], label=algorithm, marker="o", markersize=3)
            axis.fill_between(x, [min(y) for y in ys], [max(y) for y in ys], alpha=0.2)
        axis.set_xlabel("environment steps")
        axis.set_ylabel(label)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.suptitle(f"{results[0]['task']}, deterministic policy")
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    pyplot.close(figure)
