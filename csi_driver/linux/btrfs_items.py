"""Items of a btrfs's trees, searched by ioctl; it knows no volume.

Every descriptor may be any file or directory of the filesystem unless it says otherwise, and stays the caller's.

Source: include/uapi/linux/btrfs.h, include/uapi/linux/btrfs_tree.h, fs/btrfs/ioctl.c (btrfs_ioctl_tree_search_v2).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from csi_driver.linux import btrfs
from csi_driver.linux.ioctl import exchange, iowr

# struct btrfs_ioctl_search_args_v2: the key (tree_id; objectid, offset, transid: each min, max; type: min,
# max; nr_items, unused), then buf_size, and the buffer itself behind it.
SEARCH_KEY: Final = struct.Struct("=QQQQQQQIIII32x")
SEARCH_ARGS: Final = struct.Struct("=104sQ")
SEARCH_HEADER: Final = struct.Struct("=QQQII")  # transid, objectid, offset, type, len
BTRFS_IOC_TREE_SEARCH_V2: Final = iowr(btrfs.MAGIC, 17, SEARCH_ARGS.size)
_SEARCH_BYTES: Final = 16 << 10
ROOT_TREE: Final = 1
_EXTENT_DATA_KEY: Final = 108
GREATEST: Final = (1 << 64) - 1
_FILE_EXTENT_BYTES: Final = 53  # struct btrfs_file_extent_item of what is not inside metadata


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a tree: its object id, its offset and what it holds."""

    objectid: int
    offset: int
    content: bytes


def search(
    fd: int,
    tree: int,
    item_type: int,
    *,
    objectids: tuple[int, int],
    offsets: tuple[int, int] = (0, GREATEST),
) -> Iterator[Item]:
    """Yield a tree's items of one type between two keys (which the kernel compares as whole keys)."""
    objectid, offset, kind = objectids[0], offsets[0], item_type
    while True:
        key = (tree, objectid, objectids[1], offset, offsets[1], 0, GREATEST, kind, item_type, 1 << 20)
        last = None
        for header, content in _search_once(fd, SEARCH_KEY.pack(*key, 0)):
            last = header
            if header[2] == item_type:
                yield Item(header[0], header[1], content)
        if last is None:
            return
        objectid, offset, kind = last
        if offset < GREATEST:
            offset += 1
        elif kind < 255:
            offset, kind = 0, kind + 1
        else:
            objectid, offset, kind = objectid + 1, 0, 0


def extent_item_count(fd: int, at_most: int) -> int:
    """Return how many extents a file has, as the filesystem keeps them; where there are more, `at_most`.

    FIEMAP tells those that lie side by side as one, though each is shared by itself. Holes count where the filesystem
    writes them down (without `no-holes`). What is not written out yet does not.

    Raises:
        OSError: ENOTTY where this is no btrfs.
    """
    inode = os.fstat(fd).st_ino
    structure = bytearray(SEARCH_ARGS.size + _SEARCH_BYTES)
    count = offset = 0
    while count < at_most and offset <= GREATEST:
        key = (0, inode, inode, offset, GREATEST, 0, GREATEST, _EXTENT_DATA_KEY, _EXTENT_DATA_KEY, 1 << 20)
        SEARCH_ARGS.pack_into(structure, 0, SEARCH_KEY.pack(*key, 0), _SEARCH_BYTES)
        exchange(fd, BTRFS_IOC_TREE_SEARCH_V2, structure)
        found: int = SEARCH_KEY.unpack_from(structure)[9]
        if not found:
            break
        count += found
        offset = _last_extent(structure, found, inode) + 1
    return min(count, at_most)


def _last_extent(structure: bytearray, found: int, inode: int) -> int:
    """The offset of the last of so many extents; a large image has tens of thousands, so they are not all looked at."""
    position = SEARCH_ARGS.size + (found - 1) * (SEARCH_HEADER.size + _FILE_EXTENT_BYTES)
    if position <= len(structure) - SEARCH_HEADER.size:
        _, objectid, offset, *kind = SEARCH_HEADER.unpack_from(structure, position)
        if objectid == inode and kind == [_EXTENT_DATA_KEY, _FILE_EXTENT_BYTES]:
            return int(offset)
    position = SEARCH_ARGS.size
    for _ in range(found):
        _, _, offset, _, length = SEARCH_HEADER.unpack_from(structure, position)
        position += SEARCH_HEADER.size + length
    return int(offset)


def _search_once(fd: int, key: bytes) -> Iterator[tuple[tuple[int, int, int], bytes]]:
    """Yield ((object id, offset, type), content) of the items that one call returns."""
    structure = bytearray(SEARCH_ARGS.size + _SEARCH_BYTES)
    SEARCH_ARGS.pack_into(structure, 0, key, _SEARCH_BYTES)
    exchange(fd, BTRFS_IOC_TREE_SEARCH_V2, structure)
    found = SEARCH_KEY.unpack_from(structure)[9]
    position = SEARCH_ARGS.size
    for _ in range(found):
        _, objectid, offset, item_type, length = SEARCH_HEADER.unpack_from(structure, position)
        position += SEARCH_HEADER.size
        yield (objectid, offset, item_type), bytes(structure[position : position + length])
        position += length
