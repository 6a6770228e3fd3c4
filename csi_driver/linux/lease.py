"""Whether a file is open anywhere else, asked of the kernel by a lease that is given back at once; knows no volume."""

from __future__ import annotations

import errno
import fcntl
import signal
from typing import Final

# include/uapi/asm-generic/fcntl.h, include/uapi/linux/fcntl.h
F_SETSIG: Final = 10
F_SETLEASE: Final = 1024


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


def _is_granted(fd: int, kind: int) -> bool:
    # Whoever opens the file in the microsecond while the lease is held would have SIGIO sent to us, whose default is
    # to end the process; SIGURG is ignored by default.
    fcntl.fcntl(fd, F_SETSIG, signal.SIGURG)
    try:
        fcntl.fcntl(fd, F_SETLEASE, kind)
    except OSError as error:
        if error.errno == errno.EAGAIN:
            return False
        raise
    fcntl.fcntl(fd, F_SETLEASE, fcntl.F_UNLCK)
    return True
