"""Which blocks of a file hold data, and in which two files differ; knows no snapshot. The files never change.

They are read a window at a time, so that memory is constant: each function tells about the bytes from `start` up to
some `until`, and is asked again from there. A block that it does not name is surely without data, or surely the same.

Told by the maps (`changed`): two blocks are the same if at one instant both lay in one place of one filesystem; what
is preallocated is a hole, what has no place is told as changed. But the maps are read one after the other, and the
filesystem may move extents meanwhile, by itself (btrfs, balance) or for a program (defragmentation): the place that
the base was seen in could be free and hold another block of the target by the time that the target is seen. So:

- btrfs: an extent that is given up is pinned until its transaction has committed, and a place that was used again
  shows in a map only through a later transaction. If the filesystem's generation, the number of its youngest
  transaction, is the same before and after, no place was used twice between.
- XFS moves nothing by itself, and for others only through a descriptor that is open for writing (XFS_IOC_SWAPEXT,
  XFS_IOC_EXCHANGE_RANGE): a read lease on both files says that there is none, and keeps openers waiting meanwhile.
- The base is read once more after the target, and must be as before: deduplication, which root may ask for without
  opening for writing, would have to move four times between two reads.

Where that fails, the window is read again, and in the end all its data is told: too much, never too little. The maps
are read with a sync, for which btrfs waits for what is being rewritten: otherwise that could seem to be a hole.

Told by the content (`compared`), for files that share no block: exact, for the price of reading both.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Final, NamedTuple

from csi_driver.linux import btrfs, extents, lease, statfs

# What ranges begin and end at, but for the end of the file: what direct I/O asks for everywhere.
BLOCK: Final = 4096
_NOWHERE: Final = -1
_WINDOW_EXTENTS: Final = 4096
_ATTEMPTS: Final = 4
_STEP_BYTES: Final = 1 << 20
_WINDOW_BYTES: Final = 64 << 20
# include/uapi/linux/magic.h
_XFS_SUPER_MAGIC: Final = 0x58465342


class Range(NamedTuple):
    """The bytes of a file from `start` up to, but not including, `end`."""

    start: int
    end: int


class Told(NamedTuple):
    """Ranges in order, none touching the next; up to `until` there are no others."""

    ranges: list[Range]
    until: int


class _Piece(NamedTuple):
    """Data of a file, and where on the disk it lies."""

    start: int
    end: int
    place: int

    def place_of(self, offset: int) -> int:
        return self.place if self.place == _NOWHERE else self.place + offset - self.start


def allocated(fd: int, start: int, end: int) -> Told:
    """The data of a file, `start` at the beginning of a block.

    Raises:
        OSError: EOPNOTSUPP on a filesystem without FIEMAP, EIO.
    """
    pieces, until = _read(fd, start, end)
    return Told(_blocks(pieces, end), until)


def can_be_told_apart(base_fd: int, target_fd: int) -> bool:
    """Whether `changed` can be asked of two files, or of those in two directories.

    Both are on one filesystem then, of a kind whose moves are known.
    """
    if btrfs.is_btrfs(base_fd):
        # Each subvolume has a device number of its own.
        return btrfs.is_btrfs(target_fd) and btrfs.filesystem_uuid(base_fd) == btrfs.filesystem_uuid(target_fd)
    return os.fstat(base_fd).st_dev == os.fstat(target_fd).st_dev and statfs.magic(base_fd) == _XFS_SUPER_MAGIC


def changed(base_fd: int, target_fd: int, base_end: int, start: int, end: int) -> Told:
    """Where the target may differ from the base, of which only `base_end` bytes count, told by their maps.

    Raises:
        OSError: as `allocated`.
    """
    for _ in range(_ATTEMPTS):
        with _moves_watched(base_fd, target_fd) as nothing_moved:
            base, until = _read(base_fd, start, end, base_end)
            target, until = _read(target_fd, start, until)
            again, _ = _read(base_fd, start, until, base_end)
            are_still = nothing_moved()
        base = _cut(base, until)
        if are_still and again == base:
            return Told(_blocks(_differing(base, target), end), until)
    return Told(_blocks(sorted([*base, *again, *target]), end), until)


def compared(base_fd: int, target_fd: int, base_end: int, start: int, end: int) -> Told:
    """Where the target differs from the base, of which only `base_end` bytes count, by reading what both hold.

    Reads 64 MiB of each at most.

    Raises:
        OSError: as `allocated`.
    """
    base, until = _read(base_fd, start, end, base_end)
    target, until = _read(target_fd, start, until)
    found: list[Range] = []
    left = _WINDOW_BYTES
    for data in _blocks(sorted([*_cut(base, until), *target]), end):
        stop = min(data.end, data.start + left)
        for at in range(data.start, stop, _STEP_BYTES):
            count = min(_STEP_BYTES, stop - at)
            old = os.pread(base_fd, max(0, min(count, base_end - at)), at).ljust(count, b"\0")
            found.extend(unequal(old, os.pread(target_fd, count, at).ljust(count, b"\0"), at))
        for fd in (base_fd, target_fd):
            # Read once: it need not push out what others use.
            os.posix_fadvise(fd, data.start, stop - data.start, os.POSIX_FADV_DONTNEED)
        left -= stop - data.start
        if not left:
            until = stop
            break
    return Told(_blocks(found, end), until)


def _read(fd: int, start: int, end: int, data_end: int | None = None) -> tuple[list[_Piece], int]:
    """The data from `start`, up to so many extents; what lies behind `data_end` does not count."""
    found = list(islice(extents.mapped(fd, start=start, end=end, sync=True), _WINDOW_EXTENTS))
    if len(found) == _WINDOW_EXTENTS:
        end = found[-1].end // BLOCK * BLOCK
    pieces = (
        _Piece(one.logical, one.end, one.physical if one.has_place else _NOWHERE)
        for one in found
        if not one.is_unwritten
    )
    return _cut(_joined(pieces), end if data_end is None else min(end, data_end)), end


def _joined(pieces: Iterable[_Piece]) -> Iterator[_Piece]:
    """The same data in as few pieces as it lies in, however the filesystem cuts its extents."""
    start = end = place = 0
    for piece in pieces:
        if piece.start == end and start < end and _follows(place, end - start, piece.place):
            end = piece.end
            continue
        if start < end:
            yield _Piece(start, end, place)
        start, end, place = piece
    if start < end:
        yield _Piece(start, end, place)


def _follows(place: int, length: int, next_place: int) -> bool:
    return next_place == (_NOWHERE if place == _NOWHERE else place + length)


def _cut(pieces: Iterable[_Piece], end: int) -> list[_Piece]:
    return [
        piece if piece.end <= end else _Piece(piece.start, end, piece.place) for piece in pieces if piece.start < end
    ]


def _differing(base: Sequence[_Piece], target: Sequence[_Piece]) -> Iterator[Range]:
    """Where one of the two has data and the other not, or both have it not in the same place."""
    olds, news = iter(base), iter(target)
    old, new = next(olds, None), next(news, None)
    while old is not None or new is not None:
        if old == new and old is not None and old.place != _NOWHERE:
            old, new = next(olds, None), next(news, None)
            continue
        start, end, is_same = _first_of(old, new)
        if not is_same:
            yield Range(start, end)
        old, new = _rest(old, end, olds), _rest(new, end, news)


def _first_of(old: _Piece | None, new: _Piece | None) -> tuple[int, int, bool]:
    """The first stretch that only one of them covers, or both; and whether it is surely the same in both."""
    if old is None or new is None:
        only = old or new
        assert only is not None
        return only.start, only.end, False
    if old.start != new.start:
        first, other = (old, new) if old.start < new.start else (new, old)
        return first.start, min(first.end, other.start), False
    is_same = old.place == new.place and old.place != _NOWHERE
    return old.start, min(old.end, new.end), is_same


def _rest(piece: _Piece | None, end: int, following: Iterator[_Piece]) -> _Piece | None:
    """What is left of a piece behind `end`, or the one that follows it."""
    if piece is None or piece.start >= end:
        return piece
    return _Piece(end, piece.end, piece.place_of(end)) if piece.end > end else next(following, None)


def _blocks(ranges: Iterable[Range | _Piece], size: int) -> list[Range]:
    """Whole blocks that hold these bytes, which come in the order of their beginnings; those that touch in one."""
    found: list[Range] = []
    start = end = 0
    for one in ranges:
        first, last = one.start // BLOCK * BLOCK, min(-(-one.end // BLOCK) * BLOCK, size)
        if start < end and first <= end:
            end = max(end, last)
            continue
        if start < end:
            found.append(Range(start, end))
        start, end = first, last
    if start < end:
        found.append(Range(start, end))
    return found


def unequal(old: bytes, new: bytes, offset: int) -> Iterator[Range]:
    """The blocks in which two buffers of one length differ."""
    if old == new:
        return
    if len(old) <= BLOCK:
        yield Range(offset, offset + len(old))
        return
    middle = len(old) // 2 // BLOCK * BLOCK or BLOCK
    yield from unequal(old[:middle], new[:middle], offset)
    yield from unequal(old[middle:], new[middle:], offset + middle)


@contextmanager
def _moves_watched(base_fd: int, target_fd: int) -> Iterator[Callable[[], bool]]:
    """Tell, before this ends, whether surely no place that one of the files had became one of the other."""
    if btrfs.is_btrfs(base_fd):
        began = btrfs.generation(base_fd)
        yield lambda: btrfs.generation(base_fd) == began
        return
    with ExitStack() as leases:
        are_held = [leases.enter_context(lease.writers_kept_away(fd)) for fd in (base_fd, target_fd)]
        yield lambda: all(is_held() for is_held in are_held)
