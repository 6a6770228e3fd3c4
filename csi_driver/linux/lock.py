"""A lock on a file that the kernel drops with the process that holds it; knows nothing of what it guards."""

from __future__ import annotations

import fcntl
import os


def lock_file(name: str, *, dir_fd: int | None = None) -> int | None:
    """Lock an existing file for this process alone; returns the descriptor that holds the lock, the caller's to keep.

    None when another process has it. The lock is flock(2)'s: it goes with the descriptor, also at SIGKILL.

    Raises:
        OSError: the file cannot be opened.
    """
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
