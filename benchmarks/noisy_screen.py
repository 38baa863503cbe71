"""What does a look at the noisy screen pay? `python -m benchmarks.noisy_screen --teacher DIR [DIR ...]`.

In the same held-out scenes, all with the screen, random actions and actions that first turn to it. For every world
model the mean of each uncertainty (what phase 2 is rewarded with) over frames that show the screen and over frames of
random actions that do not. Nothing about the screen can be learned: what pays there is a distraction. Writes
docs/results/noisy_screen.{md,json}.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.runs import parsed, publish
from rl.config import ActingPolicy
from rl.data.statistics import Interval, bootstrap
from rl.training import cli
from rl.training.collector import RandomActions
from rl.training.evaluation.acting import action_source, held_out_scenes, play
from rl.training.evaluation.explored import screen_shares
from rl.training.evaluation.frames import score_frames
from rl.training.evaluation.loading import action_mask, load_run
from rl.training.parallel_utils import ParallelContext
from rl.training.provenance import machine
from rl.training.scripted_actions import TowardsScreen

SCREEN = "environment.domain_randomization.noisy_screen=true"
SHOWN = 0.25  # share of the view from which on a frame shows the screen
CHOSEN = 4  # one in so many random episodes is chosen


def measure(teacher: str, args: argparse.Namespace) -> dict[str, Any]:
    """Loss and uncertainties of both kinds of frames, and what the screen pays, with intervals over episodes."""
    given = cli.parse("evaluate", ["--checkpoint", teacher, "--device", "cpu", "training.num_threads=1", SCREEN])
    ctx = ParallelContext.create(given.config.training)
    run = load_run(Path(teacher), "--teacher", given, ctx.device, "teacher")
    scenes = held_out_scenes(run.cfg, run.arch, ctx)
    seed, mask = run.cfg.evaluation.seed, action_mask(run.cfg, run.arch)
    towards = TowardsScreen(RandomActions(seed, 0, mask, 1), run.cfg.environment.action_scale)
    records = [
        play(scenes, act, args.episodes) for act in (action_source(ActingPolicy.random, run, seed, ctx), towards)
    ]
    scenes.close()
    scores = [score_frames(run, r, ctx) for r in records]
    # A score at step t is of the frame that follows it.
    shares = np.concatenate([np.stack(screen_shares(r))[:, 1:] for r in records])
    random = np.repeat([True, False], args.episodes)[:, None]
    there, elsewhere = (shares >= SHOWN) & ~random, (shares == 0) & random
    columns = {"nll": np.concatenate([s.nll for s in scores])}
    columns |= {k: np.concatenate([s.uncertainty[k] for s in scores]) for k in scores[0].uncertainty}
    rows, view = {}, shares[: args.episodes].mean(1)  # of the random episodes, which come first
    for name, x in columns.items():
        pays = bootstrap(
            lambda i, x=x: float(x[i][there[i]].mean() - x[i][elsewhere[i]].mean()),  # type: ignore[misc]
            [args.episodes, args.episodes], 2000, 0,
        )  # fmt: skip
        rows[name] = {"screen": float(x[there].mean()), "elsewhere": float(x[elsewhere].mean()),
                      "std": float(x[elsewhere].std()), **vars(pays),
                      "chosen": vars(chosen(x[: args.episodes].mean(1), view))}  # fmt: skip
    ctx.close()
    counts = {"frames": int(there.sum()), "frames_elsewhere": int(elsewhere.sum())}
    return {"teacher": teacher, **counts, "view": float(view.mean()), "measures": rows}


def chosen(reward_E: np.ndarray, view_E: np.ndarray) -> Interval:
    """View of the best rewarded episodes minus view of all; episodes are drawn again for the interval."""

    def difference(index: np.ndarray) -> float:
        best = index[np.argsort(-reward_E[index], kind="stable")[: max(1, len(index) // CHOSEN)]]
        return float(view_E[best].mean() - view_E[index].mean())

    return bootstrap(difference, [len(view_E)], 2000, 0)


def table(runs: list[dict[str, Any]], args: argparse.Namespace) -> str:
    out = [
        "# What a look at the noisy screen pays", "",
        f"{args.episodes} held-out scenes, each with random actions and with actions that turn to the screen. "
        f"`screen`: mean over frames of which it fills {SHOWN:.0%} or more; `elsewhere`: over frames of random actions "
        "without it. Nats a token, scales weigh the same; 95 % interval of the difference over episodes; the last "
        "but one divides it by the spread of frames elsewhere. `chosen`: share of the view that the screen fills in "
        f"the best rewarded one of {CHOSEN} random episodes, minus that in all of them. Machine: {machine()}.", "",
        "| teacher | measure | screen | elsewhere | screen - elsewhere | in spreads | chosen |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for run in runs:
        for name, r in run["measures"].items():
            c = r["chosen"]
            out.append(
                f"| {Path(run['teacher']).name} | {name} | {r['screen']:.4f} | {r['elsewhere']:.4f} | "
                f"{r['mean']:+.4f} [{r['low']:+.4f}, {r['high']:+.4f}] | {r['mean'] / r['std']:+.2f} | "
                f"{c['mean']:+.3f} [{c['low']:+.3f}, {c['high']:+.3f}] |"
            )
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", nargs="+", required=True, help="run directories")
    parser.add_argument("--episodes", type=int, default=40)
    args, place = parsed(parser, "noisy_screen")
    runs = [measure(teacher, args) for teacher in args.teacher]
    data = {"command": vars(args), "machine": machine(), "runs": runs}
    publish(place.with_suffix(".md"), place, table(runs, args), data)


if __name__ == "__main__":
    main()
