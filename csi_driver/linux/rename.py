"""renameat2(2): two names exchanged at one instant, or one moved where none is; knows nothing of what bears them."""

from __future__ import annotations

import ctypes
import os
from typing import Final

from csi_driver.linux.libc import declare

# arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h
_SYS_RENAMEAT2: Final = 316 if os.uname().machine == "x86_64" else 276
# include/uapi/linux/fs.h
RENAME_NOREPLACE: Final = 1
RENAME_EXCHANGE: Final = 2

_renameat2 = declare(_SYS_RENAMEAT2, ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)


def exchange(one_fd: int, one: str, other_fd: int, other: str) -> None:
    """What bears the name `one` below `one_fd` bears `other` below `other_fd`, and the other way round.

    After a crash both have changed, or neither; it is durable once both directories are synced.

    Raises: OSError: ENOENT when one is missing; EINVAL where the filesystem cannot; EXDEV.
    """
    _renameat2(one_fd, os.fsencode(one), other_fd, os.fsencode(other), RENAME_EXCHANGE)


def move(from_fd: int, name: str, to_fd: int) -> None:
    """What bears the name below `from_fd` bears it below `to_fd`, where nothing did.

    Raises: OSError: EEXIST; ENOENT; EINVAL where the filesystem cannot; EXDEV.
    """
    _renameat2(from_fd, os.fsencode(name), to_fd, os.fsencode(name), RENAME_NOREPLACE)
