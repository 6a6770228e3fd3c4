"""Copies of files that share blocks, or leave out holes; it knows neither images nor snapshots.

Source: include/uapi/linux/fs.h (FICLONE, FICLONERANGE), ioctl_ficlone(2), copy_file_range(2). Descriptors stay the
caller's.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import struct
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from typing import Final, NamedTuple

from csi_driver.linux import btrfs, extents, scheduling
from csi_driver.linux.attributes import InodeFlag, get_flags, set_flags
from csi_driver.linux.ioctl import iow

FICLONE: Final = iow(0x94, 9, 4)
# struct file_clone_range: src_fd, src_offset, src_length (0: to the end), dest_offset
FILE_CLONE_RANGE: Final = struct.Struct("=qQQQ")
FICLONERANGE: Final = iow(0x94, 13, FILE_CLONE_RANGE.size)

# Of CPU time it is 10 and 3; the rest is waiting for the log and for metadata.
_SECONDS_PER_EXTENT: Final = 17e-6
_SECONDS_PER_BTRFS_EXTENT: Final = 6e-6
# What may go before all ordinary threads of a machine. Less is over before the thread is preempted, and giving the
# priority back costs it the CPU now and then (one time in a hundred, 7 ms at a load of 17 on two CPUs). More keeps
# others from a CPU for too long, the kernel's own threads among them, for which the cut may come to wait.
_LEAST_URGENT_SECONDS: Final = 1e-3
_MOST_URGENT_SECONDS: Final = 0.1

_PROBE_BYTES: Final = 4096
# One step of a copy: progress and cancellation wait for it. 16 MiB are some 10 ms of disk.
_STEP_BYTES: Final = 16 << 20
_BUFFER_BYTES: Final = 1 << 20
_CANNOT_REFLINK: Final = frozenset(
    {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOTTY, errno.EXDEV, errno.ENOSYS, errno.EPERM}
)
_NO_UNNAMED_FILES: Final = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT})
_NO_COPY_IN_KERNEL: Final = frozenset({errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS})


class Cost(NamedTuple):
    """What sharing all blocks of a file takes: so many extents, and about so many seconds."""

    extents: int
    seconds: float


def cost(source_fd: int) -> Cost:
    """What clone_file of the source is going to take; counting takes a twentieth of it, and nobody waits for that.

    Raises:
        OSError: EOPNOTSUPP on a filesystem without FIEMAP (tmpfs).
    """
    count = extents.extent_count(source_fd)
    return Cost(count, count * (_SECONDS_PER_BTRFS_EXTENT if btrfs.is_btrfs(source_fd) else _SECONDS_PER_EXTENT))


def clone_file(source_fd: int, target_fd: int, expected: Cost | None = None) -> None:
    """Make an empty target share all blocks of the source, as of one instant, and have its size.

    (A longer target would keep its tail, or be refused when the source ends inside one of its blocks.)
    Costs some 17 µs per extent (6 on btrfs), during which writes to the source wait; on a loaded machine many times
    as long, unless 1 to 100 ms are `expected`: then the kernel does it before all ordinary work. Nothing is
    synced.

    Raises:
        OSError: EOPNOTSUPP or EINVAL where the filesystem cannot; EXDEV across filesystems; EINVAL also on
            btrfs when only one of the two is NOCOW; ETXTBSY for an active swap file; ENOSPC.
    """
    is_urgent = expected is not None and _LEAST_URGENT_SECONDS <= expected.seconds < _MOST_URGENT_SECONDS
    # Whoever waits for the lock that this holds waits for a CPU as well when this thread does. No Python runs inside
    # but the call itself, which does not hold the GIL.
    with scheduling.before_ordinary_threads() if is_urgent else nullcontext():
        fcntl.ioctl(target_fd, FICLONE, source_fd)


def clone_beginning(source_fd: int, target_fd: int, length: int) -> None:
    """Make an empty target share the first `length` bytes of the source, or all there are, in whole blocks.

    Nothing is synced; the target's size is somewhere in its last block.

    Raises:
        OSError: as clone_file.
    """
    found = os.fstat(source_fd)
    whole = -(-length // found.st_blksize) * found.st_blksize
    count = 0 if whole >= found.st_size else whole
    fcntl.ioctl(target_fd, FICLONERANGE, FILE_CLONE_RANGE.pack(source_fd, 0, count, 0))


def copy_beginning(source_fd: int, target_fd: int, length: int, *, progress: Callable[[int], None]) -> None:
    """Copy the first `length` bytes of the source, or all there are, into an empty file; holes stay holes.

    The target ends where the copy does. Moves the file offset of the source. Nothing is synced. `progress` is called as
    by `copy_sparse`.

    Raises:
        OSError: as copy_sparse.
    """
    length = min(length, os.fstat(source_fd).st_size)
    os.ftruncate(target_fd, length)
    copied, end = 0, 0
    while (start := _next_data(source_fd, end, length)) < length:
        end = min(os.lseek(source_fd, start, os.SEEK_HOLE), length)
        while start < end:
            step = _copy_step(source_fd, target_fd, start, min(end - start, _STEP_BYTES))
            start, copied = start + step, copied + step
            progress(copied)


def probe(dir_fd: int, other_fd: int | None = None) -> bool:
    """Tell whether files of this directory can share blocks, by sharing one block of a file that has no name.

    With `other_fd`: whether a file of that directory can share those of a file in this one.

    Raises:
        OSError: ENOSPC, EROFS, EIO: the question has no answer now.
    """
    with ExitStack() as stack:
        source = _temporary_file(dir_fd)
        stack.callback(os.close, source)
        target = _temporary_file(dir_fd if other_fd is None else other_fd)
        stack.callback(os.close, target)
        os.pwrite(source, b"\0" * _PROBE_BYTES, 0)
        try:
            clone_file(source, target)
        except OSError as error:
            if error.errno in _CANNOT_REFLINK:
                return False
            raise
        return True


def clone_unnamed(source_fd: int, dir_fd: int, expected: Cost | None = None) -> int:
    """Return a descriptor, the caller's, of a file without a name that shares all blocks of the source as of now.

    It is in the directory's filesystem, and gone with its descriptor, also after a crash.

    Raises:
        OSError: as clone_file.
    """
    target_fd = _temporary_file(dir_fd)
    try:
        if get_flags(source_fd) & InodeFlag.NOCOW:
            set_flags(target_fd, get_flags(target_fd) | InodeFlag.NOCOW)
        clone_file(source_fd, target_fd, expected)
    except BaseException:
        os.close(target_fd)
        raise
    return target_fd


def copy_unnamed(source_fd: int, dir_fd: int, *, progress: Callable[[int], None] | None = None) -> int:
    """The same with blocks of its own, copied as by `copy_sparse`.

    Raises:
        OSError: as copy_sparse; what `progress` raises.
    """
    target_fd = _temporary_file(dir_fd)
    try:
        copy_sparse(source_fd, target_fd, progress=progress)
    except BaseException:
        os.close(target_fd)
        raise
    return target_fd


def copy_sparse(source_fd: int, target_fd: int, *, progress: Callable[[int], None] | None = None) -> int:
    """Copy a file's data into an empty one and leave its holes holes; return the bytes copied.

    The target gets the source's size. Preallocated space that was never written is a hole. On a filesystem
    that shares blocks the kernel may share them instead. A source that is written meanwhile gives a torn
    copy. `progress` is called with the bytes copied so far after every 16 MiB at most; what it raises ends
    the copy. Moves the file offsets of the source. Nothing is synced.

    Raises:
        OSError: ENOSPC, EIO; EINVAL when the target is not empty; EIO when the source shrinks meanwhile.
    """
    if os.fstat(target_fd).st_size:
        raise OSError(errno.EINVAL, "the target of a sparse copy is not empty")
    size = os.fstat(source_fd).st_size
    os.ftruncate(target_fd, size)
    copied, end = 0, 0
    while (start := _next_data(source_fd, end, size)) < size:
        end = min(os.lseek(source_fd, start, os.SEEK_HOLE), size)
        while start < end:
            step = _copy_step(source_fd, target_fd, start, min(end - start, _STEP_BYTES))
            start, copied = start + step, copied + step
            if progress is not None:
                progress(copied)
    if os.fstat(source_fd).st_size < size:
        raise _shrunk()
    return copied


def copy_data(source_fd: int, target_fd: int, *, progress: Callable[[int], None] | None = None) -> int:
    """Write a file's data over the same places of another one, sharing nothing; return the bytes copied.

    What is a hole in the source stays as it is in the target, which gets at least the source's size: a target that is
    preallocated (and reads as zeros) keeps its own blocks. Moves the file offset of the source. Nothing is synced.
    `progress` is called as by `copy_sparse`.

    Raises:
        OSError: ENOSPC, EIO; EIO when the source shrinks meanwhile.
    """
    size = os.fstat(source_fd).st_size
    if os.fstat(target_fd).st_size < size:
        os.ftruncate(target_fd, size)
    copied, end = 0, 0
    while (start := _next_data(source_fd, end, size)) < size:
        end = min(os.lseek(source_fd, start, os.SEEK_HOLE), size)
        while start < end:
            step = _copy_through_memory(source_fd, target_fd, start, min(end - start, _BUFFER_BYTES))
            start, copied = start + step, copied + step
            if progress is not None:
                progress(copied)
    return copied


def _next_data(fd: int, offset: int, size: int) -> int:
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:  # no data behind the offset
            return size
        raise


def _copy_step(source_fd: int, target_fd: int, offset: int, count: int) -> int:
    """Copy up to `count` bytes, at least one."""
    try:
        copied = os.copy_file_range(source_fd, target_fd, count, offset, offset)
    except OSError as error:
        if error.errno not in _NO_COPY_IN_KERNEL:
            raise
        copied = 0
    # Some filesystems answer 0 instead of an error (kernels before 5.19), so 0 is not taken for the end.
    return copied or _copy_through_memory(source_fd, target_fd, offset, min(count, _BUFFER_BYTES))


def _copy_through_memory(source_fd: int, target_fd: int, offset: int, count: int) -> int:
    data = os.pread(source_fd, count, offset)
    if not data:
        raise _shrunk()
    return os.pwrite(target_fd, data, offset)


def _shrunk() -> OSError:
    return OSError(errno.EIO, "the source of a copy became shorter")


def _temporary_file(dir_fd: int) -> int:
    try:
        return os.open(".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    except OSError as error:
        if error.errno not in _NO_UNNAMED_FILES:
            raise
    name = f".probe-{secrets.token_hex(8)}"
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=dir_fd)
    os.unlink(name, dir_fd=dir_fd)
    return fd
