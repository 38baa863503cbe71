"""Does phase 3 pay? `python -m benchmarks.adversarial_targets --teacher DIR --student DIR [--seeds N]`.

For each seed the game, and a control: as many world-model updates on as many environment steps, all of them random.
Both world models are then compared on the same held-out episodes, of the game's explorer and of random actions. Runs
continue where they were stopped, so the command can be stopped and given again. Writes
docs/results/adversarial_targets.{md,json}.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.runs import parsed, publish, read, start
from rl import config as rl_config
from rl.config import Config
from rl.data.statistics import Interval
from rl.training.provenance import machine

# Whose states, and what of them.
MEASURES = (("explorer", "robust/nll_worst_frames"), ("explorer", "frame/nll"), ("random", "frame/nll"))
ROUNDS = 1  # of the explorer in an iteration
# A short game: fewer and longer iterations than the defaults have.
SIZE = (
    "--mixed_precision", "bf16", "training.num_threads=1", f"student.episodes_per_iteration={ROUNDS}",
    "adversarial.warmup_iterations=2", "adversarial.wm_updates_per_iter=40", "adversarial.held_out.every=4",
    "adversarial.reward_refresh_every=2", "adversarial.pool_every=2",
)  # fmt: skip
AGAINST = ("control", "teacher")
SIGNS = ("action_std", "reward_std", "reward_raw_std_share", "token_top_share")


def train(args: argparse.Namespace, seed: int, name: str, *extra: str) -> Path:
    """Its directory; what has been compared is not started again."""
    directory = Path(args.runs).resolve() / f"{name}_seed{seed}"
    game = directory.with_name(f"game_seed{seed}")
    if all(comparison(game, against).is_file() for against in AGAINST):
        return directory
    start(
        "rl.training.train_adversarial_rl", "--teacher_checkpoint", args.teacher, "--student_checkpoint",
        args.student.format(seed=seed),
        "--output_dir", str(directory), "--total_iterations", str(args.iterations), "--seed", str(seed),
        "--num_envs", str(args.num_envs), "--auto_resume", "training.save_every=4", "training.video_save_every=0",
        "training.sample_save_every=0", *SIZE, *extra, *args.overrides,
    )  # fmt: skip
    return directory


def control() -> list[str]:
    """Settings of a run whose world model trains on random actions alone. The explorer still plays, for nothing."""
    replay = Config().adversarial.replay
    rounds = replay.random_rounds + replay.past_rounds + ROUNDS
    kept = replay.random_episodes + replay.past_episodes + replay.adversarial_episodes
    return [
        "adversarial.replay.random_share=1", "adversarial.replay.past_share=0", "adversarial.replay.past_rounds=0",
        f"adversarial.replay.random_rounds={rounds}", f"adversarial.replay.random_episodes={kept}",
    ]  # fmt: skip


def comparison(game: Path, against: str) -> Path:
    return game / f"against_{against}.json"


def compare(args: argparse.Namespace, game: Path, other: str, against: str) -> dict[str, Any]:
    place = comparison(game, against)
    if not place.is_file():
        start(
            "rl.training.evaluate_rl", "--phase", "adversarial", "--checkpoint", str(game), "--teacher_checkpoint",
            other, "--episodes", str(args.episodes), "--json", str(place), "training.num_threads=1",
            "evaluation.unfamiliar_episodes=0",
        )  # fmt: skip
    return read(place)["against_teacher"]


def signs(game: Path) -> dict[str, list[float]]:
    """Smallest and largest of each sign of a collapse over the run; older runs did not log all of them."""
    lines = [json.loads(x) for x in (game / "episode_metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    columns = {s: [line[f"adversarial/{s}"] for line in lines if f"adversarial/{s}" in line] for s in SIGNS}
    return {s: [min(v), max(v)] for s, v in columns.items() if v}


def bounds(game: Path) -> dict[str, str]:
    """What each sign is judged by, from the configuration of the run."""
    c = rl_config.load_saved(game / "config.yaml", rl_config.POLICY_BLOCKS).adversarial.collapse
    said = (
        f"{c.min_action_std:g} to {c.max_action_std:g}", f"at least {c.min_reward_std:g}",
        f"at least {c.min_raw_std_share:g}", f"at most {c.max_token_share:g}",
    )  # fmt: skip
    return dict(zip(SIGNS, said, strict=True))


def over_seeds(rows: list[dict[str, Any]], against: str, whose: str, measure: str) -> Interval:
    """Mean of the seeds' ratios, with the lowest and the highest: a few seeds give no interval."""
    ratios = [row[against][whose][measure]["ratio"]["mean"] for row in rows]
    return Interval(sum(ratios) / len(ratios), min(ratios), max(ratios), len(ratios))


def table(rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    out = [
        f"# Phase 3 after {args.iterations} iterations",
        "",
        f"Ratios of loss (game / other; below 1 the game's world model is better) on {args.episodes} held-out "
        "episodes, 95 % interval over episodes (rows `all`: mean, lowest and highest of the seeds). `control`: equal "
        "updates and environment steps, random actions only. "
        f"Machine: {machine()}.",
        "",
        "| seed | against | explorer's states, worst tenth | explorer's states | random states | signs of a collapse "
        f"(bounds: {'; '.join(f'{k} {v}' for k, v in rows[0]['bounds'].items())}) |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        for against in AGAINST:
            c = row[against]
            cells = [c[whose][measure] for whose, measure in MEASURES]
            said = [f"{x['ratio']['mean']:.3f} [{x['ratio']['low']:.3f}, {x['ratio']['high']:.3f}]" for x in cells]
            told = "; ".join(f"{k} {low:.2g} to {high:.2g}" for k, (low, high) in row["signs"].items())
            out.append(f"| {row['seed']} | {against} | {' | '.join(said)} | {told} |")
    for against in AGAINST:
        means = [over_seeds(rows, against, *measure) for measure in MEASURES]
        out.append(f"| all | {against} | {' | '.join(f'{m.mean:.3f} [{m.low:.3f}, {m.high:.3f}]' for m in means)} | |")
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--student", required=True, help="{seed} in it stands for the seed of the game")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=16)
    parser.add_argument("--num_envs", type=int, default=4)
    parser.add_argument("--episodes", type=int, default=16)
    parser.add_argument("--runs", default="outputs/adversarial_targets")
    parser.add_argument("overrides", nargs="*", help="block.key=value for every run")
    args, place = parsed(parser, "adversarial_targets")
    rows = []
    for seed in range(args.seeds):
        game, other = train(args, seed, "game"), train(args, seed, "control", *control())
        rows.append(
            {
                "seed": seed, "signs": signs(game), "bounds": bounds(game),
                "control": compare(args, game, str(other), "control"),
                "teacher": compare(args, game, args.teacher, "teacher"),
            }
        )  # fmt: skip
        data = {"command": vars(args), "machine": machine(), "runs": rows}
        publish(place.with_suffix(".md"), place, table(rows, args), data)


if __name__ == "__main__":
    main()
