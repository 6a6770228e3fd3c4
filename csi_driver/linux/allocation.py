"""Blocks given to a file before anything is written to them; it knows descriptors and bytes alone.

fallocate(2) itself: where a filesystem has none, posix_fallocate(3) reads and writes what lies there, which loses what
a writer beside it writes.

Source: include/uapi/linux/falloc.h.
"""

from __future__ import annotations

import ctypes
import os
from typing import Final

from csi_driver.linux.libc import check, libc

FALLOC_FL_KEEP_SIZE: Final = 0x1
# While it allocates, a filesystem keeps the writers of the file waiting.
STEP_BYTES: Final = 1 << 30

# fallocate(descriptor, mode, offset, length); raises OSError.
fallocate: Final = libc.fallocate64
fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
fallocate.restype = ctypes.c_int
fallocate.errcheck = check  # type: ignore[assignment]


def allocate(fd: int, start: int, end: int) -> None:
    """Every block of the file from `start` to `end` (bytes) is allocated; its size stays as it is. Idempotent.

    What has blocks keeps them, with what is in them; the others read as zeros. Not durable before an fsync.

    Raises:
        OSError: ENOSPC: a part may be allocated then, which `drop_behind_end` gives back behind the end of the
            file; EOPNOTSUPP: the filesystem cannot.
    """
    for step in range(start, end, STEP_BYTES):
        fallocate(fd, FALLOC_FL_KEEP_SIZE, step, min(STEP_BYTES, end - step))


def drop_behind_end(fd: int) -> None:
    """Give back what is allocated behind the end of the file.

    Raises:
        OSError: EIO.
    """
    # ext4 and XFS do that also when the size stays the same (fs/ext4/inode.c, ext4_setattr).
    os.ftruncate(fd, os.fstat(fd).st_size)


def is_whole(fd: int) -> bool:
    """Whether the file has as many blocks as its size needs; nobody has punched holes in it.

    Raises:
        OSError: EIO.
    """
    found = os.fstat(fd)
    return found.st_blocks * 512 >= found.st_size
