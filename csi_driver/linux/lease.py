"""Whether a file is open anywhere else, asked of the kernel by a lease that is given back soon; knows no volume."""

from __future__ import annotations

import errno
import fcntl
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

# include/uapi/asm-generic/fcntl.h, include/uapi/linux/fcntl.h
F_SETSIG: Final = 10
F_SETLEASE: Final = 1024
F_GETLEASE: Final = 1025


def is_open_elsewhere(fd: int) -> bool:
    """Tell whether somebody besides `fd` (open for reading and writing) has the file open: a process or a loop device.

    A write lease is granted only to a file's sole opener (fcntl(2), "Leases"). An opener by O_PATH does not count.

    Raises:
        OSError: EACCES without CAP_LEASE on another user's file; EINVAL where the filesystem has no leases.
    """
    return not _is_granted(fd, fcntl.F_WRLCK)


def is_written_elsewhere(fd: int) -> bool:
    """Tell whether somebody has the file open for writing: a process or a loop device. `fd` is open for reading only.

    A read lease is granted to any number of readers, as long as nobody writes. One loop device that is set read-only
    still has its file open for writing.

    Raises:
        OSError: as is_open_elsewhere; EAGAIN never.
    """
    return not _is_granted(fd, fcntl.F_RDLCK)


@contextmanager
def writers_kept_away(fd: int) -> Iterator[Callable[[], bool]]:
    """Tell, when asked before this ends, whether surely nobody could write to the file since it began.

    `fd` is open for reading only. Whoever opens the file for writing meanwhile waits, but not for ever
    (/proc/sys/fs/lease-break-time), so this is to last for milliseconds. False also where the filesystem has no leases,
    or gives us none.
    """
    try:
        granted = _is_granted(fd, fcntl.F_RDLCK, release=False)
    except OSError:
        granted = False
    try:
        yield lambda: granted and fcntl.fcntl(fd, F_GETLEASE) == fcntl.F_RDLCK
    finally:
        # EAGAIN where the kernel has given none, or taken it back.
        with suppress(OSError):
            fcntl.fcntl(fd, F_SETLEASE, fcntl.F_UNLCK)


def _is_granted(fd: int, kind: int, *, release: bool = True) -> bool:
    # Whoever opens the file in the microsecond while the lease is held would have SIGIO sent to us, whose default is
    # to end the process; SIGURG is ignored by default.
    fcntl.fcntl(fd, F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(fd, F_SETLEASE, kind)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return False
        raise
    if release:
        fcntl.fcntl(fd, F_SETLEASE, fcntl.F_UNLCK)
    return True
