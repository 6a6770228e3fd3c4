"""How soon the kernel runs a thread; it does not know what the thread does.

Source: sched(7), sched_setscheduler(2), include/uapi/linux/sched.h. To the kernel the calling thread is process 0.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_log = logging.getLogger("hostvol.scheduling")
_ORDINARY: Final = frozenset({os.SCHED_OTHER, os.SCHED_BATCH, os.SCHED_IDLE})
# The least of the real-time priorities: before all ordinary threads, behind all others that have one.
_LEAST: Final = 1


@contextmanager
def before_ordinary_threads() -> Iterator[None]:
    """The calling thread, and no other, waits for no ordinary thread to leave it a CPU, until this ends.

    For a system call that holds a lock that others wait for, and ends soon: an ordinary thread that is preempted
    there keeps it locked for as long as others want the CPU. Nothing else belongs inside, least of all Python that
    runs for long. Processes that are forked meanwhile are ordinary ones (SCHED_RESET_ON_FORK).

    Where that is not allowed (no CAP_SYS_NICE and no RLIMIT_RTPRIO, or a control group without real-time budget), and
    in a thread that has such a priority already, nothing changes.
    """
    before = _raise()
    try:
        yield
    finally:
        if before is not None:
            _put_back(before)


def _raise() -> int | None:
    """The policy that the calling thread had before it was given the priority; None where it was not."""
    try:
        before = os.sched_getscheduler(0)
        if before & ~os.SCHED_RESET_ON_FORK not in _ORDINARY:
            return None
        os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(_LEAST))
    except OSError as error:
        _tell_once(error.strerror)
        return None
    return before


def _put_back(before: int) -> None:
    """Make the thread an ordinary one again, which needs no right; its nice value was kept."""
    ordinary = os.sched_param(0)
    try:
        os.sched_setscheduler(0, before, ordinary)
    except PermissionError:
        # Who had the right from RLIMIT_RTPRIO alone cannot take the flag back. It concerns only forks.
        os.sched_setscheduler(0, before | os.SCHED_RESET_ON_FORK, ordinary)


@functools.cache
def _tell_once(cause: str) -> None:
    _log.debug("cuts of images go at ordinary priority and may wait for a CPU: %s", cause)
