"""The content of a directory to and from records: everything below it, with all that files are; knows no volume.

Kept: as by tree_copy. Names and targets of links are any bytes, written as Latin-1. The tree that is sent may be
hostile, and so may the stream that is received: nothing is opened before it is known to be a file or a directory, no
symbolic link is followed, no mount point crossed, no name with a slash made. Any depth takes the same number of
descriptors.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from csi_driver.errors import StreamDamaged
from csi_driver.linux.paths import open_beneath
from csi_driver.streams import images
from csi_driver.streams.frames import Attribute, Data, Entry, Leave, Record, Writer
from csi_driver.streams.header import Header

_LOOK: Final = os.O_PATH | os.O_NOFOLLOW
_LIST: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NOATIME: whoever is sent is not marked by it.
_READ: Final = os.O_RDONLY | os.O_NOATIME | os.O_NONBLOCK | os.O_CLOEXEC
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_KINDS: Final = {
    stat.S_IFREG: "file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "character device",
    stat.S_IFBLK: "block device",
}
_FORMATS: Final = {kind: number for number, kind in _KINDS.items()}
_FIELDS: Final = ("mode", "uid", "gid", "atime", "mtime", "size", "device")


def stream(header: Header, content_fd: int) -> Iterator[bytes]:
    """The whole stream of a directory, in pieces of at most 1 MiB. Nobody may write to it meanwhile.

    Raises: OSError naming the place: EBUSY: a mount point is inside; EIO.
    """
    writer = Writer()
    yield writer.begin(header)
    walk = _Walk(writer, content_fd)
    try:
        yield from walk.run()
    finally:
        walk.close()
    yield writer.end()


def receive(records: Iterable[Record], target_fd: int, *, progress: Callable[[int], None]) -> None:
    """Make everything that a directory's records say in the empty directory `target_fd`, which gets the attributes too.

    `progress` is told the bytes of data so far; what it raises ends it. Nothing is synced.

    Raises: StreamDamaged; OSError: ENOSPC, EDQUOT, EIO; whatever `records` raises.
    """
    building = _Building(target_fd, progress)
    try:
        for record in records:
            building.take(record)
        building.finish()
    finally:
        building.close()


@dataclass(slots=True)
class _Level:
    """A directory on the way down, and what is left to do in it."""

    name: str
    found: os.stat_result
    pending: list[str]


class _Walk:
    """The sending under way."""

    def __init__(self, writer: Writer, content_fd: int) -> None:
        self._writer = writer
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
        listed = os.open(".", _LIST, dir_fd=self._here)
        try:
            names = sorted(os.listdir(listed), reverse=True)
        finally:
            os.close(listed)
        self._levels.append(_Level(name, found, names))

    def _ascend(self, parent: _Level) -> None:
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
                    yield from self._enter(name, os.fstat(below))
                else:
                    yield from self._file(name, looked, found)
            finally:
                os.close(looked)
        except OSError as error:
            raise self._located(error, name) from error

    def _file(self, name: str, looked: int, found: os.stat_result) -> Iterator[bytes]:
        described = _described(name, found)
        if found.st_nlink > 1:
            inode = (found.st_dev, found.st_ino)
            is_known = inode in self._links
            described["link"] = self._links.setdefault(inode, len(self._links) + 1)
            if is_known:
                yield self._writer.entry({"name": described["name"], "kind": "link", "link": described["link"]})
                yield self._writer.leave()
                return
        if stat.S_ISLNK(found.st_mode):
            described["target"] = _text(os.readlink("", dir_fd=looked))
        yield self._writer.entry(described)
        yield from self._attributes(f"/proc/self/fd/{looked}")
        if stat.S_ISREG(found.st_mode) and found.st_size:
            content_fd = os.open(f"/proc/self/fd/{looked}", _READ)
            try:
                yield from images.whole(self._writer, content_fd, found.st_size)
            finally:
                os.close(content_fd)
        yield self._writer.leave()

    def _attributes(self, path: str) -> Iterator[bytes]:
        for name in os.listxattr(path):
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


@dataclass(slots=True)
class _Open:
    """What was entered and not yet left. `content_fd`: of a file."""

    name: str
    kind: str
    numbers: dict[str, int]
    attributes: list[Attribute] = field(default_factory=list)
    content_fd: int = -1
    applied: images.Applied | None = None


class _Building:
    """The receiving under way: where it is, and what is open there."""

    def __init__(self, target_fd: int, progress: Callable[[int], None]) -> None:
        self._top = target_fd
        self._here = os.dup(target_fd)
        self._progress = progress
        self._open: list[_Open] = []
        self._is_done = False
        self._done_bytes = 0
        # Inside the target, so that it is of the same project: a link between two is refused.
        self._links = f".links-{secrets.token_hex(8)}"
        self._links_fd = -1

    def close(self) -> None:
        for opened in self._open:
            if opened.content_fd >= 0:
                os.close(opened.content_fd)
        for fd in (self._here, self._links_fd):
            if fd >= 0:
                os.close(fd)

    def take(self, record: Record) -> None:
        if isinstance(record, Entry):
            self._enter(record.fields)
        elif self._is_done or not self._open:
            raise StreamDamaged("a record of a directory's stream stands outside of any entry")
        elif isinstance(record, Attribute):
            self._open[-1].attributes.append(record)
        elif isinstance(record, Data):
            self._write(record)
        elif isinstance(record, Leave):
            self._leave()
        else:
            raise StreamDamaged("a directory's stream has records of an incremental one's")

    def finish(self) -> None:
        if not self._is_done:
            raise StreamDamaged("the directory is not complete")

    def _enter(self, fields: dict[str, object]) -> None:
        is_first = not self._open and not self._is_done
        if not is_first and (self._is_done or self._open[-1].kind != "directory"):
            raise StreamDamaged("an entry stands in no directory")
        kind = str(fields.get("kind"))
        name = "" if is_first else _name(fields.get("name"))
        if is_first and kind != "directory":
            raise StreamDamaged("a directory's stream does not begin with one")
        numbers = {} if kind == "link" else {key: _number(fields.get(key)) for key in _FIELDS}
        opened = _Open(name, kind, numbers)
        if not is_first:
            self._make(opened, fields)
        self._open.append(opened)

    def _make(self, opened: _Open, fields: dict[str, object]) -> None:
        name, kind = opened.name, opened.kind
        link = _number(fields.get("link", 0))
        if kind == "link":
            os.link(str(link), name, src_dir_fd=self._linked(), dst_dir_fd=self._here, follow_symlinks=False)
            return
        if kind == "directory":
            os.mkdir(name, 0o700, dir_fd=self._here)
            below = os.open(name, _LIST, dir_fd=self._here)
            os.close(self._here)
            self._here = below
            return
        if kind == "file":
            opened.content_fd = os.open(name, _NEW, 0o600, dir_fd=self._here)
            os.ftruncate(opened.content_fd, opened.numbers["size"])
            opened.applied = images.Applied(opened.content_fd, opened.numbers["size"], is_incremental=False)
        elif kind == "symbolic link":
            os.symlink(_bytes(fields.get("target")), os.fsencode(name), dir_fd=self._here)
        elif kind in _FORMATS:
            os.mknod(name, _FORMATS[kind] | 0o600, opened.numbers["device"], dir_fd=self._here)
        else:
            raise StreamDamaged(f"an entry is of an unknown kind ({kind[:40]!r})")
        if link:
            os.link(name, str(link), src_dir_fd=self._here, dst_dir_fd=self._linked(), follow_symlinks=False)

    def _write(self, record: Data) -> None:
        applied = self._open[-1].applied
        if applied is None:
            raise StreamDamaged("there are data of what is no file")
        applied.apply(record)
        self._done_bytes += len(record.content)
        self._progress(self._done_bytes)

    def _leave(self) -> None:
        opened = self._open.pop()
        if opened.kind == "directory":
            self._leave_directory(opened)
        elif opened.kind == "file":
            try:
                _keep(opened.content_fd, opened)
            finally:
                os.close(opened.content_fd)
        elif opened.kind != "link":
            self._keep_special(opened)

    def _leave_directory(self, opened: _Open) -> None:
        if not self._open:
            self._drop_links()
            self._is_done = True
        _keep(self._here, opened)
        if self._open:
            above = os.open("..", _LIST, dir_fd=self._here)
            os.close(self._here)
            self._here = above

    def _keep_special(self, opened: _Open) -> None:
        name, numbers = opened.name, opened.numbers
        os.chown(name, numbers["uid"], numbers["gid"], dir_fd=self._here, follow_symlinks=False)
        if opened.kind != "symbolic link":
            os.chmod(name, numbers["mode"], dir_fd=self._here)
        for attribute in opened.attributes:
            path = f"/proc/self/fd/{self._here}/{name}"
            os.setxattr(path, attribute.name, attribute.content, follow_symlinks=False)
        os.utime(name, ns=(numbers["atime"], numbers["mtime"]), dir_fd=self._here, follow_symlinks=False)

    def _linked(self) -> int:
        if self._links_fd < 0:
            os.mkdir(self._links, 0o700, dir_fd=self._top)
            self._links_fd = os.open(self._links, _LIST, dir_fd=self._top)
        return self._links_fd

    def _drop_links(self) -> None:
        if self._links_fd < 0:
            return
        links_fd = os.open(self._links, _LIST, dir_fd=self._top)
        try:
            for name in os.listdir(links_fd):
                os.unlink(name, dir_fd=links_fd)
        finally:
            os.close(links_fd)
        os.rmdir(self._links, dir_fd=self._top)


def _keep(fd: int, opened: _Open) -> None:
    """Owner, mode, attributes and times, in the order in which they undo each other."""
    numbers = opened.numbers
    os.fchown(fd, numbers["uid"], numbers["gid"])
    os.fchmod(fd, numbers["mode"])
    for attribute in opened.attributes:
        os.setxattr(fd, attribute.name, attribute.content)
    os.utime(fd, ns=(numbers["atime"], numbers["mtime"]))


def _described(name: str, found: os.stat_result) -> dict[str, object]:
    return {
        "name": _text(name),
        "kind": _KINDS[stat.S_IFMT(found.st_mode)],
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


def _bytes(value: object) -> bytes:
    try:
        if isinstance(value, str) and value and "\0" not in value:
            return value.encode("latin-1")
    except UnicodeEncodeError:
        pass
    raise StreamDamaged("an entry has a name that cannot be")


def _name(value: object) -> str:
    name = _bytes(value)
    if name in (b".", b"..") or b"/" in name:
        raise StreamDamaged("an entry has a name that cannot be")
    return os.fsdecode(name)


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -(1 << 63) <= value < 1 << 63:
        raise StreamDamaged("an entry has a number that cannot be")
    return value
