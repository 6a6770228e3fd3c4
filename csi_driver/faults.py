"""Named crash points: a step of a mutating operation announces itself, and a test may end the process there.

Knows nothing of what the steps mean. Off (one comparison per step) unless the environment asks for it:
`HOSTVOL_CRASH_AT=NAME[:N]` kills the process with SIGKILL at the N-th passage (default 1) of the point;
`HOSTVOL_CRASH_AT=@FILE` reads NAME[:N] from FILE at each step, so that a running process is armed and disarmed, and
counts from then on; `HOSTVOL_CRASH_LOG=FILE` appends the name of every point that is passed, one a line.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter

CRASH_AT = "HOSTVOL_CRASH_AT"
CRASH_LOG = "HOSTVOL_CRASH_LOG"


class _Points:
    """Counts passages and ends the process at the one that is asked for."""

    def __init__(self, wanted: str, log: str) -> None:
        self._file = wanted[1:] if wanted.startswith("@") else ""
        self._wanted = "" if self._file else _numbered(wanted)
        self._log = log
        self._passed: Counter[str] = Counter()
        self._lock = threading.Lock()

    def passed(self, name: str) -> None:
        with self._lock:
            if self._file:
                self._read_wanted()
            self._passed[name] += 1
            if self._log:
                self._write(name)
            if self._wanted == f"{name}:{self._passed[name]}":
                os.kill(os.getpid(), signal.SIGKILL)

    def _read_wanted(self) -> None:
        try:
            with open(self._file, encoding="ascii") as file:
                wanted = _numbered(file.read().strip())
        except FileNotFoundError:
            wanted = ""
        if wanted != self._wanted:
            self._wanted = wanted
            self._passed.clear()

    def _write(self, name: str) -> None:
        descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, f"{name}\n".encode())
        finally:
            os.close(descriptor)


def _numbered(wanted: str) -> str:
    return wanted if ":" in wanted or not wanted else f"{wanted}:1"


def _from_environment() -> _Points | None:
    wanted, log = os.environ.get(CRASH_AT, ""), os.environ.get(CRASH_LOG, "")
    return _Points(wanted, log) if wanted or log else None


_points = _from_environment()


def crash_point(name: str) -> None:
    """Announce that the step `name` is done and the next one has not begun."""
    if _points is not None:
        _points.passed(name)
