"""Named crash points: a step of a mutating operation announces itself, and a test may end the process there.

Knows nothing of what the steps mean. Off (one comparison per step) unless the environment asks for it:
`HOSTVOL_CRASH_AT=NAME[:N]` kills the process with SIGKILL at the N-th passage (default 1) of the point;
`HOSTVOL_CRASH_LOG=FILE` appends the name of every point that is passed, one a line.
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
        name, _, number = wanted.partition(":")
        self._wanted = (name, int(number or 1))
        self._log = log
        self._passed: Counter[str] = Counter()
        self._lock = threading.Lock()

    def passed(self, name: str) -> None:
        with self._lock:
            self._passed[name] += 1
            if self._log:
                self._write(name)
            if (name, self._passed[name]) == self._wanted:
                os.kill(os.getpid(), signal.SIGKILL)

    def _write(self, name: str) -> None:
        descriptor = os.open(self._log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(descriptor, f"{name}\n".encode())
        finally:
            os.close(descriptor)


def _from_environment() -> _Points | None:
    wanted, log = os.environ.get(CRASH_AT, ""), os.environ.get(CRASH_LOG, "")
    return _Points(wanted, log) if wanted or log else None


_points = _from_environment()


def crash_point(name: str) -> None:
    """Announce that the step `name` is done and the next one has not begun."""
    if _points is not None:
        _points.passed(name)
