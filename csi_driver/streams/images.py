"""The content of one file, an image or one in a directory, to and from records; knows no volume.

What is no data is a hole: space that is only preallocated reads as zeros too.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from csi_driver.errors import StreamDamaged
from csi_driver.linux import holes
from csi_driver.streams.frames import Data, Record, Writer, Zeros
from csi_driver.streams.header import Header
from csi_driver.streams.layout import MAX_DATA_BYTES

if TYPE_CHECKING:
    from csi_driver.streams.journal import Journal

_BLOCK: Final = 4096


def stream(header: Header, content_fd: int) -> Iterator[bytes]:
    """The whole stream of an image, from `header.start` on, in pieces of at most 1 MiB.

    Raises: OSError: EIO.
    """
    writer = Writer()
    yield writer.begin(header)
    size = min(header.size_bytes, os.fstat(content_fd).st_size)
    yield from whole(writer, content_fd, size, start=header.start)
    yield writer.end()


def changes(header: Header, content_fd: int, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """The stream of an image relative to its base, which it may differ from in `ranges`: (first byte, first behind).

    Raises: OSError: EIO; whatever `ranges` raises.
    """
    writer = Writer()
    yield writer.begin(header)
    yield from parts(writer, content_fd, ranges)
    yield writer.end()


def parts(writer: Writer, content_fd: int, ranges: Iterable[tuple[int, int]]) -> Iterator[bytes]:
    """What a file has in these ranges, holes too."""
    for start, end in ranges:
        position = start
        for offset, behind in holes.data_ranges(content_fd, start, end):
            if position < offset:
                yield writer.zeros(position, offset - position)
            yield from _pieces(writer, content_fd, offset, behind)
            position = behind
        if position < end:
            yield writer.zeros(position, end - position)


def whole(writer: Writer, content_fd: int, size: int, *, start: int = 0) -> Iterator[bytes]:
    """The data of a file up to `size`, from `start` on."""
    for offset, end in holes.data_ranges(content_fd, start, size):
        yield from _pieces(writer, content_fd, offset, end)


def receive(
    records: Iterable[Record],
    target_fd: int,
    size: int,
    *,
    is_incremental: bool,
    progress: Callable[[int], None],
    journal: Journal | None = None,
) -> None:
    """Write an image's records into a file of `size` bytes that is empty, or has the content of the base.

    What `progress` (told the bytes of data so far) raises ends it. Nothing is synced. `journal`: what of the records it
    gives back is in the file.

    Raises: StreamDamaged; OSError: ENOSPC, EIO; whatever `records` raises.
    """
    applied = Applied(target_fd, size, is_incremental=is_incremental)
    if journal is not None:
        journal.read_back = lambda offset, length: os.pread(target_fd, length, offset)
    done = 0
    for record in records:
        if not isinstance(record, Data | Zeros):
            raise StreamDamaged("an image's stream has records of a directory's")
        applied.apply(record, is_there=journal is not None and journal.is_replaying)
        if isinstance(record, Data):
            done += len(record.content)
            progress(done)


class Applied:
    """One file as its records arrive: in order, within its size, and zeros only where a base may have had data."""

    def __init__(self, target_fd: int, size: int, *, is_incremental: bool) -> None:
        self._fd = target_fd
        self._size = size
        self._is_incremental = is_incremental
        self._position = 0

    def apply(self, record: Data | Zeros, *, is_there: bool = False) -> None:
        """Write, or make zero; `is_there`: it was written before.

        Raises: StreamDamaged; OSError.
        """
        length = len(record.content) if isinstance(record, Data) else record.length
        if record.offset < self._position or record.offset + length > self._size or not length:
            raise StreamDamaged(f"a record at {record.offset} is out of order, or behind the end")
        self._position = record.offset + length
        if isinstance(record, Data):
            if not is_there:
                _write(self._fd, record.content, record.offset)
        elif self._is_incremental:
            is_last = self._position == self._size
            # A block that is only partly punched keeps its place.
            holes.punch(self._fd, record.offset, length + (-self._size % _BLOCK if is_last else 0))
        else:
            raise StreamDamaged("a whole stream has records of an incremental one's")


def _pieces(writer: Writer, content_fd: int, offset: int, end: int) -> Iterator[bytes]:
    while offset < end:
        content = os.pread(content_fd, min(end - offset, MAX_DATA_BYTES), offset)
        if not content:
            raise OSError(errno.EIO, "the content became shorter while it was read")
        yield writer.data(offset, content)
        offset += len(content)


def _write(fd: int, content: memoryview, offset: int) -> None:
    while content:
        written = os.pwrite(fd, content, offset)
        content, offset = content[written:], offset + written
