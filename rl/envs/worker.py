"""A child process that holds one object and answers calls of its methods: `python -m rl.envs.worker SOCKET PARENT`.

Started by `rl.envs.supervised`. It dies with its parent, leaves stop signals to the trainer (Ctrl+C and job managers
send them to everybody; the trainer ends its workers itself) and prints the stacks of its threads when it crashes or is
told to (SIGUSR2).
"""

import ctypes
import faulthandler
import os
import pickle
import signal
import socket
import struct
import sys
import time
import traceback
from typing import Any

PR_SET_PDEATHSIG = 1
LENGTH = struct.Struct("!Q")
# Names that are no method of the object.
BUILD, GET, SET = "__build__", "__get__", "__set__"


class Deadline:
    """Seconds that may pass. Those in which this process was stopped (a suspended job) hardly count."""

    SLICE_S = 1.0

    def __init__(self, seconds: float) -> None:
        self.left, self._last = seconds, time.monotonic()

    def next_slice(self) -> float:
        """Seconds to wait before asking again, a moment also when none are left: an answer may be there already."""
        now = time.monotonic()
        self.left -= min(now - self._last, 2 * self.SLICE_S)
        self._last = now
        return min(max(self.left, 1e-3), self.SLICE_S)


class Channel:
    """Pickled objects over a socket, whole or not at all."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection

    def send(self, value: Any, deadline: Deadline | None = None) -> None:
        """Raises TimeoutError at the deadline and OSError when the other side is gone."""
        data = pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)
        self.connection.settimeout(None if deadline is None else max(deadline.left, 1e-3))
        self.connection.sendall(LENGTH.pack(len(data)) + data)

    def receive(self, deadline: Deadline | None = None) -> Any:
        """Raises TimeoutError at the deadline and EOFError when the other side is gone."""
        (length,) = LENGTH.unpack(self._read(LENGTH.size, deadline))
        return pickle.loads(self._read(length, deadline))

    def _read(self, length: int, deadline: Deadline | None) -> bytearray:
        data = bytearray(length)
        view = memoryview(data)
        while len(view):
            self.connection.settimeout(None if deadline is None else deadline.next_slice())
            try:
                count = self.connection.recv_into(view)
            except TimeoutError:
                if deadline is not None and deadline.left <= 0:
                    raise
                continue
            except ConnectionError:
                count = 0
            if count == 0:
                raise EOFError
            view = view[count:]
        return data

    def close(self) -> None:
        self.connection.close()


def die_with(parent: int) -> None:
    """This process gets SIGKILL when its parent ends, however that happens."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it ended before the call
        os._exit(1)


def answer(target: Any, method: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    if method == GET:
        return getattr(target, *arguments)
    if method == SET:
        return setattr(target, *arguments)
    return getattr(target, method)(*arguments, **named)


def serve(channel: Channel) -> None:
    """Answers (generation, number, method, arguments, named arguments) with (generation, number, ok, value) until the
    parent is gone or a call raises: what raised may be in any state, and the parent starts another process."""
    target: Any = None
    while True:
        try:
            generation, number, method, arguments, named = channel.receive()
        except EOFError:
            return
        try:
            if method == BUILD:
                if target is not None:
                    target.close()
                target, value = pickle.loads(arguments[0])(), None
            else:
                value = answer(target, method, arguments, named)
        except Exception as e:  # noqa: BLE001 - whatever it was, the parent decides
            told = (isinstance(e, ValueError), f"{type(e).__name__}: {e}", str(e), traceback.format_exc())
            channel.send((generation, number, False, told))
            return
        channel.send((generation, number, True, value))


def main() -> None:
    descriptor, parent = int(sys.argv[1]), int(sys.argv[2])
    die_with(parent)
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(signum, signal.SIG_IGN)
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    try:
        serve(Channel(socket.socket(fileno=descriptor)))
    except OSError:  # the parent went away in the middle of an answer
        os._exit(1)
    sys.stderr.flush()
    os._exit(0)  # a simulator's tear-down may crash or hang, and nobody needs it


if __name__ == "__main__":
    main()
