"""Paths that others control, walked without being led astray; it knows no pool and never recurses.

Two rules. Below a directory that is ours no symbolic link is followed at all (`open_beneath`). At a path
that a caller names (`Target`) the ancestors may be links, because /var/run and /var/lib/kubelet often are
and only root can write there, but the last component, which a workload may have had its hands on, is never
followed: its parent is opened once, and everything else happens relative to that descriptor.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import struct
import time
from types import TracebackType
from typing import Final, Protocol, Self

from csi_driver.linux import mount, mountinfo
from csi_driver.linux.libc import AT_FDCWD, SYS_OPENAT2, declare

# include/uapi/linux/openat2.h
RESOLVE_NO_XDEV: Final = 0x01
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_BENEATH: Final = 0x08
OPEN_HOW: Final = struct.Struct("=QQQ")  # struct open_how: flags, mode, resolve

PATH_MAX_BYTES: Final = 4095  # include/uapi/linux/limits.h says 4096 with the final NUL
NAME_MAX_BYTES: Final = 255

_openat2 = declare(SYS_OPENAT2, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t)
_BENEATH = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS
_OPEN_ATTEMPTS = 100
_PAUSE_SECONDS = 0.01


class Kind(enum.Enum):
    """What is at a path, the last component not followed."""

    ABSENT = "nothing"
    DIRECTORY = "a directory"
    FILE = "a regular file"
    BLOCK_DEVICE = "a block device"
    SYMLINK = "a symbolic link"
    OTHER = "a special file"


def open_beneath(dir_fd: int, relative: str, flags: int, mode: int = 0, *, cross_mounts: bool = True) -> int:
    """Open a path below a directory; no symbolic link is followed anywhere, and `..` cannot leave.

    `flags` are those of open(2), O_CLOEXEC is added; `mode` counts only with O_CREAT. The descriptor is the
    caller's.

    Raises:
        OSError: ELOOP: a symbolic link; EXDEV: the path leads out of the directory (an absolute one does), or, unless
            `cross_mounts`, through a mount point; others as open(2).
        ValueError: NUL in the path.
    """
    return _open(dir_fd, relative, flags, mode, _BENEATH if cross_mounts else _BENEATH | RESOLVE_NO_XDEV)


def check_target_path(path: str) -> str:
    """Return the absolute path without `.` and empty components.

    Raises:
        ValueError: saying what is wrong with it: relative, `..`, NUL, too long, no last component, not
            encodable.
    """
    if not path.startswith("/"):
        raise ValueError("path is empty" if not path else "path is not absolute")
    if "\0" in path:
        raise ValueError("path contains a NUL byte")
    length = len(os.fsencode(path))
    if length > PATH_MAX_BYTES:
        raise ValueError(f"path is longer than {PATH_MAX_BYTES} bytes")
    names = [name for name in path.split("/") if name not in ("", ".")]
    if not names:
        raise ValueError("path is the root directory")
    if ".." in names:
        raise ValueError("path contains a '..' component")
    if length > NAME_MAX_BYTES and any(len(os.fsencode(name)) > NAME_MAX_BYTES for name in names):
        raise ValueError(f"path has a component longer than {NAME_MAX_BYTES} bytes")
    return "/" + "/".join(names)


class Target:
    """One name in a directory, at which something is to be mounted: the owner of the parent's descriptor.

    Close it (or use `with`) before the parent's own filesystem is to be unmounted.
    """

    __slots__ = ("name", "parent_fd", "path")

    def __init__(self, path: str) -> None:
        """Open the parent of an absolute path.

        Raises:
            ValueError: from `check_target_path`.
            FileNotFoundError: there is no such parent.
            OSError: NotADirectoryError, or ELOOP: the way leads through a magic link of /proc.
        """
        self.path = check_target_path(path)
        parent, _, self.name = self.path.rpartition("/")
        self.parent_fd = -1
        # /proc/PID/root and /proc/PID/fd/N lead into other namespaces; no caller has a reason to go that way.
        self.parent_fd = _open(AT_FDCWD, parent or "/", os.O_PATH | os.O_DIRECTORY, 0, RESOLVE_NO_MAGICLINKS)

    def close(self) -> None:
        """Close the parent's descriptor; a second time does nothing."""
        fd, self.parent_fd = self.parent_fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def observe(self) -> mountinfo.MountPoint | None:
        """Look at what is there, through a mount; None when there is nothing.

        Raises:
            OSError: `mountinfo.is_dead_mount` says whether what is mounted there has gone; `unmount` still
                works.
        """
        try:
            return mountinfo.observe(self.name, dir_fd=self.parent_fd)
        except FileNotFoundError:
            return None

    def kind(self) -> Kind:
        """Say what is there.

        Raises:
            OSError: as `observe`.
        """
        return _kind(self.observe())

    def ensure_directory(self, mode: int = 0o750) -> bool:
        """Make the directory unless it is there; return whether it was made.

        Raises:
            NotADirectoryError: something else is there (a symbolic link to a directory too).
            OSError: as `observe`.
        """
        try:
            os.mkdir(self.name, mode, dir_fd=self.parent_fd)
        except FileExistsError:
            kind = self.kind()
            if kind is not Kind.DIRECTORY:
                raise NotADirectoryError(errno.ENOTDIR, f"{kind.value} is in the way", self.path) from None
            return False
        return True

    def ensure_file(self, mode: int = 0o640) -> bool:
        """Make an empty regular file unless one (or a block device mounted on one) is there; say whether.

        Raises:
            FileExistsError: something else is there.
            OSError: as `observe`.
        """
        flags = os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_WRONLY | os.O_CLOEXEC
        try:
            os.close(os.open(self.name, flags, mode, dir_fd=self.parent_fd))
        except FileExistsError:
            found = self.observe()
            kind = _kind(found)
            mounted = found is not None and found.is_mount
            if kind is Kind.FILE or (kind is Kind.BLOCK_DEVICE and mounted):
                return False
            raise FileExistsError(errno.EEXIST, f"{kind.value} is in the way", self.path) from None
        return True

    def open(self) -> int:
        """Return an O_PATH descriptor, the caller's, of what is there: of the topmost mount, if there is one.

        Raises:
            OSError: ELOOP: a symbolic link (the kernel lets a file be mounted on the link itself); ENOENT.
        """
        return _open(self.parent_fd, self.name, os.O_PATH, 0, _BENEATH)

    def unmount(self) -> bool:
        """Unmount the topmost mount; return whether there was one. Works on a dead mount too.

        Raises:
            OSError: EBUSY: in use; EINVAL: mounted by an outer mount namespace that locked it.
        """
        try:
            mount.unmount(self.name, dir_fd=self.parent_fd)
        except FileNotFoundError:
            return False
        except OSError as error:
            if error.errno != errno.EINVAL or self._is_mount():
                raise
            return False
        return True

    def unmount_patiently(self, patience_seconds: float) -> bool:
        """The same, trying again for a while when something holds the mount for a moment.

        Raises:
            OSError: as `unmount`; EBUSY only when it was in use all the time.
        """
        ends = time.monotonic() + patience_seconds
        while True:
            try:
                return self.unmount()
            except OSError as error:
                if error.errno != errno.EBUSY or time.monotonic() >= ends:
                    raise
                time.sleep(_PAUSE_SECONDS)

    def remove(self) -> bool:
        """Remove the empty directory or file, never anything with content; return whether there was one.

        Raises:
            OSError: EBUSY: a mount point; ENOTEMPTY: it has content; EEXIST: neither directory nor regular
                file.
        """
        found = self.observe()
        kind = _kind(found)
        if found is None:
            return False
        if found.is_mount:
            raise OSError(errno.EBUSY, "still a mount point", self.path)
        if kind is Kind.DIRECTORY:
            return self._gone_by(os.rmdir)
        if kind is not Kind.FILE:
            raise OSError(errno.EEXIST, f"{kind.value} is there, not removed", self.path)
        if found.size_bytes:
            raise OSError(errno.ENOTEMPTY, f"a file of {found.size_bytes} bytes is there, not removed", self.path)
        return self._gone_by(os.unlink)

    def _gone_by(self, call: _Removal) -> bool:
        try:
            call(self.name, dir_fd=self.parent_fd)
        except FileNotFoundError:
            return False
        return True

    def _is_mount(self) -> bool:
        found = self.observe()
        return found is not None and found.is_mount


class _Removal(Protocol):
    def __call__(self, path: str, *, dir_fd: int) -> None: ...


def _kind(found: mountinfo.MountPoint | None) -> Kind:
    if found is None:
        return Kind.ABSENT
    if found.is_directory:
        return Kind.DIRECTORY
    if found.is_file:
        return Kind.FILE
    if found.is_symlink:
        return Kind.SYMLINK
    return Kind.BLOCK_DEVICE if found.is_block_device else Kind.OTHER


def _open(dir_fd: int, path: str, flags: int, mode: int, resolve: int) -> int:
    encoded = os.fsencode(path)
    if b"\0" in encoded:
        raise ValueError("path contains a NUL byte")
    how = OPEN_HOW.pack(flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(_OPEN_ATTEMPTS):
        try:
            return _openat2(dir_fd, encoded, how, OPEN_HOW.size)
        except OSError as error:
            # EAGAIN: something was renamed while `..` was looked up (openat2(2)). EINTR: Python repeats its
            # own calls after a signal, but not ours.
            if error.errno not in (errno.EAGAIN, errno.EINTR):
                raise OSError(error.errno, error.strerror, path) from None
    raise OSError(errno.EAGAIN, "path kept changing", path)
