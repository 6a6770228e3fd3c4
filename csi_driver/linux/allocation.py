"""Blocks given to a file before anything is written to them; it knows no image.

fallocate(2) itself: where a filesystem has none, posix_fallocate(3) reads and writes what lies there, which loses what
a writer beside it writes.

Source: include/uapi/linux/falloc.h.
"""

from __future__ import annotations

import ctypes
from typing import Final

from csi_driver.linux.libc import check, libc

FALLOC_FL_KEEP_SIZE: Final = 0x01

_fallocate = libc.fallocate64
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int
_fallocate.errcheck = check  # type: ignore[assignment]


def allocate(fd: int, start: int, length: int) -> None:
    """Give every hole of a range of the file blocks that read as zeros; its content and size stay as they are.

    Nothing is synced. Idempotent.

    Raises:
        OSError: ENOSPC, EFBIG, EDQUOT; EOPNOTSUPP where the filesystem cannot.
    """
    _fallocate(fd, FALLOC_FL_KEEP_SIZE, start, length)
