"""Where a file has data, and holes made in it; it knows no extent and no image.

Source: lseek(2) (SEEK_DATA), fallocate(2), include/uapi/linux/falloc.h. Descriptors stay the caller's.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from typing import Final

from csi_driver.linux.libc import check, libc

FALLOC_FL_KEEP_SIZE: Final = 0x1
FALLOC_FL_PUNCH_HOLE: Final = 0x2

_fallocate: Final = libc.fallocate64
_fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_fallocate.restype = ctypes.c_int
_fallocate.errcheck = check  # type: ignore[assignment]


def data_ranges(fd: int, start: int, end: int) -> Iterator[tuple[int, int]]:
    """Where a file has data between two places, in order, as (first byte, first byte behind).

    Space that was preallocated and never written is a hole. Moves the file offset.

    Raises: OSError.
    """
    position = start
    while position < end:
        try:
            position = os.lseek(fd, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data behind the place
                return
            raise
        if position >= end:
            return
        behind = min(os.lseek(fd, position, os.SEEK_HOLE), end)
        yield position, behind
        position = behind


def punch(fd: int, offset: int, length: int) -> None:
    """Make a range of a file read as zeros and take no space, in whole blocks; the file keeps its size.

    Raises: OSError: EOPNOTSUPP where the filesystem cannot.
    """
    _fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, length)
