"""How much of the disk a file holds, by its extent map (FIEMAP); it knows no capacity rule.

st_blocks counts an extent that two files share in both of them; the map says which are shared.

Source: include/uapi/linux/fiemap.h, Documentation/filesystems/fiemap.rst.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

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
_WHOLE_FILE: Final = (1 << 64) - 1
# Most images at start-up fit the first batch (1.8 KiB); a fragmented one goes on in batches of 56 KiB.
_FIRST_BATCH: Final = 32
_NEXT_BATCH: Final = 1024


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
    """Return the number of extents in a file's map, which is what a reflink of it costs.

    Raises:
        OSError: as allocated_bytes.
    """
    header = bytearray(FIEMAP.pack(0, _WHOLE_FILE, 0, 0, 0, 0))
    exchange(fd, FS_IOC_FIEMAP, header)
    count: int = FIEMAP.unpack(header)[3]
    return count


def _map(fd: int, flags: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (logical, physical, length, flags) of every extent."""
    start, batch = 0, _FIRST_BATCH
    while True:
        buffer = bytearray(FIEMAP.size + batch * EXTENT.size)
        FIEMAP.pack_into(buffer, 0, start, _WHOLE_FILE - start, flags, 0, batch, 0)
        exchange(fd, FS_IOC_FIEMAP, buffer)
        mapped: int = FIEMAP.unpack_from(buffer)[3]
        if not mapped:
            return
        extent = (0, 0, 0, 0)
        answer = memoryview(buffer)[FIEMAP.size : FIEMAP.size + mapped * EXTENT.size]
        for extent in EXTENT.iter_unpack(answer):
            yield extent
        logical, _, length, extent_flags = extent
        # The kernel need not mark the last one (a file that shrinks meanwhile); an empty batch ends it as
        # well.
        if extent_flags & FIEMAP_EXTENT_LAST or mapped < batch:
            return
        start, batch, flags = logical + length, _NEXT_BATCH, 0
