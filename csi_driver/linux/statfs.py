"""The magic number of the filesystem behind a descriptor; Python's statvfs leaves it out. Knows no names."""

from __future__ import annotations

import ctypes

from csi_driver.linux.libc import check, libc


class _StatFs(ctypes.Structure):
    # include/uapi/asm-generic/statfs.h as 64-bit machines have it: every word is a long.
    _fields_ = (
        ("f_type", ctypes.c_ulong),
        ("f_rest", ctypes.c_ulong * 14),
    )


_fstatfs = libc.fstatfs
_fstatfs.argtypes = (ctypes.c_int, ctypes.POINTER(_StatFs))
_fstatfs.restype = ctypes.c_int
_fstatfs.errcheck = check  # type: ignore[assignment]


def magic(fd: int) -> int:
    """Return f_type of statfs(2) (include/uapi/linux/magic.h); O_PATH is enough.

    Raises:
        OSError: EBADF, EIO.
    """
    answer = _StatFs()
    _fstatfs(fd, ctypes.byref(answer))
    return int(answer.f_type)
