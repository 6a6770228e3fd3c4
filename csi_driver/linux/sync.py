"""What was written to one filesystem, brought to its disk; it knows no mount and no volume."""

from __future__ import annotations

import ctypes

from csi_driver.linux.libc import check, libc

_syncfs = libc.syncfs
_syncfs.argtypes = (ctypes.c_int,)
_syncfs.restype = ctypes.c_int
_syncfs.errcheck = check  # type: ignore[assignment]


def sync_filesystem(fd: int) -> None:
    """Everything that was written to the filesystem that `fd` is on is on its disk (syncfs(2)).

    Waits as long as that takes, also for a filesystem that is frozen.

    Raises:
        OSError: EIO, ENOSPC: something could not be written since the descriptor was opened (Linux 5.8).
    """
    _syncfs(fd)
