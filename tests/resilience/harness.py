"""Runs of `cases.py` in forked processes, killed at random moments and continued, compared with uninterrupted ones.

A process that has imported everything is forked for every start, so a start costs what the run itself costs. A moment
is a number of CPU seconds of a rank, so that a busy machine changes nothing.
"""

import importlib
import json
import os
import random
import re
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from rl.training import cli
from rl.training.checkpoint import FAULT_POINTS, open_checkpoint
from tests.resilience.cases import CASES, Case, Sources
from tests.training import student_runs, teacher_runs

TICK = os.sysconf("SC_CLK_TCK")
PATIENCE_S = 600.0  # until a start counts as hung
GRACE_S = 20.0  # between SIGTERM and SIGKILL
# Numbers that no two runs share: durations, rates and memory.
WALL = re.compile(r"(_per_s|_s|seconds|memory_gb)$|(^|/)time_")


@dataclass(frozen=True)
class Blow:
    """What happens to a start: a signal to one rank after some CPU seconds, or SIGKILL at a step of a save."""

    signum: int = 0
    rank: int = 0
    cpu_s: float = 0.0
    fault_point: str | None = None

    def __str__(self) -> str:
        if self.fault_point is not None:
            return f"SIGKILL at {self.fault_point}"
        return f"{signal.Signals(self.signum).name} to rank {self.rank} after {self.cpu_s:.2f} s"


@dataclass
class Outcome:
    codes: list[int]  # of the ranks; negative: killed by that signal
    cpu_s: float  # most of a rank
    output: str

    @property
    def done(self) -> bool:
        return set(self.codes) == {0}

    @property
    def struck(self) -> bool:
        """The blow came before the end."""
        return not self.done


def start(case: Case, argv: list[str], ranks: int, folder: Path, blow: Blow | None = None) -> Outcome:
    """Runs `case` once on `ranks` processes; returns when all have ended."""
    env = {"FAULT_POINT": blow.fault_point} if blow is not None and blow.fault_point is not None else {}
    if ranks > 1:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        env |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "GLOO_SOCKET_IFNAME": "lo"}
    logs = [folder / f"output-rank{r}.txt" for r in range(ranks)]
    for log in logs:  # a rank may be killed before it has opened its own
        log.write_text("")
    pids = [_fork(case, argv, logs[r], env | (_rank_env(r, ranks) if ranks > 1 else {})) for r in range(ranks)]
    codes, cpu_s = _wait(pids, blow)
    return Outcome(codes, cpu_s, "".join(log.read_text() for log in logs))


def _rank_env(rank: int, ranks: int) -> dict[str, str]:
    return {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}


def _fork(case: Case, argv: list[str], log: Path, env: dict[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, signal.SIG_DFL)
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(out, 1)
        os.dup2(out, 2)
        os.environ.update(env)
        torch.set_num_threads(1)
        cli.run_main(case.phase, case.entry, argv)  # type: ignore[arg-type]
    except SystemExit as e:
        code = e.code if isinstance(e.code, int) else 1
    except BaseException:  # noqa: BLE001 - nothing of the parent may go on in the child
        traceback.print_exc()
    finally:
        if code == 0 and "F1_MODULES" in os.environ:
            Path(os.environ["F1_MODULES"]).write_text(json.dumps(sorted(sys.modules)))
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _wait(pids: list[int], blow: Blow | None) -> tuple[list[int], float]:
    """Exit codes and the most CPU time of a rank. When one rank fails, the others get SIGTERM and then SIGKILL, as from
    a launcher: one that waits for a peer that died before they met would wait for the group's timeout."""
    codes: dict[int, int] = {}
    most, struck, told, deadline = (
        0.0,
        blow is None or blow.fault_point is not None,
        False,
        time.monotonic() + PATIENCE_S,
    )
    while len(codes) < len(pids):
        for rank, pid in enumerate(pids):
            if rank in codes:
                continue
            used = _cpu_seconds(pid)
            most = max(most, used)
            if not struck and blow is not None and blow.rank == rank and used >= blow.cpu_s:
                os.kill(pid, blow.signum)
                struck = True
            ended, state = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes[rank] = os.waitstatus_to_exitcode(state)
        left = [p for r, p in enumerate(pids) if r not in codes]
        if left and not told and any(c not in (0, 75) for c in codes.values()):
            told = time.monotonic()
            for pid in left:
                os.kill(pid, signal.SIGTERM)
        if told and left and time.monotonic() > told + GRACE_S:
            told = time.monotonic()
            for pid in left:
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
            raise AssertionError(f"hung: ranks {left} did not end within {PATIENCE_S} s")
        time.sleep(0.004)
    return [codes[r] for r in range(len(pids))], most


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICK


# --- what is compared ------------------------------------------------------------------------------------------------


def difference(a: Any, b: Any, where: str = "") -> str | None:
    """The first place where two trees of tensors and plain data differ, None when they are equal bit for bit."""
    if type(a) is not type(b):
        return f"{where}: {type(a).__name__} and {type(b).__name__}"
    if isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape and torch.equal(_bits(a), _bits(b))
        return None if same else where
    if isinstance(a, dict):
        if a.keys() != b.keys():
            return f"{where}: keys {sorted(map(str, a.keys() ^ b.keys()))}"
        pairs = [(a[k], b[k], f"{where}.{k}") for k in a if not WALL.search(str(k))]
    elif isinstance(a, list | tuple):
        if len(a) != len(b):
            return f"{where}: {len(a)} and {len(b)} entries"
        pairs = [(x, y, f"{where}[{i}]") for i, (x, y) in enumerate(zip(a, b, strict=True))]
    else:
        return None if a == b or (a != a and b != b) else f"{where}: {a} and {b}"
    return next((found for x, y, w in pairs if (found := difference(x, y, w)) is not None), None)


def _bits(t: torch.Tensor) -> torch.Tensor:
    return t.detach().contiguous().flatten().view(torch.uint8) if t.numel() else t


def final_state(run: Path) -> dict[str, Any]:
    """Everything the newest checkpoint holds, and all lines of metrics."""
    saved = open_checkpoint(run)
    files = [f["name"] for f in saved.manifest["files"] if f["name"].endswith(".pt")]
    lines = [json.loads(line) for line in (run / "episode_metrics.jsonl").read_text().splitlines()]
    return {"step": saved.step, "metrics": lines, **{name: saved.read(name) for name in files}}


# --- chains ----------------------------------------------------------------------------------------------------------


@dataclass
class Chain:
    """One run that was killed and continued until it was done."""

    case: str
    ranks: int
    blows: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)  # empty: as it should be
    cpu_s: float = 0.0


class Harness:
    """Makes sources and uninterrupted runs once, in `folder`, and chains of kills against them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sources = Sources(folder / "tokenizer.safetensors", folder / "teacher" / "run", folder / "student")
        self._seconds: dict[tuple[str, int], float] = {}  # CPU seconds of the uninterrupted runs
        self._modules = folder / "modules.json"
        self.folder.mkdir(parents=True, exist_ok=True)

    def straight(self, name: str, ranks: int) -> Path:
        """Directory of the uninterrupted run of a case."""
        place = self.folder / f"straight-{name}-{ranks}"
        if (name, ranks) not in self._seconds:
            self._make_sources(CASES[name].needs)
            shutil.rmtree(place, ignore_errors=True)
            os.environ["F1_MODULES"] = str(self._modules)
            outcome = start(CASES[name], CASES[name].flags(self.sources, place), ranks, self.folder)
            del os.environ["F1_MODULES"]
            assert outcome.done, outcome.output
            self._import_what_it_took()
            self._seconds[name, ranks] = outcome.cpu_s
        return place

    def _import_what_it_took(self) -> None:
        """So that the next start need not."""
        for name in json.loads(self._modules.read_text()) if self._modules.exists() else []:
            if name not in sys.modules and not name.startswith(("__", "tests.")):
                try:
                    importlib.import_module(name)
                except ImportError:  # made by hand, not imported
                    continue

    def _make_sources(self, needs: tuple[str, ...]) -> None:
        if needs and not self.sources.tokenizer.exists():
            teacher_runs.make_tokenizer(self.sources.tokenizer)
        s = self.sources
        makers: dict[str, tuple[Case, Callable[[], list[str]]]] = {
            "teacher": (CASES["teacher"], lambda: student_runs.teacher_flags(s.tokenizer, s.teacher)),
            "student": (CASES["student"], lambda: student_runs.flags(s.teacher, s.student, 2)),
        }
        for need in needs:
            place = getattr(self.sources, need)
            if need in makers and not (place / "status.json").exists():
                case, argv = makers[need]
                outcome = start(case, argv(), 1, self.folder)
                assert outcome.done, outcome.output

    def chain(self, name: str, ranks: int, kills: int, rng: random.Random) -> Chain:
        """Kills a run of the case `kills` times at random moments and compares its end with the uninterrupted one."""
        straight, case = self.straight(name, ranks), CASES[name]
        found, place = Chain(name, ranks), self.folder / "killed"
        shutil.rmtree(place, ignore_errors=True)
        argv, newest = [*case.flags(self.sources, place), "--auto_resume"], -1
        for _ in range(kills):
            blow = self._blow(name, ranks, rng)
            outcome = start(case, argv, ranks, self.folder, blow)
            found.cpu_s += outcome.cpu_s * ranks
            if outcome.done:  # the blow would have come later
                break
            found.blows.append(str(blow))
            newest = self._after_a_blow(found, place, outcome, blow, newest)
        else:
            outcome = start(case, argv, ranks, self.folder)
            found.cpu_s += outcome.cpu_s * ranks
        if not outcome.done:
            found.complaints.append(f"did not end: {outcome.codes}: {outcome.output[-2000:]}")
        elif (where := difference(final_state(straight), final_state(place))) is not None:
            found.complaints.append(f"differs from the uninterrupted run: {where}")
        hidden = [p.name for p in place.iterdir() if p.name.startswith(".")]
        if hidden:
            found.complaints.append(f"left behind: {hidden}")
        return found

    def _blow(self, name: str, ranks: int, rng: random.Random) -> Blow:
        kind, rank = rng.random(), rng.randrange(ranks)
        if kind < 0.25:
            return Blow(fault_point=rng.choice(FAULT_POINTS))
        signum = signal.SIGTERM if kind < 0.35 else signal.SIGKILL
        return Blow(signum, rank, rng.uniform(0.0, self._seconds[name, ranks]))

    def _after_a_blow(self, chain: Chain, place: Path, outcome: Outcome, blow: Blow, newest: int) -> int:
        """Step of the newest verified checkpoint, which no blow may have taken away."""
        expected = {-signal.SIGKILL, 75} | ({-signal.SIGTERM} if blow.signum == signal.SIGTERM else set())
        if not expected & set(outcome.codes):
            chain.complaints.append(f"{blow}: ended with {outcome.codes}: {outcome.output[-2000:]}")
        step = open_checkpoint(place).step if any(place.glob("checkpoint-*")) else -1
        if step < newest:
            chain.complaints.append(f"{blow}: the newest checkpoint was {newest}, now it is {step}")
        return step
