"""The directory that a relative stream refers to, followed beside whoever sends or receives; knows no frame.

It may be hostile as any tree: no symbolic link is followed, no mount point crossed, nothing opened before it is known
to be a file. Where it has no directory of a name, what is below counts as missing.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable
from typing import Final, Protocol

from csi_driver.errors import StreamDamaged
from csi_driver.linux import btrfs, reflink, rename, tree
from csi_driver.linux.paths import open_beneath

_LOOK: Final = os.O_PATH | os.O_NOFOLLOW
_LIST: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOATIME | os.O_NONBLOCK | os.O_CLOEXEC
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITE: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# XFS lists an ACL twice, as all do and as it keeps it.
ACL_OF_XFS: Final = "trusted.SGI_ACL_"
_MISSING: Final = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP})


class Place:
    """Where one is in the base, beginning at its top; the descriptors are its own."""

    def __init__(self, top_fd: int) -> None:
        self._here = os.dup(top_fd)
        # What the directories on the way were when they were entered, and how far below the last of them one is.
        self._above: list[tuple[int, int]] = []
        self._below = 0

    def close(self) -> None:
        os.close(self._here)

    def enter(self, name: str) -> None:
        """Go into the directory of that name, if there is one.

        Raises: OSError: EBUSY: a mount point is inside.
        """
        below = -1 if self._below else self._opened(name, _LIST)
        if below < 0:
            self._below += 1
            return
        self._above.append(_identity(self._here))
        os.close(self._here)
        self._here = below

    def leave(self) -> None:
        """Go back.

        Raises: OSError: EAGAIN: the directory was moved meanwhile.
        """
        if self._below:
            self._below -= 1
            return
        if not self._above:
            return
        above = os.open("..", _LIST, dir_fd=self._here)
        os.close(self._here)
        self._here = above
        if _identity(above) != self._above.pop():
            raise OSError(errno.EAGAIN, "a directory of the base was moved while it was read")

    def file(self, name: str) -> int:
        """A readable descriptor, the caller's, of the regular file of that name; -1 where there is none.

        Raises: OSError: EBUSY: a mount point.
        """
        looked = -1 if self._below else self._opened(name, _LOOK)
        if looked < 0:
            return -1
        try:
            if not stat.S_ISREG(os.fstat(looked).st_mode):
                return -1
            return os.open(f"/proc/self/fd/{looked}", _READ)
        finally:
            os.close(looked)

    def _opened(self, name: str, flags: int) -> int:
        try:
            return open_beneath(self._here, name, flags, cross_mounts=False)
        except OSError as error:
            if error.errno in _MISSING:
                return -1
            if error.errno == errno.EXDEV:
                raise OSError(errno.EBUSY, "a mount point is inside the base", name) from error
            raise


class Taken(Protocol):
    """A base as whoever receives needs it."""

    def close(self) -> None: ...

    def enter(self, name: str) -> None: ...

    def leave(self) -> None: ...

    def take(self, name: str, dir_fd: int, size: int, progress: Callable[[int], None]) -> int:
        """A descriptor, the caller's, of a file of that name in `dir_fd`, which begins with what the base's holds.

        As much of it as `size` bytes need. It bears no attributes. `progress` is told the bytes of it that were copied
        so far, if any are.

        Raises: StreamDamaged where the base has no such file; OSError.
        """
        ...


class Kept(Place):
    """A base that stays as it is: what is taken is shared, or copied."""

    def __init__(self, top_fd: int, *, share: bool) -> None:
        super().__init__(top_fd)
        self._share = share

    def take(self, name: str, dir_fd: int, size: int, progress: Callable[[int], None]) -> int:
        source = self.file(name)
        if source < 0:
            raise _not_there(name)
        try:
            target = os.open(name, _NEW, 0o600, dir_fd=dir_fd)
            try:
                if self._share:
                    _shared(source, target, size)
                else:
                    reflink.copy_beginning(source, target, size, progress=progress)
            except BaseException:
                os.close(target)
                raise
            return target
        finally:
            os.close(source)


class Consumed(Place):
    """What a directory holds so far, on its way to be replaced in it: what is taken is moved, the rest removed."""

    def __init__(self, target_fd: int) -> None:
        """Put all that the directory holds aside, inside it: what it is charged to stays the same."""
        # As it was when it was new: nothing that is made in it inherits anything.
        _strip(target_fd)
        os.fchmod(target_fd, 0o700)
        self._name = f".base-{secrets.token_hex(8)}"
        self._top = os.dup(target_fd)
        try:
            os.mkdir(self._name, 0o700, dir_fd=target_fd)
            aside = os.open(self._name, _LIST, dir_fd=target_fd)
            try:
                _move_all(target_fd, aside, self._name)
                super().__init__(aside)
            finally:
                os.close(aside)
        except BaseException:
            os.close(self._top)
            raise
        # Files with several names that were moved under one of them, and are not what they were any more.
        self._moved: set[tuple[int, int]] = set()

    def close(self) -> None:
        super().close()
        os.close(self._top)

    def leave(self) -> None:
        """Remove what was not taken of the directory, and go back."""
        if not self._below:
            self._clear()
        if self._above or self._below:
            super().leave()
        else:
            os.rmdir(self._name, dir_fd=self._top)

    def take(self, name: str, dir_fd: int, size: int, progress: Callable[[int], None]) -> int:
        source = self.file(name)
        if source < 0:
            raise _not_there(name)
        try:
            found = os.fstat(source)
        finally:
            os.close(source)
        if found.st_nlink > 1:
            inode = (found.st_dev, found.st_ino)
            if inode in self._moved:
                raise StreamDamaged("one file of its base is taken twice")
            self._moved.add(inode)
        # Without replacing what the stream may have made under that name.
        rename.move(self._here, name, dir_fd)
        target = os.open(name, _WRITE, dir_fd=dir_fd)
        try:
            _strip(target)
            if found.st_size > size:
                os.ftruncate(target, size)
        except BaseException:
            os.close(target)
            raise
        return target

    def _clear(self) -> None:
        # Opened anew: on btrfs a descriptor lists only what there was when it was opened.
        listed = os.open(".", _LIST, dir_fd=self._here)
        try:
            for name in os.listdir(listed):
                tree.remove_tree(self._here, name)
        finally:
            os.close(listed)


def _shared(source: int, target: int, size: int) -> None:
    try:
        reflink.clone_beginning(source, target, size)
    except OSError as error:
        # On btrfs a file that is written in place shares blocks only with one of its kind.
        if error.errno != errno.EINVAL or not btrfs.is_btrfs(target):
            raise
        btrfs.set_nocow(target)
        reflink.clone_beginning(source, target, size)


def _strip(fd: int) -> None:
    """No extended attribute is left, ACLs among them, but the one that a kernel lets nobody remove."""
    for name in os.listxattr(fd):
        if name != "security.selinux" and not name.startswith(ACL_OF_XFS):
            os.removexattr(fd, name)


def _move_all(from_fd: int, to_fd: int, but: str) -> None:
    listed = os.open(".", _LIST, dir_fd=from_fd)
    try:
        for name in os.listdir(listed):
            if name != but:
                os.rename(name, name, src_dir_fd=from_fd, dst_dir_fd=to_fd)
    finally:
        os.close(listed)


def _identity(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_dev, found.st_ino


def _not_there(name: str) -> StreamDamaged:
    return StreamDamaged(f"its base has no file {name[:100]!r} where it says so")
