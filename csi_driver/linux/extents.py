"""What a file holds and where, by its extent map (FIEMAP); it knows no capacity rule.

st_blocks counts an extent that two files share in both of them; the map says which are shared.

Source: include/uapi/linux/fiemap.h, Documentation/filesystems/fiemap.rst.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from csi_driver.linux import btrfs, btrfs_items
from csi_driver.linux.ioctl import exchange, iowr

# struct fiemap: fm_start, fm_length, fm_flags, fm_mapped_extents, fm_extent_count, fm_reserved
FIEMAP: Final = struct.Struct("=QQIIII")
# struct fiemap_extent: fe_logical, fe_physical, fe_length, fe_reserved64[2], fe_flags, fe_reserved[3]
EXTENT: Final = struct.Struct("=QQQ16xI12x")
FS_IOC_FIEMAP: Final = iowr(ord("f"), 11, FIEMAP.size)

FIEMAP_FLAG_SYNC: Final = 0x1
FIEMAP_EXTENT_LAST: Final = 0x1
FIEMAP_EXTENT_UNKNOWN: Final = 0x2
FIEMAP_EXTENT_DELALLOC: Final = 0x4
FIEMAP_EXTENT_ENCODED: Final = 0x8
FIEMAP_EXTENT_DATA_INLINE: Final = 0x200
FIEMAP_EXTENT_UNWRITTEN: Final = 0x800
FIEMAP_EXTENT_SHARED: Final = 0x2000

# Not surely this file's alone and on disk: shared; not allocated yet; compressed, whose length is not what it
# takes; inside metadata. An own size that is too small makes the capacity rule stricter, one too great would
# break it.
_NOT_EXCLUSIVE: Final = (
    FIEMAP_EXTENT_SHARED
    | FIEMAP_EXTENT_UNKNOWN
    | FIEMAP_EXTENT_DELALLOC
    | FIEMAP_EXTENT_ENCODED
    | FIEMAP_EXTENT_DATA_INLINE
)
# `physical` does not say where the bytes are, or that is no place where bytes lie as they are read.
_NO_PLACE: Final = FIEMAP_EXTENT_UNKNOWN | FIEMAP_EXTENT_DELALLOC | FIEMAP_EXTENT_ENCODED | FIEMAP_EXTENT_DATA_INLINE
_WHOLE_FILE: Final = (1 << 64) - 1
# Most images at start-up fit the first batch (1.8 KiB); a fragmented one goes on in batches of 56 KiB.
_FIRST_BATCH: Final = 32
_NEXT_BATCH: Final = 1024
# On btrfs so many take some 25 ms to count; to share them, a second.
MANY: Final = 200_000


class Extent(NamedTuple):
    """A piece of a file in bytes: where in the file, where on the disk, how long, and FIEMAP_EXTENT_* of it.

    A tuple, since a fragmented terabyte has a million of them.
    """

    logical: int
    physical: int
    length: int
    flags: int

    @property
    def end(self) -> int:
        """The first byte of the file behind it."""
        return self.logical + self.length

    @property
    def is_unwritten(self) -> bool:
        """Whether it is only preallocated: it reads as zeros, as a hole does."""
        return bool(self.flags & FIEMAP_EXTENT_UNWRITTEN)

    @property
    def is_shared(self) -> bool:
        """Whether other files may hold it too."""
        return bool(self.flags & FIEMAP_EXTENT_SHARED)

    @property
    def has_place(self) -> bool:
        """Whether its bytes lie at `physical` as they are read: not compressed, not inline, not in memory only."""
        return not self.flags & _NO_PLACE


_NONE: Final = Extent(0, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Allocation:
    """What a file holds, in bytes: `total` is mapped in it, `exclusive` surely on disk and in no other file.

    Preallocated (unwritten) space counts in both, also behind the end of the file. `extents` is the length of
    its map.
    """

    total: int
    exclusive: int
    extents: int


NOTHING: Final = Allocation(0, 0, 0)


def allocated_bytes(fd: int, *, sync: bool = False) -> Allocation:
    """Measure what a file holds; with `sync`, write its data out first, so that nothing is without a place.

    Without `sync`, data in memory that has no place yet is in `total` and not in `exclusive`. The answer for
    a file that is being written is of no single instant.

    Raises:
        OSError: EOPNOTSUPP on a filesystem without FIEMAP (tmpfs), EIO of the sync.
    """
    # Data that was never written out has no blocks on some filesystems, so the short cut is not for `sync`.
    if not sync and os.fstat(fd).st_blocks == 0:
        return NOTHING
    total = exclusive = extents = 0
    for _, _, length, flags in _map(fd, FIEMAP_FLAG_SYNC if sync else 0):
        total += length
        extents += 1
        if not flags & _NOT_EXCLUSIVE:
            exclusive += length
    return Allocation(total, exclusive, extents)


def extent_count(fd: int) -> int:
    """Return the number of extents that a reflink of the file has to share.

    On btrfs these are its items, of which FIEMAP tells neighbours as one; they are counted up to MANY. What is not
    written out yet may be missing.

    Raises:
        OSError: as allocated_bytes.
    """
    if btrfs.is_btrfs(fd):
        return btrfs_items.extent_item_count(fd, MANY)
    header = bytearray(FIEMAP.pack(0, _WHOLE_FILE, 0, 0, 0, 0))
    exchange(fd, FS_IOC_FIEMAP, header)
    count: int = FIEMAP.unpack(header)[3]
    return count


def mapped(fd: int, *, start: int = 0, end: int | None = None, sync: bool = False) -> Iterator[Extent]:
    """Yield the extents of a file in order, cut to the bytes from `start` to `end` (None: however far they go).

    What no extent covers is a hole; who wants data leaves out those that are `is_unwritten`, and is told of data that
    is still in memory only with `sync`, which writes it out first. Extents behind the end of the file (preallocated)
    are yielded too. Memory is constant: the map is read a batch at a time, so that of a file that changes meanwhile is
    of no single instant.

    Raises:
        OSError: EOPNOTSUPP on a filesystem without FIEMAP (tmpfs), EIO of the sync.
    """
    stop = _WHOLE_FILE if end is None else end
    for extent in _map(fd, FIEMAP_FLAG_SYNC if sync else 0, start, stop):
        # Some filesystems give an extent whole that lies only partly in what was asked for.
        if extent.logical >= start and extent.end <= stop:
            yield extent
            continue
        first = max(extent.logical, start)
        length = min(extent.end, stop) - first
        if length > 0:
            yield Extent(first, extent.physical + first - extent.logical, length, extent.flags)


def _map(fd: int, flags: int, start: int = 0, stop: int = _WHOLE_FILE) -> Iterator[Extent]:
    """Yield every extent that lies, also partly, between the two."""
    batch = _FIRST_BATCH
    while start < stop:
        buffer = bytearray(FIEMAP.size + batch * EXTENT.size)
        FIEMAP.pack_into(buffer, 0, start, stop - start, flags, 0, batch, 0)
        exchange(fd, FS_IOC_FIEMAP, buffer)
        found: int = FIEMAP.unpack_from(buffer)[3]
        if not found:
            return
        extent = _NONE
        answer = memoryview(buffer)[FIEMAP.size : FIEMAP.size + found * EXTENT.size]
        for extent in map(Extent._make, EXTENT.iter_unpack(answer)):
            yield extent
        # The kernel need not mark the last one (a file that shrinks meanwhile); an empty batch ends it as
        # well.
        if extent.flags & FIEMAP_EXTENT_LAST or found < batch:
            return
        # With the sync again: what a defragmentation rewrites between two batches must not seem to be a hole.
        start, batch = extent.end, _NEXT_BATCH
