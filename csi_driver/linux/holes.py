"""Where a file has data, and holes made in it; it knows no extent and no image.

Source: lseek(2) (SEEK_DATA), fallocate(2), include/uapi/linux/falloc.h. Descriptors stay the caller's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from typing import Final

from csi_driver.linux.allocation import FALLOC_FL_KEEP_SIZE, fallocate

FALLOC_FL_PUNCH_HOLE: Final = 0x2


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
    fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, length)
