"""A directory tree made again elsewhere, with all that files are; it knows no volume and no snapshot.

Kept: owners, modes, times, ACLs and other extended attributes, hard links, holes, symbolic links, special files. Not
kept: inode flags (chattr) but NOCOW where the copy needs it, and the project, which the target's directory decides.

The tree may be hostile, and may change meanwhile. Nothing is opened before it is known to be a file or a directory
(opening a device can act), no symbolic link is followed, no mount point crossed. Any depth takes the same number of
descriptors: the way up is `..`, compared with the way down. What is removed meanwhile is left out.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Final

from csi_driver.linux.link_directory import LinkDirectory
from csi_driver.linux.paths import open_beneath

# One file's bytes from a descriptor to that of an empty file; told the bytes of this file that are done meanwhile.
CopyFile = Callable[[int, int, Callable[[int], None]], int]

_LOOK: Final = os.O_PATH | os.O_NOFOLLOW
_LIST: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NOATIME: a snapshot leaves no trace in what it reads.
_READ: Final = os.O_RDONLY | os.O_NOATIME | os.O_NONBLOCK | os.O_CLOEXEC
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(slots=True)
class _Level:
    """A directory on the way down: what it was when it was entered, and what is left to do in it."""

    name: str
    found: os.stat_result
    pending: list[str]


def copy_tree(
    source_fd: int, target_fd: int, copy_file: CopyFile, *, progress: Callable[[int], None] | None = None
) -> int:
    """Make everything below the directory `source_fd` again in the empty directory `target_fd`; return the bytes.

    The target directory gets the source's owner, mode, times and attributes too. `progress` is called with the bytes
    that are done, at least after each file; what it raises ends the copy. Nothing is synced.

    Raises:
        OSError: naming the place: EBUSY: a mount point is inside; EAGAIN: a directory was moved while it was copied;
            ENOSPC, EDQUOT, EIO; ETXTBSY: an active swap file; ENOTSUP: the target's filesystem cannot keep an
            attribute.
    """
    copy = _TreeCopy(copy_file, progress, LinkDirectory(target_fd))
    with ExitStack() as stack:
        stack.callback(copy.close)
        copy.begin(source_fd, target_fd)
        copy.run()
    return copy.copied_bytes


class _TreeCopy:
    """The copy under way: where it is, and how it got there."""

    def __init__(self, copy_file: CopyFile, progress: Callable[[int], None] | None, links: LinkDirectory) -> None:
        self.copied_bytes = 0
        self._copy_file = copy_file
        self._progress = progress
        self._levels: list[_Level] = []
        self._source = self._target = -1
        self._links = links

    def close(self) -> None:
        self._links.close()
        for fd in (self._source, self._target):
            if fd >= 0:
                os.close(fd)

    def begin(self, source_fd: int, target_fd: int) -> None:
        self._source, self._target = os.dup(source_fd), os.dup(target_fd)
        self._enter("", os.fstat(source_fd))

    def run(self) -> None:
        while self._levels:
            level = self._levels[-1]
            if level.pending:
                self._descend(level.pending.pop())
                continue
            if len(self._levels) == 1:
                self._links.remove()
            _keep_attributes(f"/proc/self/fd/{self._source}", self._target, level.found)
            self._levels.pop()
            if self._levels:
                self._ascend(self._levels[-1])

    def _enter(self, name: str, found: os.stat_result) -> None:
        """Copy all but the directories of the directory that was just opened; those wait for their turn."""
        self._levels.append(_Level(name, found, []))
        with os.scandir(self._source) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    self._levels[-1].pending.append(entry.name)
                else:
                    self._copy_entry(entry.name)

    def _descend(self, name: str) -> None:
        try:
            source = self._open(name, _LIST)
        except (FileNotFoundError, NotADirectoryError):
            return
        os.close(self._source)
        self._source = source
        try:
            os.mkdir(name, 0o700, dir_fd=self._target)
            target = os.open(name, _LIST, dir_fd=self._target)
        except OSError as error:
            raise self._located(error, name) from error
        os.close(self._target)
        self._target = target
        self._enter(name, os.fstat(source))

    def _ascend(self, parent: _Level) -> None:
        source = os.open("..", _LIST, dir_fd=self._source)
        os.close(self._source)
        self._source = source
        found = os.fstat(source)
        if (found.st_dev, found.st_ino) != (parent.found.st_dev, parent.found.st_ino):
            moved = OSError(errno.EAGAIN, "a directory was moved while it was copied")
            raise self._located(moved, parent.name)
        target = os.open("..", _LIST, dir_fd=self._target)
        os.close(self._target)
        self._target = target

    def _copy_entry(self, name: str) -> None:
        try:
            looked = self._open(name, _LOOK)
        except FileNotFoundError:
            return
        try:
            self._copy_looked_at(looked, name)
        except OSError as error:
            raise self._located(error, name) from error
        finally:
            os.close(looked)

    def _copy_looked_at(self, looked: int, name: str) -> None:
        found = os.fstat(looked)
        kind = stat.S_IFMT(found.st_mode)
        if kind == stat.S_IFDIR:
            # It took a file's place since the directory was listed.
            self._levels[-1].pending.append(name)
        elif found.st_nlink <= 1 or not self._is_linked(found, name):
            if kind == stat.S_IFREG:
                self._make_file(looked, name, found)
            else:
                self._make_special(looked, name, found)
            if found.st_nlink > 1:
                self._remember(found, name)

    def _make_file(self, looked: int, name: str, found: os.stat_result) -> None:
        source = os.open(f"/proc/self/fd/{looked}", _READ)
        try:
            target = os.open(name, _NEW, 0o600, dir_fd=self._target)
            try:
                if found.st_size:
                    done = self.copied_bytes
                    self.copied_bytes += self._copy_file(source, target, lambda copied: self._tell(done + copied))
                _keep_attributes(source, target, found)
            finally:
                os.close(target)
        finally:
            os.close(source)
        self._tell(self.copied_bytes)

    def _make_special(self, looked: int, name: str, found: os.stat_result) -> None:
        link = f"/proc/self/fd/{looked}"
        if stat.S_ISLNK(found.st_mode):
            os.symlink(os.readlink("", dir_fd=looked), name, dir_fd=self._target)
        else:
            os.mknod(name, stat.S_IFMT(found.st_mode) | 0o600, found.st_rdev, dir_fd=self._target)
        os.chown(name, found.st_uid, found.st_gid, dir_fd=self._target, follow_symlinks=False)
        if not stat.S_ISLNK(found.st_mode):
            os.chmod(name, stat.S_IMODE(found.st_mode), dir_fd=self._target)
        copy = f"/proc/self/fd/{self._target}/{name}"
        for attribute in os.listxattr(link):
            os.setxattr(copy, attribute, os.getxattr(link, attribute), follow_symlinks=False)
        times = (found.st_atime_ns, found.st_mtime_ns)
        os.utime(name, ns=times, dir_fd=self._target, follow_symlinks=False)

    def _is_linked(self, found: os.stat_result, name: str) -> bool:
        """Whether the file was copied under another name, of which this is a link now."""
        if not self._links:
            return False
        links_fd = self._links.opened()
        try:
            os.link(_inode(found), name, src_dir_fd=links_fd, dst_dir_fd=self._target, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True

    def _remember(self, found: os.stat_result, name: str) -> None:
        links_fd = self._links.opened()
        os.link(name, _inode(found), src_dir_fd=self._target, dst_dir_fd=links_fd, follow_symlinks=False)

    def _tell(self, copied: int) -> None:
        if self._progress is not None:
            self._progress(copied)

    def _open(self, name: str, flags: int) -> int:
        try:
            return open_beneath(self._source, name, flags, cross_mounts=False)
        except OSError as error:
            if error.errno == errno.EXDEV:
                error = OSError(errno.EBUSY, "a mount point is inside")
            raise self._located(error, name) from error

    def _located(self, error: OSError, name: str) -> OSError:
        """The same failure with its place in the tree: a name alone does not tell an operator where to look."""
        place = "/".join([level.name for level in self._levels if level.name] + [name])
        return OSError(error.errno, error.strerror, place)


def _inode(found: os.stat_result) -> str:
    return f"{found.st_dev}-{found.st_ino}"


def _keep_attributes(source: int | str, target: int, found: os.stat_result) -> None:
    """Owner, mode, extended attributes (ACLs among them) and times, in the order in which they undo each other."""
    if (found.st_uid, found.st_gid) != (os.geteuid(), os.getegid()):
        os.fchown(target, found.st_uid, found.st_gid)
    os.fchmod(target, stat.S_IMODE(found.st_mode))
    for name in os.listxattr(source):
        with suppress(FileNotFoundError):
            os.setxattr(target, name, os.getxattr(source, name))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns))
