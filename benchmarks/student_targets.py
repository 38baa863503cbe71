"""Does phase 2 explore? `python -m benchmarks.student_targets --teacher DIR [--seeds N] [--train_episodes K]`.

For each seed an explorer is trained and then compared with random actions in the same held-out scenes, for as many
steps and with the same action scale; and with the explorer before any training, which is the same for every seed: all
begin with the action expert of the teacher. With --screen_teacher, a teacher trained beside a noisy screen, two more
explorers a seed are trained beside it, rewarded by entropy or by disagreement alone. Runs continue where they were
stopped, so the command can be stopped and given again. Writes docs/results/student_targets.{md,json}, or what
`--json` says.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runs import parsed, publish, read, start
from rl.data.statistics import bootstrap, compare_paired
from rl.training.evaluation.output import comparison_data
from rl.training.provenance import machine

SCREEN = "environment.domain_randomization.noisy_screen=true"
ALONE = ("student.rewards.memory_divergence_weight=0", "student.rewards.action_rate_weight=0")
SIZE = ("student.episodes_per_iteration=2", "training.num_threads=1")  # 16 episodes of 8 environments an update
# Raw sums of an episode. Of the memory's potential the last value: what its rewards telescope to.
RETURNS = ("return_raw_disagreement", "return_raw_entropy", "divergence_last")
MEASURES = (
    "explore/wrist_voxels", "explore/objects_moved", "explore/objects_touched", "explore/distance_moved_m",
    "explore/novel_token_maps", "frame/disagreement",
)  # fmt: skip
IN_VIEW = "explore/screen_in_view"
PROBES = ("probe/memory", "probe/observation", "probe/memory_minus_observation")
BEFORE = "before training"
KINDS = ("entropy", "disagreement")  # rewards of the explorers beside the screen
VERSUS = "entropy against disagreement"
# One update that changes nothing: its steps are far below the last digit of a weight.
STILL = {f"student.{k}": "1e-30" for k in ("learning_rate", "min_learning_rate", "value_learning_rate")}


def trained(
    args: argparse.Namespace, teacher: str, seed: int, name: str, train_episodes: int, episodes: int, *extra: str
) -> Path:
    """Directory of an explorer, trained and evaluated; what was done before is not done again."""
    directory = Path(args.runs).resolve() / f"{name}_seed{seed}"
    numbers = directory / "evaluation.json"
    if not numbers.is_file():
        start(
            "rl.training.train_student_rl", "--teacher_path", teacher, "--output_dir", str(directory),
            "--num_episodes", str(train_episodes), "--num_envs", str(args.num_envs), "--seed", str(seed),
            "--auto_resume", "training.save_every=200", "training.video_save_every=0", "training.sample_save_every=0",
            *SIZE, *extra,
        )  # fmt: skip
        start(
            "rl.training.evaluate_rl", "--phase", "student", "--checkpoint", str(directory), "--episodes",
            str(episodes), "--json", str(numbers), "training.num_threads=1", "evaluation.unfamiliar_episodes=0",
        )  # fmt: skip
    return directory


def untrained(args: argparse.Namespace) -> Path:
    """The explorer as every seed begins: one iteration in which nothing moves."""
    still = [f"{k}={v}" for k, v in STILL.items()]
    others = [o for o in args.overrides if o.split("=")[0] not in STILL]
    return trained(args, args.teacher, 0, "untrained", 1, args.episodes, *still, *others)


def measured(directory: Path) -> dict[str, Any]:
    """What its evaluation says: against random actions, and of its memory and its uncertainty."""
    data = read(directory / "evaluation.json")
    kept = {k: v for k, v in data["measures"].items() if k.startswith(("probe/", "auroc/"))}
    return {"against_random": data["baseline"]["comparison"], "totals": data["totals"], "measures": kept}


def explorer(directory: Path) -> dict[str, Any]:
    return measured(directory) | {"risen": risen(directory), "speed": speed(directory)}


def against(ours: Path, theirs: Path) -> dict[str, Any]:
    """MEASURES of two explorers, paired by scene. Raises ValueError when they did not play as many."""
    a, b = (_episodes(d) for d in (ours, theirs))
    rows = {m: compare_paired([r[m] for r in a], [r[m] for r in b], 2000, 0) for m in MEASURES}
    return comparison_data(rows)


def _episodes(directory: Path, policy: str = "explorer") -> list[dict[str, Any]]:
    """Of one policy, in the order of their scenes."""
    lines = (directory / "evaluation.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["policy"] == policy]


def distraction(runs: dict[str, list[Path]]) -> dict[str, Any]:
    """What is in view, all seeds together: of every reward's explorers against random actions, and of entropy's against
    disagreement's. runs: by reward the directories of its seeds. Intervals over scenes, in each of which all seeds
    played.
    """
    seen = {
        kind: {p: np.mean([[row[IN_VIEW] for row in _episodes(d, p)] for d in own], 0) for p in ("explorer", "random")}
        for kind, own in runs.items()
    }
    rows = {kind: compare_paired(s["explorer"], s["random"], 2000, 0) for kind, s in seen.items()}
    rows[VERSUS] = compare_paired(*(seen[k]["explorer"] for k in KINDS), 2000, 0)
    return comparison_data(rows)


def metrics(directory: Path) -> list[dict[str, float]]:
    text = (directory / "episode_metrics.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def speed(directory: Path) -> dict[str, float]:
    """Environment steps a second of collection, and seconds of an iteration by part; medians over iterations."""
    lines = metrics(directory)
    names = [n for n in lines[0] if n.startswith("student/time_") or n == "student/env_steps_per_s"]
    return {n.removeprefix("student/"): float(np.median([line[n] for line in lines])) for n in names}


def risen(directory: Path) -> dict[str, dict[str, float]]:
    """Raw intrinsic returns: mean of the first and of the last fifth of the iterations; interval of the difference."""
    lines, result = metrics(directory), {}
    for name in RETURNS:
        values = np.array([line[f"student/{name}"] for line in lines if f"student/{name}" in line])
        if not values.size:
            continue
        n = max(1, len(values) // 5)
        both = np.concatenate([values[:n], values[-n:]])
        change = bootstrap(lambda i, b=both, n=n: float(b[i[n:]].mean() - b[i[:n]].mean()), [n, n], 2000, 0)  # type: ignore[misc]
        first, last = float(values[:n].mean()), float(values[-n:].mean())
        result[name] = {"first": first, "last": last, "low": change.low, "high": change.high}
    return result


def said(interval: dict[str, float] | None, digits: int = 2) -> str:
    """None: nothing to divide by, or too few episodes."""
    if interval is None:
        return "-"
    mean, low, high = (f"{interval[k]:.{digits}f}" for k in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def ratios(rows: list[tuple[Any, dict[str, Any]]]) -> list[str]:
    """A table of MEASURES; rows: their label and comparisons."""
    out = [f"| seed | {' | '.join(m.split('/')[1].replace('_', ' ') for m in MEASURES)} |"]
    out.append("|---" * (len(MEASURES) + 1) + "|")
    return out + [f"| {label} | {' | '.join(said(c[m]['ratio']) for m in MEASURES)} |" for label, c in rows]


def table(rows: list[dict[str, Any]], before: dict[str, Any], args: argparse.Namespace) -> str:
    """before: the explorer that took no update."""
    out = [
        f"# Phase 2 after {args.train_episodes} episodes",
        "",
        f"Explorer / random actions in the same {args.episodes} held-out scenes, equal steps and action scale: ratio "
        f"of means, 95 % interval over episodes. Machine: {machine()}.",
        "",
        *ratios([*((r["seed"], r["explorer"]["against_random"]) for r in rows), (BEFORE, before["against_random"])]),
        "", "The explorer / itself before any training, in the same scenes: what training added.", "",
        *ratios([(r["seed"], r["explorer"]["against_untrained"]) for r in rows]),
        "", "Balanced accuracy of telling on which side of the table an object stands that the wrist camera does not "
        "see (0.5 is chance), in the explorer's episodes: from the memory, and from the current observation alone.", "",
        "| seed | memory | observation alone | memory - observation |", "|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        m = row["explorer"]["measures"]
        out.append(f"| {row['seed']} | {' | '.join(said(m.get(p), 3) for p in PROBES)} |")
    out += [
        "", "Raw intrinsic return of an episode (sums over its steps; of the memory divergence the last value), first "
        "and last fifth of training, 95 % interval of the rise:", "",
        "| seed | return | first | last | rise |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        for name, r in row["explorer"]["risen"].items():
            short = name.removeprefix("return_raw_").replace("_", " ")
            out.append(
                f"| {row['seed']} | {short} | {r['first']:.3f} | {r['last']:.3f} | [{r['low']:.3f}, {r['high']:.3f}] |"
            )
    times = [n for n in rows[0]["explorer"]["speed"] if n.startswith("time_")]
    out += [
        "", f"Collection with {args.num_envs} environments in one process, and where an iteration's seconds go:", "",
        f"| seed | env steps/s | {' | '.join(n[5:-2] for n in times)} |", "|---" * (len(times) + 2) + "|",
    ]  # fmt: skip
    for row in rows:
        v = row["explorer"]["speed"]
        out.append(f"| {row['seed']} | {v['env_steps_per_s']:.1f} | {' | '.join(f'{v[n]:.1f}' for n in times)} |")
    return "\n".join(out) + "\n"


def screen_table(rows: list[dict[str, Any]], together: dict[str, Any], args: argparse.Namespace) -> list[str]:
    """together: what `distraction` says."""
    out = [
        "", f"Share of the wrist camera's view that the noisy screen fills (no hiding assumed), by reward, after "
        f"{args.screen_train_episodes} episodes, in {args.screen_episodes} held-out scenes:", "",
        "| seed | reward | explorer | explorer - random |", "|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        for kind, run in row["screen"].items():
            c = run["against_random"][IN_VIEW]
            out.append(f"| {row['seed']} | {kind} | {run['screen_in_view']:.3f} | {said(c['difference'], 3)} |")
    for kind in KINDS:
        mean = np.mean([row["screen"][kind]["screen_in_view"] for row in rows])
        out.append(f"| all | {kind} | {mean:.3f} | {said(together[kind]['difference'], 3)} |")
    return [
        *out,
        "",
        f"Entropy's explorers minus disagreement's, all seeds: {said(together[VERSUS]['difference'], 3)}.",
    ]


def screen(args: argparse.Namespace, seed: int) -> dict[str, Any]:
    runs = {}
    for kind in KINDS:
        extra = ["--mixed_precision", "bf16", SCREEN, *ALONE, f"student.rewards.uncertainty={kind}", *args.overrides]
        size = (args.screen_train_episodes, args.screen_episodes)
        run = trained(args, args.screen_teacher, seed, f"screen_{kind}", *size, *extra)
        in_view = read(run / "evaluation.json")["measures"][IN_VIEW]["mean"]
        runs[kind] = explorer(run) | {"screen_in_view": in_view}
    return runs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--train_episodes", type=int, default=480)
    parser.add_argument("--num_envs", type=int, default=8)
    parser.add_argument("--episodes", type=int, default=40, help="held-out ones")
    parser.add_argument("--screen_teacher", default=None, help="also train beside a noisy screen, which it knows")
    parser.add_argument("--screen_train_episodes", type=int, default=240)
    parser.add_argument("--screen_episodes", type=int, default=40, help="held-out ones")
    parser.add_argument("--runs", default="outputs/student_targets")
    parser.add_argument("overrides", nargs="*", help="block.key=value for every run")
    args, place = parsed(parser, "student_targets")
    rows, first = [], untrained(args)
    beside: dict[str, list[Path]] = {kind: [] for kind in KINDS}
    before = measured(first)
    for seed in range(args.seeds):
        run = trained(args, args.teacher, seed, "explorer", args.train_episodes, args.episodes, *args.overrides)
        row: dict[str, Any] = {"seed": seed, "explorer": explorer(run) | {"against_untrained": against(run, first)}}
        if args.screen_teacher is not None:
            row["screen"] = screen(args, seed)
        rows.append(row)
        data = {"command": vars(args), "machine": machine(), "untrained": before, "runs": rows}
        text = table(rows, before, args)
        if args.screen_teacher is not None:
            for kind in KINDS:
                beside[kind].append(run.with_name(f"screen_{kind}_seed{seed}"))
            data["screen"] = distraction(beside)
            text += "\n".join(screen_table(rows, data["screen"], args)) + "\n"
        publish(place.with_suffix(".md"), place, text, data)


if __name__ == "__main__":
    main()
