"""The content of a directory as records: everything below it, with all that files are; knows no volume.

Kept: as by tree_copy. Names and targets of links are any bytes, written as Latin-1. The tree may be hostile: nothing is
opened before it is known to be a file or a directory, no symbolic link is followed, no mount point crossed. Any depth
takes the same number of descriptors.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from csi_driver.linux import block_ranges, file_differences
from csi_driver.linux.paths import open_beneath
from csi_driver.streams import bases, frames, images
from csi_driver.streams.frames import Writer
from csi_driver.streams.header import Header

_LOOK: Final = os.O_PATH | os.O_NOFOLLOW
_LIST: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NOATIME: whoever is sent is not marked by it.
_READ: Final = os.O_RDONLY | os.O_NOATIME | os.O_NONBLOCK | os.O_CLOEXEC
KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}


def stream(header: Header, content_fd: int) -> Iterator[bytes]:
    """The whole stream of a directory, in pieces of at most 1 MiB. Nobody may write to it meanwhile.

    Raises: OSError naming the place: EBUSY: a mount point is inside; EIO.
    """
    yield from frames.gathered(_streamed(header, content_fd, None))


def changes(header: Header, content_fd: int, base_fd: int, *, shares: bool) -> Iterator[bytes]:
    """The stream of a directory relative to its base: all names and what they are, and the data that differ.

    A file's base is the file at the same place there, whatever it is called elsewhere. `shares`: the two may share
    blocks. Nobody may write to either meanwhile.

    Raises: OSError naming the place, as `stream`.
    """
    base = _Base(base_fd, by_place=shares and block_ranges.can_be_told_apart(base_fd, content_fd))
    try:
        yield from frames.gathered(_streamed(header, content_fd, base))
    finally:
        base.close()


def _streamed(header: Header, content_fd: int, base: _Base | None) -> Iterator[bytes]:
    writer = Writer()
    yield writer.begin(header)
    walk = _Walk(writer, content_fd, base)
    try:
        yield from walk.run()
    finally:
        walk.close()
    yield writer.end()


class _Base(bases.Place):
    """The base of a stream that is sent."""

    def __init__(self, top_fd: int, *, by_place: bool) -> None:
        super().__init__(top_fd)
        self.by_place = by_place
        self._used: set[tuple[int, int]] = set()

    def of(self, name: str) -> int:
        """As `file`, but a file of several names once only: whoever receives may have moved it by then."""
        content_fd = self.file(name)
        if content_fd < 0:
            return content_fd
        found = os.fstat(content_fd)
        inode = (found.st_dev, found.st_ino)
        if found.st_size and inode not in self._used:
            if found.st_nlink > 1:
                self._used.add(inode)
            return content_fd
        os.close(content_fd)
        return -1


@dataclass(slots=True)
class _Level:
    """A directory on the way down, and what is left to do in it."""

    name: str
    found: os.stat_result
    pending: list[str]


class _Walk:
    """The sending under way."""

    def __init__(self, writer: Writer, content_fd: int, base: _Base | None) -> None:
        self._writer = writer
        self._base = base
        self._here = os.dup(content_fd)
        self._levels: list[_Level] = []
        # Files with several names: which link number each has.
        self._links: dict[tuple[int, int], int] = {}

    def close(self) -> None:
        os.close(self._here)

    def run(self) -> Iterator[bytes]:
        yield from self._enter("", os.fstat(self._here))
        while self._levels:
            level = self._levels[-1]
            if level.pending:
                yield from self._entry(level.pending.pop())
                continue
            yield self._writer.leave()
            self._levels.pop()
            if self._levels:
                self._ascend(self._levels[-1])

    def _enter(self, name: str, found: os.stat_result) -> Iterator[bytes]:
        yield self._writer.entry(_described(name, found))
        yield from self._attributes(f"/proc/self/fd/{self._here}")
        # Opened anew: on btrfs a descriptor lists only what there was when it was opened.
        listed = os.open(".", _LIST | os.O_NOATIME, dir_fd=self._here)
        try:
            names = sorted(os.listdir(listed), reverse=True)
        finally:
            os.close(listed)
        self._levels.append(_Level(name, found, names))

    def _ascend(self, parent: _Level) -> None:
        if self._base is not None:
            self._base.leave()
        above = os.open("..", _LIST, dir_fd=self._here)
        os.close(self._here)
        self._here = above
        found = os.fstat(above)
        if (found.st_dev, found.st_ino) != (parent.found.st_dev, parent.found.st_ino):
            raise self._located(OSError(errno.EAGAIN, "a directory was moved while it was read"), parent.name)

    def _entry(self, name: str) -> Iterator[bytes]:
        try:
            looked = self._open(name, _LOOK)
            try:
                found = os.fstat(looked)
                if stat.S_ISDIR(found.st_mode):
                    below = self._open(name, _LIST)
                    os.close(self._here)
                    self._here = below
                    if self._base is not None:
                        self._base.enter(name)
                    yield from self._enter(name, os.fstat(below))
                else:
                    yield from self._file(name, looked, found)
            finally:
                os.close(looked)
        except OSError as error:
            raise self._located(error, name) from error

    def _file(self, name: str, looked: int, found: os.stat_result) -> Iterator[bytes]:
        # Before its times are read: the first reading may change them.
        target = os.readlink("", dir_fd=looked) if stat.S_ISLNK(found.st_mode) else ""
        described = _described(name, os.fstat(looked))
        if found.st_nlink > 1:
            inode = (found.st_dev, found.st_ino)
            is_known = inode in self._links
            described["link"] = self._links.setdefault(inode, len(self._links) + 1)
            if is_known:
                yield self._writer.entry({"name": described["name"], "kind": "link", "link": described["link"]})
                yield self._writer.leave()
                return
        if stat.S_ISLNK(found.st_mode):
            described["target"] = _text(target)
        path = f"/proc/self/fd/{looked}"
        if stat.S_ISREG(found.st_mode) and found.st_size:
            yield from self._content(name, path, described)
        else:
            yield self._writer.entry(described)
            yield from self._attributes(path)
        yield self._writer.leave()

    def _content(self, name: str, path: str, described: dict[str, object]) -> Iterator[bytes]:
        content_fd = os.open(path, _READ)
        base_fd = self._base.of(name) if self._base is not None else -1
        try:
            if base_fd >= 0:
                described["from_base"] = True
            yield self._writer.entry(described)
            yield from self._attributes(path)
            if self._base is None or base_fd < 0:
                yield from images.whole(self._writer, content_fd, os.fstat(content_fd).st_size)
            else:
                ranges = file_differences.differing(base_fd, content_fd, by_place=self._base.by_place)
                yield from images.parts(self._writer, content_fd, ranges)
        finally:
            os.close(content_fd)
            if base_fd >= 0:
                os.close(base_fd)

    def _attributes(self, path: str) -> Iterator[bytes]:
        for name in sorted(os.listxattr(path)):
            if name.startswith(bases.ACL_OF_XFS):
                continue
            with suppress(FileNotFoundError):
                yield self._writer.attribute(os.fsencode(name), os.getxattr(path, name))

    def _open(self, name: str, flags: int) -> int:
        try:
            return open_beneath(self._here, name, flags, cross_mounts=False)
        except OSError as error:
            if error.errno == errno.EXDEV:
                raise OSError(errno.EBUSY, "a mount point is inside") from error
            raise

    def _located(self, error: OSError, name: str) -> OSError:
        if error.filename is not None and not str(error.filename).startswith("/proc/"):
            return error
        place = "/".join([level.name for level in self._levels if level.name] + [name])
        return OSError(error.errno, error.strerror, place)


def _described(name: str, found: os.stat_result) -> dict[str, object]:
    return {
        "name": _text(name),
        "kind": KINDS[stat.S_IFMT(found.st_mode)],
        "mode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
        "atime": found.st_atime_ns,
        "mtime": found.st_mtime_ns,
        "size": found.st_size,
        "device": found.st_rdev,
    }


def _text(name: str) -> str:
    return os.fsencode(name).decode("latin-1")
