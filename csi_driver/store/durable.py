"""Files and directories that survive a power cut once a function here has returned; knows nothing of their content.

On ext4, XFS and btrfs this order is enough: fsync of the file, of its directory, rename, fsync of the new parent.
"""

from __future__ import annotations

import os
import stat

from csi_driver.faults import crash_point

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Without O_NONBLOCK a pipe in the place of a file would hold its opener for ever.
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_WRITE_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1 << 16


def open_directory(name: str, *, dir_fd: int | None = None) -> int:
    """A descriptor of a directory, never through a symbolic link at its last component; the caller closes it."""
    return os.open(name, DIRECTORY, dir_fd=dir_fd)


def write_new(dir_fd: int, name: str, content: bytes) -> None:
    """Create `name` with `content` and fsync it; the directory entry is the caller's to fsync.

    Raises: FileExistsError; OSError.
    """
    descriptor = create(dir_fd, name)
    try:
        write_all(descriptor, content)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def create(dir_fd: int, name: str) -> int:
    """A descriptor, the caller's, of a new empty file to write to.

    Raises: FileExistsError; OSError.
    """
    return os.open(name, _WRITE_NEW, 0o600, dir_fd=dir_fd)


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of `content`, however many calls it takes.

    Raises: OSError: ENOSPC, EIO.
    """
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]


def replace(dir_fd: int, name: str, content: bytes) -> None:
    """Put `content` in the place of `name`: after a crash there is the old content or the new, never a mixture.

    Idempotent: a temporary file that an earlier crash left is overwritten.
    """
    temporary = f"{name}.new"
    unlink_if_there(dir_fd, temporary)
    write_new(dir_fd, temporary, content)
    crash_point("replace.written")
    os.rename(temporary, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    crash_point("replace.renamed")
    os.fsync(dir_fd)


def read_small(dir_fd: int, name: str, *, limit_bytes: int) -> bytes:
    """The whole content of a regular file below a directory.

    Raises: FileNotFoundError; ValueError when it is larger than `limit_bytes` or no regular file; OSError.
    """
    descriptor = os.open(name, _READ, dir_fd=dir_fd)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("not a regular file")
        content = os.read(descriptor, _CHUNK)
        if len(content) == _CHUNK or len(content) > limit_bytes:
            raise ValueError(f"larger than {limit_bytes} bytes")
        return content
    finally:
        os.close(descriptor)


def unlink_if_there(dir_fd: int, name: str) -> None:
    """`name` is absent afterwards. Idempotent."""
    try:
        os.unlink(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return


def ensure_directory(dir_fd: int, name: str, mode: int = 0o700) -> bool:
    """`name` is a directory afterwards; True when it was made now (its parent then wants an fsync)."""
    try:
        os.mkdir(name, mode, dir_fd=dir_fd)
    except FileExistsError:
        return False
    return True
