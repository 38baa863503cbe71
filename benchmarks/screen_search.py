"""Where does an optimised reward lead beside the noisy screen? `python -m benchmarks.screen_search --teacher DIR`.

Cross-entropy method (de Boer et al. 2005) over how the arm turns: in the first TURNING steps of an episode every joint
moves at a constant rate, afterwards actions are random. One search for each reward of phase 2 that there is without a
memory (`student.rewards.uncertainty`), from the same draws in the same scenes: with the screen, and with nothing in its
place, for objects on the table draw looks there, too. Then the turns that were found, in scenes that no search saw: how
much of the wrist camera's view the place of the screen fills. A reward is distracted when that is more with the screen
than without. Writes docs/results/screen_search.{md,json}.
"""

import argparse
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.noisy_screen import SCREEN
from benchmarks.runs import parsed, publish
from rl.data.intrinsic import epistemic_share
from rl.data.statistics import bootstrap_mean, compare_paired
from rl.training import cli
from rl.training.collector import EpisodeCollector, RandomActions
from rl.training.evaluation.acting import held_out_scenes
from rl.training.evaluation.explored import screen_shares
from rl.training.evaluation.frames import score_frames
from rl.training.evaluation.loading import LoadedRun, action_mask, load_run
from rl.training.evaluation.output import comparison_data
from rl.training.parallel_utils import ParallelContext
from rl.training.provenance import machine

Array = npt.NDArray[np.float64]
Paid = dict[str, Array]  # by reward
REWARDS = ("entropy", "disagreement", "share")
PLACES = {"with the screen": True, "without": False}
STEPS, TURNING = 20, 10  # of an episode
WIDTH, LEAST_WIDTH = 0.5, 0.1  # std of the first turns that are tried, and the least one later


@dataclass
class Turned:
    """Actions of episodes `first`, `first` + 1, ...: the turn of each, (episodes, real dims); then random ones."""

    random: RandomActions
    first: int
    turns: Array

    def __call__(self, observations: dict[str, npt.NDArray[Any]], episode: int, step: int) -> npt.NDArray[np.float32]:
        actions = self.random(observations, episode, step)
        if step < TURNING:
            actions[:, self.random.mask] = self.turns[episode - self.first]
        return actions


class Search:
    """A normal distribution of turns, each joint by itself."""

    def __init__(self, size: int, elite: int, seed: int) -> None:
        self.mean, self.std = np.zeros(size), np.full(size, WIDTH)
        self.elite, self.rng = elite, np.random.default_rng(seed)

    def draw(self, count: int) -> Array:
        """(count, size), rates of the joints in -1 .. 1."""
        return np.clip(self.mean + self.std * self.rng.standard_normal((count, len(self.mean))), -1, 1)

    def learn(self, turns: Array, reward: Array) -> None:
        """The next distribution is that of the best paid ones."""
        best = turns[np.argsort(-reward, kind="stable")[: self.elite]]
        self.mean, self.std = best.mean(0), np.maximum(best.std(0), LEAST_WIDTH)


class World:
    """Scenes with the screen and without, and what a world model says of episodes in them."""

    def __init__(self, teacher: str) -> None:
        argv = ["--checkpoint", teacher, "--device", "cpu", "training.num_threads=1", SCREEN]
        given = cli.parse("evaluate", [*argv, f"training.steps_per_episode={STEPS}"])
        self.ctx = ParallelContext.create(given.config.training)
        self.run: LoadedRun = load_run(Path(teacher), "--teacher", given, self.ctx.device, "teacher")
        self.scenes: dict[bool, EpisodeCollector] = {}
        for screen in (True, False):
            cfg = copy.deepcopy(self.run.cfg)
            cfg.environment.domain_randomization.noisy_screen = screen
            self.scenes[screen] = held_out_scenes(cfg, self.run.arch, self.ctx)
        self.mask = action_mask(self.run.cfg, self.run.arch)

    def play(self, screen: bool, first: int, turns: Array | None, episodes: int, seed: int) -> tuple[Paid, Array]:
        """Each reward's mean, and the share of the view that the place of the screen fills, over the steps after the
        turn; by episode. screen: it is there. turns None: random actions from the start."""
        random, scenes = RandomActions(seed, 0, self.mask, 1), self.scenes[screen]
        scenes.rebuild(first)
        act = random if turns is None else Turned(random, first, turns)
        records = scenes.collect_steps(episodes * STEPS, act)
        scores = score_frames(self.run, records, self.ctx).uncertainty
        # A score at step t is of the frame that follows it.
        scores["share"] = epistemic_share({k: torch.from_numpy(x) for k, x in scores.items()}).numpy()
        paid = {k: scores[k][:, TURNING:].mean(1) for k in REWARDS}
        return paid, np.stack(screen_shares(records))[:, 1 + TURNING :].mean(1)

    def close(self) -> None:
        for scenes in self.scenes.values():
            scenes.close()
        self.ctx.close()


def searched(world: World, args: argparse.Namespace, seed: int) -> dict[str, Any]:
    """By reward, with the screen and without: the turn that was found, its reward and what it sees, against random
    actions in the same scenes."""
    rows: dict[str, Any] = {"seed": seed} | {name: {} for name in REWARDS}
    last = args.generations * args.population
    for label, screen in PLACES.items():
        paid, random_view = world.play(screen, last, None, args.episodes, seed)
        for name in REWARDS:
            search, way = Search(int(world.mask.sum()), args.elite, seed), []
            for generation in range(args.generations):
                turns = search.draw(args.population)
                reward, view = world.play(screen, generation * args.population, turns, args.population, seed)
                search.learn(turns, reward[name])
                way.append({"reward": float(reward[name].mean()), "view": float(view.mean())})
                print(f"seed {seed}, {label}, {name}, generation {generation}: {way[-1]}", flush=True)
            turns = np.tile(search.mean, (args.episodes, 1))
            found, view = world.play(screen, last, turns, args.episodes, seed)
            rows[name][label] = {
                "way": way, "turn": search.mean.tolist(), "view": view.tolist(), "random_view": random_view.tolist(),
                "paid": comparison_data({name: compare_paired(found[name], paid[name], 2000, 0)})[name]["difference"],
            }  # fmt: skip
    return rows


def distraction(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """View of the place with the screen minus without, by reward, and that of entropy minus each other one's; mean of
    the given seeds in every scene, intervals over scenes."""
    by_scene = {name: [np.mean([row[name][label]["view"] for row in rows], 0) for label in PLACES] for name in REWARDS}
    compared = {name: compare_paired(there, gone, 2000, 0) for name, (there, gone) in by_scene.items()}
    drawn = {name: there - gone for name, (there, gone) in by_scene.items()}
    first, *others = REWARDS
    apart = {f"{first} minus {o}": vars(bootstrap_mean(drawn[first] - drawn[o], 2000, 0)) for o in others}
    return {k: vars(c.difference) for k, c in compared.items()} | apart


def said(interval: dict[str, float]) -> str:
    return f"{interval['mean']:+.3f} [{interval['low']:+.3f}, {interval['high']:+.3f}]"


def table(rows: list[dict[str, Any]], args: argparse.Namespace) -> str:
    out = [
        "# Where an optimised reward leads beside the noisy screen", "",
        f"Cross-entropy method, {args.generations} generations of {args.population} episodes of {STEPS} steps; what it "
        f"found in {args.episodes} scenes that no search saw. `view`: share of the wrist camera's view that the place "
        "of the screen fills; 95 % intervals over scenes. "
        f"Machine: {machine()}.", "",
        "| seed | reward | scenes | reward, found - random | view, random | view, found | view with screen - without |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        distracted = distraction([row])
        for name in REWARDS:
            for label, r in row[name].items():
                cells = [said(r["paid"]), f"{np.mean(r['random_view']):.3f}", f"{np.mean(r['view']):.3f}"]
                last = said(distracted[name]) if PLACES[label] else ""
                out.append(f"| {row['seed']} | {name} | {label} | {' | '.join(cells)} | {last} |")
    out += [f"| all | {name} | | | | | {said(found)} |" for name, found in distraction(rows).items()]
    return "\n".join(out) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--generations", type=int, default=5)
    parser.add_argument("--population", type=int, default=24)
    parser.add_argument("--elite", type=int, default=6)
    parser.add_argument("--episodes", type=int, default=24, help="scenes that no search saw")
    args, place = parsed(parser, "screen_search")
    world, rows = World(args.teacher), []
    for seed in range(args.seeds):
        rows.append(searched(world, args, seed))
        data = {"command": vars(args), "machine": machine(), "distraction": distraction(rows), "runs": rows}
        publish(place.with_suffix(".md"), place, table(rows, args), data)
    world.close()


if __name__ == "__main__":
    main()
