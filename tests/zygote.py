"""A process that has imported the program and does nothing but fork: what it forks is there without the imports' time.

From its first line on a fork does what `python -m csi_driver` does, as a process of its own with an environment, a log
and an exit code of its own. It shares pages with its siblings: who measures memory starts the program itself.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence

_ANSWER_SECONDS = 60.0  # it may have to import the program first
_LONGEST_REQUEST = 1 << 17  # below the send buffer of a socket (net.core.wmem_default)
_DESCRIPTORS = 1024
_IMPORTED = ("app", "rpc.server", "cluster.link", "cluster.ferry", "cluster.router", "cluster.server")


class ZygoteEnded(Exception):
    """Nothing is forked any more, and of what was forked nobody tells the end."""


class ForkedProcess:
    """What subprocess.Popen tells of a child, for a child of the zygote.

    Raises: ZygoteEnded, by every method.
    """

    def __init__(self, told: socket.socket) -> None:
        self._told = told.detach()
        # Not sooner: who waits in another thread would wait for what else had the number by then.
        weakref.finalize(self, os.close, self._told)
        self._lock = threading.Lock()
        self.returncode: int | None = None
        if not _is_ready(self._told, _ANSWER_SECONDS):
            raise ZygoteEnded(f"the zygote has not forked within {_ANSWER_SECONDS:.0f} s")
        self.pid = _number(self._told, "before it had forked")

    def poll(self) -> int | None:
        """The exit code, or minus the signal's number; None while the process runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Raises: subprocess.TimeoutExpired."""
        code = self._look(timeout)
        if code is None:
            raise subprocess.TimeoutExpired(f"the fork {self.pid}", timeout or 0)
        return code

    def send_signal(self, number: int) -> None:
        """To the process, unless it has ended: its number may be another's then."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and we have not been told yet
                os.kill(self.pid, number)

    def _look(self, timeout: float | None) -> int | None:
        # Waiting holds no lock: another thread may look meanwhile, or send the signal that ends the waiting.
        if self.returncode is None and _is_ready(self._told, timeout):
            with self._lock:
                if self.returncode is None:
                    self.returncode = _number(self._told, f"before its fork {self.pid}")
        return self.returncode


def _is_ready(descriptor: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if timeout is None else timeout * 1000))


def _number(told: int, before: str) -> int:
    """What the zygote tells."""
    number = os.read(told, 32)
    if not number:
        raise ZygoteEnded(f"the zygote has ended {before}; it says on standard error why")
    return int(number)


class Zygote:
    """The process that forks, started when it is first asked; it ends with this one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: socket.socket | None = None

    def fork(
        self,
        arguments: Sequence[str],
        output: tuple[int, int],
        environment: Mapping[str, str],
        constants: Mapping[str, float],
    ) -> ForkedProcess:
        """`hostvol` with these arguments, in this environment and the working directory.

        `output`: descriptors for its standard output and its standard error; they stay the caller's.

        `constants` are set in its modules, by their names below csi_driver: what waits ten seconds need not, here.

        Raises: ZygoteEnded.
        """
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        request = json.dumps([list(arguments), dict(environment), os.getcwd(), dict(constants)]).encode()
        assert len(request) < _LONGEST_REQUEST
        try:
            with self._lock, theirs:
                socket.send_fds(self._started(), [request], [*output, theirs.fileno()])
        except ConnectionError as error:
            ours.close()
            raise ZygoteEnded("the zygote has ended; it says on standard error why") from error
        return ForkedProcess(ours)

    def _started(self) -> socket.socket:
        if self._requests is None:
            self._requests, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                command = [sys.executable, "-P", __file__, str(theirs.fileno())]
                process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
            atexit.register(_end, self._requests, process)
        return self._requests


def _end(requests: socket.socket, process: subprocess.Popen[bytes]) -> None:
    requests.close()
    process.wait(60)


def _fork_while_asked(asked: socket.socket) -> Sequence[str] | None:
    """Returns in every fork, with its arguments, and here with None when nobody can ask any more."""
    running: dict[int, tuple[int, int]] = {}  # by pidfd: the process, and whom to tell of its end
    poll = select.poll()
    poll.register(asked, select.POLLIN)
    while True:
        for ready, _ in poll.poll():
            if ready in running:
                poll.unregister(ready)
                _tell_end(ready, *running.pop(ready))
                continue
            request, descriptors, _, _ = socket.recv_fds(asked, _LONGEST_REQUEST, 3)
            if not request:
                return None
            *output, told = descriptors
            pid = os.fork()
            if pid == 0:
                asked.detach()
                return _become(request, output)
            for descriptor in output:
                os.close(descriptor)
            _tell(told, pid)
            ended = os.pidfd_open(pid)
            running[ended] = (pid, told)
            poll.register(ended, select.POLLIN)


def _tell_end(ended: int, pid: int, told: int) -> None:
    _tell(told, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    os.close(told)
    os.close(ended)


def _tell(told: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):  # whoever asked is gone
        os.write(told, str(number).encode())


def _become(request: bytes, output: Sequence[int]) -> Sequence[str]:
    """Make a fork what the program is when it starts."""
    arguments, environment, directory, constants = json.loads(request)
    for standard, given in enumerate(output, 1):
        os.dup2(given, standard)
    os.closerange(3, _DESCRIPTORS)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    importlib.reload(sys.modules["csi_driver.faults"])  # it reads the environment when it is imported
    for place, value in constants.items():
        module, _, name = place.rpartition(".")
        held = vars(importlib.import_module(f"csi_driver.{module}"))
        assert name in held, place
        held[name] = value
    return arguments  # type: ignore[no-any-return]


def main() -> None:
    """The zygote, and then each of its forks."""
    # A terminal's Ctrl-C goes to all processes: this one ends when nobody can ask any more.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in _IMPORTED:
        importlib.import_module(f"csi_driver.{name}")
    assert len(os.listdir("/proc/self/task")) == 1, "the forks would lack a thread"
    arguments = _fork_while_asked(socket.socket(fileno=int(sys.argv[1])))
    if arguments is not None:
        sys.argv = ["hostvol", *arguments]
        sys.modules["csi_driver.app"].main()


if __name__ == "__main__":
    main()
