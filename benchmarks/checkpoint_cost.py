"""What checkpoints cost a run: `python -m benchmarks.checkpoint_cost [--json FILE] [--seed N]`.

The tiny model in phase 1 with its default configuration and a full episode buffer. Each kind of saving is measured in
turn with training going on in between: the time that training waits (state taken, copied or written, committed), the
time the files take, and how much slower updates are while files are written beside them. Shares are of the time between
two saves, `training.save_every` episodes at the measured speed of training.
"""

import argparse
import copy
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rl import config as rl_config
from rl.training import provenance, rng
from rl.training.checkpoint import CheckpointManager
from rl.training.gpu import setup_sapien_gpu
from rl.training.model_setup import build_world_model
from rl.training.parallel_utils import ParallelContext
from rl.training.teacher_phase import TeacherPhase


class Run:
    """A teacher whose buffer is full and whose optimizer has its state."""

    def __init__(self, overrides: list[str]) -> None:
        self.cfg = rl_config.load(None, overrides)
        arch = rl_config.load_model(self.cfg.model.config_file)
        self.ctx = ParallelContext.create(self.cfg.training)
        model = build_world_model(self.cfg, arch, self.cfg.teacher.freeze, self.ctx)
        self.phase = TeacherPhase(self.cfg, model, self.ctx)
        self.step = 0

    def episode(self) -> float:
        """Seconds of one iteration of training."""
        start = time.perf_counter()
        self.phase.collect(self.step)
        self.step += 1
        for _ in range(self.phase.updates_per_iteration):
            self.phase.update(self.step)
        return time.perf_counter() - start

    def fill(self) -> None:
        buffer = self.phase.buffer
        while len(buffer) < (buffer.episodes.maxlen or 0):
            buffer.add(copy.deepcopy(buffer.episodes[0]))

    def save(self, manager: CheckpointManager) -> dict[str, Any]:
        """One save, and training until it is committed."""
        start = time.perf_counter()
        state = self.phase.checkpoint()
        state.per_rank["rng"] = rng.capture(self.ctx.device)
        self.step += 1
        path = manager.save(self.step, state, wait=False)
        blocked, updates = time.perf_counter() - start, []
        began = time.perf_counter()
        while not path.exists():
            update = time.perf_counter()
            self.phase.update(self.step)
            updates.append(time.perf_counter() - update)
            polled = time.perf_counter()
            manager.poll()
            blocked += time.perf_counter() - polled
        beside = time.perf_counter() - began
        size = sum(f.stat().st_size for f in path.rglob("*"))
        return {"blocked_s": blocked, "beside_s": beside, "updates": updates, "bytes": size}


def measure(run: Run, place: Path, asynchronous: bool, repeats: int, update_s: float) -> dict[str, float]:
    """Medians over `repeats` saves after one that is not counted."""
    place.mkdir()
    manager = CheckpointManager(place, 2, run.ctx, asynchronous=asynchronous)
    saves = [run.save(manager) for _ in range(repeats + 1)][1:]
    updates = [u for s in saves for u in s["updates"]]
    slower = max(0.0, statistics.mean(updates) / update_s - 1) if updates else 0.0
    result = {k: statistics.median(s[k] for s in saves) for k in ("blocked_s", "beside_s", "bytes")}
    return result | {"updates_slower": slower, "lost_s": result["blocked_s"] + slower * result["beside_s"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the results there")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--episodes", type=int, default=5, help="episodes that the speed of training is measured over")
    parser.add_argument("--place", type=Path, help="directory on the disk to measure; default: the temporary one")
    parser.add_argument("overrides", nargs="*", help="block.key=value")
    args = parser.parse_args()

    setup_sapien_gpu()
    run = Run([f"training.seed={args.seed}", *args.overrides])
    run.episode()
    episode_s = statistics.median(run.episode() for _ in range(args.episodes))
    run.fill()
    undisturbed = []
    for _ in range(20):
        start = time.perf_counter()
        run.phase.update(run.step)
        undisturbed.append(time.perf_counter() - start)
    update_s = statistics.mean(undisturbed)
    save_every = run.cfg.training.save_every
    interval = episode_s * save_every / run.phase.units_per_iteration
    result: dict[str, Any] = {
        "command": "python -m benchmarks.checkpoint_cost", "machine": provenance.machine(), "seed": args.seed,
        "episode_s": episode_s, "save_every": save_every, "interval_s": interval,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(dir=args.place) as place:
        for name, asynchronous in (("waiting", False), ("beside training", True)):
            row = measure(run, Path(place) / name.split()[0], asynchronous, args.repeats, update_s)
            result[name] = row | {"stall_share": row["blocked_s"] / interval, "lost_share": row["lost_s"] / interval}
    run.phase.close()
    run.ctx.close()
    report(result)
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def report(result: dict[str, Any]) -> None:
    print(result["machine"])
    print(f"an episode {result['episode_s']:.2f} s, a save every {result['save_every']}: {result['interval_s']:.0f} s")
    print(f"{'written':<16} {'MB':>7} {'stall s':>8} {'of interval':>12} {'files s':>8} {'updates slower':>15}")
    for name in ("waiting", "beside training"):
        r = result[name]
        files = r["beside_s"] if name != "waiting" else r["blocked_s"]
        print(f"{name:<16} {r['bytes'] / 1e6:>7.1f} {r['blocked_s']:>8.3f} {r['stall_share']:>12.3%} {files:>8.2f} "
              f"{r['updates_slower']:>15.0%}")  # fmt: skip


if __name__ == "__main__":
    main()
