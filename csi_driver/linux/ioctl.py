"""How ioctl numbers are composed and structures handed over; it knows no particular request.

Source: include/uapi/asm-generic/ioctl.h.
"""

from __future__ import annotations

import fcntl
from typing import Final

_WRITE: Final = 1
_READ: Final = 2


def io(kind: int, number: int) -> int:
    """_IO: a request without an argument of its own."""
    return _compose(0, kind, number, 0)


def ior(kind: int, number: int, size: int) -> int:
    """_IOR: the kernel fills a structure of `size` bytes."""
    return _compose(_READ, kind, number, size)


def iow(kind: int, number: int, size: int) -> int:
    """_IOW: the kernel reads a structure of `size` bytes."""
    return _compose(_WRITE, kind, number, size)


def iowr(kind: int, number: int, size: int) -> int:
    """_IOWR: the kernel reads a structure of `size` bytes and fills it."""
    return _compose(_READ | _WRITE, kind, number, size)


def exchange(fd: int, request: int, structure: bytearray) -> int:
    """Make the request with `structure` as its argument, which holds the kernel's answer afterwards.

    Returns what the request does, mostly 0.

    Raises:
        OSError: with the errno of the request.
    """
    # A mutable buffer even where the kernel only reads: given immutable bytes, fcntl.ioctl keeps the GIL, and
    # one request that waits for a transaction would stop every thread.
    answer: int = fcntl.ioctl(fd, request, structure, True)
    return answer


def _compose(direction: int, kind: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | kind << 8 | number
