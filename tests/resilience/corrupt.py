"""Damages checkpoints at random: `python -m tests.resilience.corrupt [--count 1000] [--json FILE] [--seed N]`.

The newest checkpoint of a real run is damaged (bits, blocks, cuts, additions, deletions, in one to three files). Each
time the damage must be noticed, the previous checkpoint chosen, and training go on from it: one more iteration must end
with the parameters that it ends with after a resume from undamaged files. Exit code 1 when one of that fails once.
"""

import argparse
import json
import logging
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rl.training import cli, provenance, train_arm
from rl.training.checkpoint import CheckpointManager, open_checkpoint
from rl.training.checkpoint_files import checkpoint_dirs
from rl.training.errors import CheckpointError
from rl.training.loop import Loop, Pace
from rl.training.parallel_utils import ParallelContext, parameter_hash
from rl.training.policy_phase import PolicyPhase
from rl.training.preemption import StopFlag
from tests.training import policy_runs
from tests.training.run_here import undisturbed

ITERATIONS = 3
SMALL = {  # environment steps of an iteration, and what makes it short
    "PPO": (16, ["ppo.n_steps=4", "ppo.minibatch_size=16"]),
    "FASTSAC": (8, ["sac.learning_starts=8", "sac.batch_size=8", "sac.buffer_size=256"]),
}


# --- damage -----------------------------------------------------------------------------------------------------------


def flip(data: bytearray, rng: random.Random) -> bytes:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def overwrite(data: bytearray, rng: random.Random) -> bytes:
    """A block of random bytes, as of another file."""
    start = rng.randrange(len(data))
    block = rng.randbytes(min(rng.choice([1, 16, 512, 4096]), len(data) - start))
    data[start : start + len(block)] = block
    return data


def erase(data: bytearray, rng: random.Random) -> bytes:
    """A block of zeros, as where a disk lost a page."""
    start = rng.randrange(len(data))
    size = min(rng.choice([1, 16, 512, 4096]), len(data) - start)
    data[start : start + size] = bytes(size)
    return data


def cut(data: bytearray, rng: random.Random) -> bytes:
    return data[: rng.randrange(len(data))]


def take_out(data: bytearray, rng: random.Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.choice([1, 7, 512]) :]


def append(data: bytearray, rng: random.Random) -> bytes:
    return data + rng.randbytes(rng.choice([1, 64, 4096]))


def empty(data: bytearray, rng: random.Random) -> bytes:
    return b""


DAMAGES: dict[str, Callable[[bytearray, random.Random], bytes] | None] = {
    "flip": flip, "overwrite": overwrite, "erase": erase, "cut": cut, "take_out": take_out, "append": append,
    "empty": empty, "delete": None,
}  # fmt: skip


def damage(checkpoint: Path, rng: random.Random) -> list[tuple[str, str]]:
    """Changes one to three files of a checkpoint, each for sure; (kind, file name) of each."""
    files = sorted(p for p in checkpoint.rglob("*") if p.is_file())
    done = []
    for file in rng.sample(files, rng.choice([1, 1, 1, 2, 3])):
        kind, original = rng.choice(list(DAMAGES)), file.read_bytes()
        function = DAMAGES[kind]
        changed = original
        while function is not None and changed == original:  # zeros over zeros change nothing
            changed = bytes(function(bytearray(original), rng))
        if function is None:
            file.unlink()
        else:
            file.write_bytes(changed)
        done.append((kind, file.relative_to(checkpoint).as_posix()))
    return done


# --- training ---------------------------------------------------------------------------------------------------------


class Victim:
    """A finished run whose newest checkpoint is to be damaged, and what goes on from the one before."""

    def __init__(self, algorithm: str, place: Path) -> None:
        each, settings = SMALL[algorithm]
        self.place, self.each = place / algorithm, each
        every = [f"arm.save_every={each}", f"arm.log_every={each}", "arm.eval_every=1000000"]
        argv = policy_runs.flags(
            "arm", algorithm, self.place, "--steps", str(ITERATIONS * each), *settings, *every,
            "logging.console_level=ERROR", "logging.enable_file_logging=false", "training.num_threads=1",
        )  # fmt: skip
        with undisturbed():
            try:
                cli.run_main("arm", train_arm.main, argv)
            except SystemExit as e:
                assert e.code == 0
        args = cli.parse("arm", argv)
        self.ctx = ParallelContext.create(args.config.training)
        self.total = 10 * ITERATIONS * each
        self.phase = PolicyPhase(args.config, "arm", self.ctx, self.total, self.place)
        self.before = checkpoint_dirs(self.place)[1]
        intact = place / f"{algorithm}_intact"
        shutil.copytree(self.before, intact / self.before.name)
        self.expected = self.continued(intact)

    def continued(self, run: Path) -> tuple[int, str]:
        """Resumes a run directory as `--auto_resume` does: the step chosen, and the parameters an iteration later."""
        manager = CheckpointManager(run, 2, self.ctx)
        saved = manager.load()
        assert saved is not None
        loop = Loop(self.phase, Pace(self.each, self.each), self.total, self.ctx, None, manager, StopFlag(), False)
        loop.restore(saved)
        loop._iteration()
        return saved.step, parameter_hash(self.phase.inner.greedy)


def trial(victim: Victim, place: Path, rng: random.Random) -> tuple[list[tuple[str, str]], bool, bool, bool]:
    """What was damaged; whether that was noticed, the previous checkpoint chosen, the same training continued."""
    run = place / "damaged"
    shutil.copytree(victim.place, run, ignore=shutil.ignore_patterns("*.log", "logs"))
    newest = checkpoint_dirs(run)[0]
    done = damage(newest, rng)
    try:
        open_checkpoint(newest)
        noticed = False
    except ValueError:
        noticed = True
    try:
        step, parameters = victim.continued(run)
    except CheckpointError:
        step, parameters = -1, ""
    shutil.rmtree(run)
    return done, noticed, step == victim.expected[0], (step, parameters) == victim.expected


def campaign(count: int, seed: int, place: Path) -> dict[str, Any]:
    """`count` trials on the runs of SMALL in turn; JSON data."""
    rng, start = random.Random(seed), time.monotonic()
    kinds: Counter[str] = Counter()
    files: Counter[str] = Counter()
    noticed = chosen = continued = 0
    logging.disable(logging.WARNING)  # each trial warns of its damaged checkpoint
    try:
        victims = [Victim(algorithm, place) for algorithm in SMALL]
        for i in range(count):
            done, *found = trial(victims[i % len(victims)], place, rng)
            kinds.update(kind for kind, _ in done)
            files.update(name for _, name in done)
            noticed, chosen, continued = noticed + found[0], chosen + found[1], continued + found[2]
        for victim in victims:
            victim.phase.close()
        victims[0].ctx.close()
    finally:
        logging.disable(logging.NOTSET)
    return {
        "corruptions": count, "noticed": noticed, "previous_chosen": chosen, "continued_equal": continued,
        "kinds": dict(sorted(kinds.items())), "files": dict(sorted(files.items())), "seed": seed,
        "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the results there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        result = campaign(args.count, args.seed, Path(place))
    result |= {"command": f"python -m tests.resilience.corrupt --count {args.count} --seed {args.seed}"}
    result |= {"machine": provenance.machine()}
    for key in ("corruptions", "noticed", "previous_chosen", "continued_equal", "kinds", "files", "seconds"):
        print(f"{key:<16} {result[key]}")
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return int(not result["noticed"] == result["previous_chosen"] == result["continued_equal"] == args.count)


if __name__ == "__main__":
    raise SystemExit(main())
