"""A lock on a file that the kernel drops with the process that holds it; knows nothing of what it guards."""

from __future__ import annotations

import fcntl


def try_lock(descriptor: int) -> bool:
    """Lock the open file or directory for this process alone; False when another one has it.

    The lock is flock(2)'s: it goes with the descriptor, also at SIGKILL.

    Raises:
        OSError: EBADF.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
