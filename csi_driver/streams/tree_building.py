"""A directory made of the records of a stream; knows no volume.

The stream may be hostile: what it makes is new, no symbolic link is followed, and no name with a slash made. Any depth
takes the same number of descriptors.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from csi_driver.errors import StreamDamaged
from csi_driver.linux.link_directory import LinkDirectory
from csi_driver.store import durable
from csi_driver.streams import bases, images
from csi_driver.streams.frames import Attribute, Data, Entry, Leave, Record, Zeros
from csi_driver.streams.trees import KINDS

if TYPE_CHECKING:
    from csi_driver.streams.journal import Journal

_LIST: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEFAULT_ACL: Final = "system.posix_acl_default"  # include/uapi/linux/xattr.h
_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
# A pipe in the place of a file would hold its opener for ever.
_AGAIN: Final = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_FORMATS: Final = {kind: number for number, kind in KINDS.items()}
_FIELDS: Final = ("mode", "uid", "gid", "atime", "mtime", "size", "device")


def receive(
    records: Iterable[Record],
    target_fd: int,
    *,
    progress: Callable[[int], None],
    base: bases.Taken | None = None,
    journal: Journal | None = None,
) -> None:
    """Make everything that a directory's records say in the empty directory `target_fd`, which gets the attributes too.

    `base`: what a relative stream refers to, which the caller closes. `progress` is told the bytes of data so far,
    those copied from the base too; what it raises ends it. Nothing is synced. `journal`: of what it gives back, and of
    what follows, a part was made before.

    Raises: StreamDamaged; OSError: ENOSPC, EDQUOT, EIO; whatever `records` raises.
    """
    building = _Building(target_fd, progress, base, journal)
    try:
        for record in records:
            building.take(record)
        building.finish()
    finally:
        building.close()


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

    def __init__(
        self,
        target_fd: int,
        progress: Callable[[int], None],
        base: bases.Taken | None,
        journal: Journal | None,
    ) -> None:
        self._base = base
        self._here = os.dup(target_fd)
        self._progress = progress
        self._open: list[_Open] = []
        self._is_done = False
        self._done_bytes = 0
        self._links = LinkDirectory(target_fd, "" if journal is None else journal.token)
        self._journal = journal
        self._is_resumed = journal is not None and journal.is_resumed
        if journal is not None:
            journal.read_back = self._read_back

    def close(self) -> None:
        for opened in self._open:
            if opened.content_fd >= 0:
                os.close(opened.content_fd)
        os.close(self._here)
        self._links.close()

    def take(self, record: Record) -> None:
        if isinstance(record, Entry):
            self._enter(record.fields)
        elif self._is_done or not self._open:
            raise StreamDamaged("a record of a directory's stream stands outside of any entry")
        elif isinstance(record, Attribute):
            self._open[-1].attributes.append(record)
        elif isinstance(record, Leave):
            self._leave()
        else:
            self._write(record)

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
        if is_first:
            self._disinherit()
        else:
            self._make(opened, fields)
        self._open.append(opened)

    def _make(self, opened: _Open, fields: dict[str, object]) -> None:
        name, kind = opened.name, opened.kind
        link = _number(fields.get("link", 0))
        self._make_way(opened)
        if kind == "link":
            os.link(str(link), name, src_dir_fd=self._links.opened(), dst_dir_fd=self._here, follow_symlinks=False)
            return
        if kind == "directory":
            self._make_directory(name, self._here)
            below = os.open(name, _LIST, dir_fd=self._here)
            os.close(self._here)
            self._here = below
            self._disinherit()
            if self._base is not None:
                self._base.enter(name)
            return
        if kind == "file":
            self._make_file(opened, is_from_base=bool(fields.get("from_base")))
        elif kind == "symbolic link":
            os.symlink(_bytes(fields.get("target")), os.fsencode(name), dir_fd=self._here)
        elif kind in _FORMATS:
            os.mknod(name, _FORMATS[kind] | 0o600, opened.numbers["device"], dir_fd=self._here)
        else:
            raise StreamDamaged(f"an entry is of an unknown kind ({kind[:40]!r})")
        if link:
            self._number_link(name, str(link))

    def _disinherit(self) -> None:
        """One that was left before has its default ACL, which what is made in it again would inherit."""
        if not self._is_resumed:
            return
        try:
            os.removexattr(self._here, _DEFAULT_ACL)
        except OSError as cause:
            if cause.errno not in (errno.ENODATA, errno.ENOTSUP):
                raise

    def _make_way(self, opened: _Open) -> None:
        """Of what was begun before, a name may have been made and no more."""
        is_kept = opened.kind == "directory" or (opened.kind == "file" and self._is_there)
        if self._is_resumed and not is_kept:
            durable.unlink_if_there(self._here, opened.name)

    def _number_link(self, name: str, number: str) -> None:
        if self._is_resumed:
            durable.unlink_if_there(self._links.opened(), number)
        os.link(name, number, src_dir_fd=self._here, dst_dir_fd=self._links.opened(), follow_symlinks=False)

    def _make_file(self, opened: _Open, *, is_from_base: bool) -> None:
        size = opened.numbers["size"]
        if size < 0:
            raise StreamDamaged("a file has a size that cannot be")
        if not is_from_base:
            flags = _AGAIN if self._is_there else _NEW
            opened.content_fd = os.open(opened.name, flags, 0o600, dir_fd=self._here)
        elif self._base is None:
            raise StreamDamaged("a whole stream has a file that an incremental one's has")
        else:
            opened.content_fd = self._taken(self._base, opened.name, size)
        os.ftruncate(opened.content_fd, size)
        opened.applied = images.Applied(opened.content_fd, size, is_incremental=is_from_base)

    def _taken(self, base: bases.Taken, name: str, size: int) -> int:
        before = self._done_bytes

        def copied(count: int) -> None:
            self._done_bytes = before + count
            self._progress(self._done_bytes)

        return base.take(name, self._here, size, copied)

    def _make_directory(self, name: str, dir_fd: int) -> None:
        if self._is_resumed:
            durable.ensure_directory(dir_fd, name)
        else:
            os.mkdir(name, 0o700, dir_fd=dir_fd)

    @property
    def _is_there(self) -> bool:
        """Whether the record is of those that were there before."""
        return self._journal is not None and self._journal.is_replaying

    def _read_back(self, offset: int, length: int) -> bytes:
        content_fd = self._open[-1].content_fd if self._open else -1
        return os.pread(content_fd, length, offset) if content_fd >= 0 else b""

    def _write(self, record: Data | Zeros) -> None:
        applied = self._open[-1].applied
        if applied is None:
            raise StreamDamaged("there are data of what is no file")
        applied.apply(record, is_there=self._is_there)
        if isinstance(record, Data):
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
        if self._base is not None:
            self._base.leave()
        if not self._open:
            self._links.remove()
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


def _keep(fd: int, opened: _Open) -> None:
    """Owner, mode, attributes and times, in the order in which they undo each other."""
    numbers = opened.numbers
    os.fchown(fd, numbers["uid"], numbers["gid"])
    os.fchmod(fd, numbers["mode"])
    for attribute in opened.attributes:
        os.setxattr(fd, attribute.name, attribute.content)
    os.utime(fd, ns=(numbers["atime"], numbers["mtime"]))


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
