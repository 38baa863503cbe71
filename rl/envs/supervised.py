"""Objects (simulators, environments) in child processes that may crash or hang without taking the trainer with them.

An exception, a crash, a kill or a missed deadline loses one object: its process is ended, what it was is reported, and
a new process builds it again from its factory. Nobody else's answers are touched, and an answer of an older process or
an older call cannot be taken for a new one: every process has its own socket, every message its generation and number.
"""

import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rl.config import SupervisionConfig
from rl.envs.worker import BUILD, Channel, Deadline

log = logging.getLogger(__name__)
LAST_WORDS_S = 0.3  # for the stacks of a process that hangs
PATIENCE_S = 5.0  # for the end of a process that has closed its socket (it may be writing a core file)


class EnvironmentsLostError(RuntimeError):
    """Environments are lost more often than `environment.supervision` allows; training on would hide a broken one."""


@dataclass(frozen=True)
class Lost:
    """What is returned instead of an answer."""

    reason: str


class Worker:
    """One child process and the object in it."""

    def __init__(self, factory: bytes) -> None:
        """factory: a pickled callable without arguments."""
        self._factory = factory
        self.generation = 0  # processes started so far
        self._number = 0
        self._asked = False
        self._refused: str | None = None  # the ValueError of the last answer
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> None:
        """Starts a process and asks it to build its object; `receive` waits for that."""
        ours, theirs = socket.socketpair()
        paths = os.pathsep.join(p or os.getcwd() for p in sys.path)
        command = [sys.executable, "-m", "rl.envs.worker", str(theirs.fileno()), str(os.getpid())]
        self._process = subprocess.Popen(
            command, env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}, stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno()], start_new_session=True,
        )  # fmt: skip
        theirs.close()
        self._channel = Channel(ours)
        self.generation += 1
        self.send(BUILD, (self._factory,), {}, Deadline(60.0))

    def send(self, method: str, arguments: tuple[Any, ...], named: dict[str, Any], deadline: Deadline) -> None:
        """Asks. A process that is gone or does not listen shows in `receive`."""
        self._number += 1
        self._asked = False
        try:
            self._channel.send((self.generation, self._number, method, arguments, named), deadline)
            self._asked = True
        except (OSError, TimeoutError):
            return

    def receive(self, deadline: Deadline) -> Any:
        """The answer to the last `send`, or Lost; after Lost there is no process any more."""
        self._refused = None
        try:
            # What `send` could not deliver is not waited for, but what the process said before it ended is read.
            limit = deadline if self._asked else Deadline(LAST_WORDS_S)
            generation, number, ok, value = self._channel.receive(limit)
        except TimeoutError:
            return self._lost("did not answer in time", hung=True)
        except (EOFError, pickle.UnpicklingError):
            return self._lost(None)
        assert (generation, number) == (self.generation, self._number), "an answer to another question"
        if ok:
            return value
        refused, short, text, trace = value
        if refused:
            self._refused = text
        log.debug("environment process %d: %s", self.pid, trace)
        return self._lost(f"raised {short}")

    def build_answer(self, deadline: Deadline, first: bool) -> Lost | None:
        """Waits for `start`. What the factory refuses at the first start is the user's mistake: ValueError."""
        answer = self.receive(deadline)
        if first and self._refused is not None:
            raise ValueError(self._refused)
        return answer if isinstance(answer, Lost) else None

    def _lost(self, reason: str | None, hung: bool = False) -> Lost:
        assert self._process is not None
        if hung:
            _signal(self._process, signal.SIGUSR2)
            time.sleep(LAST_WORDS_S)
        self.hang_up()
        code = self.end(0.0 if hung else PATIENCE_S)
        return Lost(reason if reason is not None else _exit_text(code))

    def hang_up(self) -> None:
        """An idle process ends by itself."""
        self._channel.close()

    def end(self, patience_s: float = LAST_WORDS_S) -> int:
        """Waits for the process after `hang_up`, and kills it; returns its exit code as subprocess gives it."""
        process = self._process
        assert process is not None
        try:
            return process.wait(patience_s)
        except subprocess.TimeoutExpired:
            _signal(process, signal.SIGKILL)
            return process.wait()


class Workers:
    """As many objects as factories. All calls are answered before one returns; objects that were lost are rebuilt."""

    def __init__(self, factories: Sequence[Callable[[], Any]], limits: SupervisionConfig) -> None:
        """Builds all at the same time. Raises ValueError for what a factory refuses, or that cannot be sent."""
        try:
            pickled = [pickle.dumps(f) for f in factories]
        except (pickle.PicklingError, AttributeError, TypeError) as e:
            raise ValueError(f"environment.isolation=process: {e}; make it of functions that can be imported") from e
        self.limits = limits
        self.losses: list[str] = []  # reasons, of the whole life
        self._steps = 0
        self._recent: deque[int] = deque()  # steps at which objects were lost
        self._workers = [Worker(f) for f in pickled]
        started = []
        try:
            for worker in self._workers:
                worker.start()
                started.append(worker)
            deadline = Deadline(limits.start_timeout_s)
            for i, worker in enumerate(self._workers):
                lost = worker.build_answer(deadline, first=True)
                if lost is not None:
                    raise EnvironmentsLostError(f"environment {i} could not be built: {lost.reason}")
        except BaseException:
            _end_all(started)
            raise

    def __len__(self) -> int:
        return len(self._workers)

    @property
    def pids(self) -> list[int]:
        return [w.pid for w in self._workers]

    def generation(self, index: int) -> int:
        """How many processes the object has had."""
        return self._workers[index].generation

    def step(self) -> None:
        """A step of the environments, as `limits.window` counts them."""
        self._steps += 1

    def call(
        self, method: str, arguments: Sequence[tuple[Any, ...]] | None = None, rows: Sequence[int] | None = None,
        named: Sequence[dict[str, Any]] | None = None,
    ) -> list[Any]:  # fmt: skip
        """`method(*arguments[k], **named[k])` of the object `rows[k]`, all at the same time; the answers in that order.

        In place of an answer of an object that was lost there is `Lost`; a new one has been built in its place. Raises
        EnvironmentsLostError when that happens too often.
        """
        rows = range(len(self)) if rows is None else rows
        deadline = Deadline(self.limits.step_timeout_s)
        for k, row in enumerate(rows):
            given = () if arguments is None else arguments[k]
            self._workers[row].send(method, given, {} if named is None else named[k], deadline)
        answers = [self._workers[row].receive(deadline) for row in rows]
        for row, answer in zip(rows, answers, strict=True):
            if isinstance(answer, Lost):
                self._rebuild(row, answer)
        return answers

    def build_again(self) -> list[Any]:
        """Every object is closed and built anew, in the process that it has."""
        return self.call(BUILD, [(w._factory,) for w in self._workers])

    def _rebuild(self, row: int, lost: Lost | None) -> None:
        while lost is not None:
            self._count(row, lost.reason)
            worker = self._workers[row]
            worker.start()
            lost = worker.build_answer(Deadline(self.limits.start_timeout_s), first=False)

    def _count(self, row: int, reason: str) -> None:
        limits = self.limits
        self.losses.append(reason)
        self._recent.append(self._steps)
        while self._recent[0] <= self._steps - limits.window:
            self._recent.popleft()
        count = len(self._recent)
        if count > limits.max_failures:
            raise EnvironmentsLostError(
                f"environments of this process were lost {count} times within {limits.window} steps, the last one "
                f"(number {row}) because it {reason}; mend the simulator, or allow more with "
                "environment.supervision.max_failures"
            )
        log.warning(
            "environment %d was lost: it %s. It is built again, its episode is dropped (%d of at most %d in %d steps)",
            row, reason, count, limits.max_failures, limits.window,
        )  # fmt: skip

    def close(self) -> None:
        """Ends all processes."""
        _end_all(self._workers)


def _end_all(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.hang_up()
    for worker in workers:
        worker.end()


def _signal(process: subprocess.Popen[bytes], signum: signal.Signals) -> None:
    """To the whole session of the process, if there is anybody left."""
    try:
        os.killpg(process.pid, signum)
    except ProcessLookupError:
        return


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"
