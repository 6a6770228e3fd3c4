"""The superblocks of a btrfs image that nobody has mounted: checked, their UUID exchanged; knows no other structure.

The feature METADATA_UUID (Linux 5.0) keeps the old UUID for the blocks of the trees, which bear it, and compares only
the superblocks' own with those of other filesystems. `btrfstune -m` writes the same bytes, but commits a transaction
as well: the log of what was fsynced since the last commit is then of the wrong generation, and an image that was cut
below a writer is never mounted again (measured with btrfs-progs 6.2: open_ctree fails). Here nothing but the
superblocks changes, and the kernel replays the log at the first mount.

Source: include/uapi/linux/btrfs_tree.h (struct btrfs_super_block), fs/btrfs/disk-io.c (btrfs_validate_super).
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import uuid as uuids
from collections.abc import Callable
from typing import Final

from csi_driver.linux import crc32c
from csi_driver.linux.xxhash64 import xxhash64

BYTES: Final = 4096
# btrfs_sb_offset: the second and third exist where the image is so long.
OFFSETS: Final = (64 << 10, 64 << 20, 256 << 30)
MAGIC: Final = b"_BHRfS_M"
INCOMPAT_METADATA_UUID: Final = 0x400
_CHECKSUM_BYTES: Final = 32
_UUID_AT: Final = 0x20
_OFFSET_AT: Final = 0x30
_MAGIC_AT: Final = 0x40
_TOTAL_BYTES_AT: Final = 0x70
_INCOMPAT_AT: Final = 0xBC
_CHECKSUM_TYPE_AT: Final = 0xC4
_METADATA_UUID_AT: Final = 0x23B
_U16: Final = struct.Struct("<H")
_U64: Final = struct.Struct("<Q")


def _crc32c(content: bytes) -> bytes:
    return (crc32c.update(content) ^ crc32c.SEED).to_bytes(4, "little")


# enum btrfs_csum_type
_CHECKSUMS: Final[dict[int, Callable[[bytes], bytes]]] = {
    0: _crc32c,
    1: lambda content: xxhash64(content).to_bytes(8, "little"),
    2: lambda content: hashlib.sha256(content).digest(),
    3: lambda content: hashlib.blake2b(content, digest_size=32).digest(),
}


def write_uuid(image_fd: int, uuid: str) -> None:
    """Give the btrfs in an image file another UUID; nothing is synced.

    Raises:
        OSError: EINVAL, with nothing written, when the first superblock is not one whose checksum we can keep right.
    """
    blocks = {offset: _read(image_fd, offset) for offset in OFFSETS}
    if not _is_understood(blocks[OFFSETS[0]], OFFSETS[0]):
        raise OSError(errno.EINVAL, "the image holds no btrfs superblock that is whole")
    for offset, block in blocks.items():
        # A copy that is missing or damaged is not looked at by a mount either.
        if _is_understood(block, offset):
            os.pwrite(image_fd, _with_uuid(block, uuids.UUID(uuid).bytes), offset)


def is_whole(image_fd: int) -> bool:
    """Whether the first superblock, the only one that a mount reads, is one that it takes.

    Raises:
        OSError: EIO.
    """
    return _is_understood(_read(image_fd, OFFSETS[0]), OFFSETS[0])


def size_bytes(image_fd: int) -> int:
    """How large the btrfs is that has this one device, as of its last commit.

    Raises:
        OSError: EINVAL: there is none whose superblock is whole; EIO.
    """
    block = _read(image_fd, OFFSETS[0])
    if not _is_understood(block, OFFSETS[0]):
        raise OSError(errno.EINVAL, "the image holds no btrfs superblock that is whole")
    return int(_U64.unpack_from(block, _TOTAL_BYTES_AT)[0])


def _with_uuid(block: bytearray, uuid: bytes) -> bytes:
    (incompat,) = _U64.unpack_from(block, _INCOMPAT_AT)
    if not incompat & INCOMPAT_METADATA_UUID:
        block[_METADATA_UUID_AT : _METADATA_UUID_AT + 16] = block[_UUID_AT : _UUID_AT + 16]
        _U64.pack_into(block, _INCOMPAT_AT, incompat | INCOMPAT_METADATA_UUID)
    block[_UUID_AT : _UUID_AT + 16] = uuid
    block[:_CHECKSUM_BYTES] = _checksum(block)
    return bytes(block)


def _is_understood(block: bytearray, offset: int) -> bool:
    if len(block) != BYTES or block[_MAGIC_AT : _MAGIC_AT + 8] != MAGIC:
        return False
    if _U64.unpack_from(block, _OFFSET_AT)[0] != offset:
        return False
    if _U16.unpack_from(block, _CHECKSUM_TYPE_AT)[0] not in _CHECKSUMS:
        return False
    return bytes(block[:_CHECKSUM_BYTES]) == _checksum(block)


def _checksum(block: bytearray) -> bytes:
    (kind,) = _U16.unpack_from(block, _CHECKSUM_TYPE_AT)
    return _CHECKSUMS[kind](bytes(block[_CHECKSUM_BYTES:])).ljust(_CHECKSUM_BYTES, b"\0")


def _read(image_fd: int, offset: int) -> bytearray:
    return bytearray(os.pread(image_fd, BYTES, offset))
