"""The C library as this package calls it: typed calls that raise OSError; it knows no call's meaning."""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Callable
from typing import Final

# Only calls older than Linux 5.1 differ between architectures; all later ones share one number
# (include/uapi/asm-generic/unistd.h, arch/x86/entry/syscalls/syscall_64.tbl).
SYS_STATX: Final = 332 if os.uname().machine == "x86_64" else 291
SYS_OPEN_TREE: Final = 428
SYS_MOVE_MOUNT: Final = 429
SYS_FSOPEN: Final = 430
SYS_FSCONFIG: Final = 431
SYS_FSMOUNT: Final = 432
SYS_FSPICK: Final = 433
SYS_OPENAT2: Final = 437
SYS_MOUNT_SETATTR: Final = 442
SYS_QUOTACTL_FD: Final = 443

# include/uapi/linux/fcntl.h
AT_FDCWD: Final = -100
AT_SYMLINK_NOFOLLOW: Final = 0x100
AT_NO_AUTOMOUNT: Final = 0x800
AT_EMPTY_PATH: Final = 0x1000

CArgument = (
    ctypes.c_int | ctypes.c_uint | ctypes.c_long | ctypes.c_ulong | ctypes.c_size_t | ctypes.c_char_p | ctypes.c_void_p
)

libc: Final = ctypes.CDLL(None, use_errno=True)


def check(result: int, function: object, arguments: tuple[object, ...]) -> int:
    """Return `result`, or raise what errno says when it is -1 (an `errcheck` of ctypes).

    Raises:
        OSError: with the errno of the failed call.
    """
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def declare(
    number: int,
    *argtypes: type[CArgument],
) -> Callable[..., int]:
    """Return a typed function for one system call that has no wrapper in every C library.

    The arguments are converted by `argtypes`, as C would: an int never travels as 32 bits where 64 are meant.
    The call releases the GIL.

    Raises (the returned function):
        OSError: with the errno of the call.
    """
    prototype = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long, *argtypes, use_errno=True)
    function = prototype(("syscall", libc))
    function.errcheck = check  # type: ignore[assignment]
    return functools.partial(function, number)


_untyped: Final = declare(0).func  # type: ignore[attr-defined]


def syscall(number: int, *arguments: object) -> int:
    """Make a system call by its number; ints travel as `long`, the rest (bytes, byref) as ctypes does it.

    For rare calls: a frequent one is `declare`d once, which is faster and typed.

    Raises:
        OSError: with the errno of the call.
    """
    converted = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = _untyped(number, *converted)
    return result
