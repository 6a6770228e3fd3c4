"""The superblock of an ext4 image that nobody has mounted: its UUID exchanged; knows no other structure of ext4.

The kernel can do the same to a mounted ext4 (EXT4_IOC_SETFSUUID) and also writes every backup superblock: on a clone
each of them is a block to copy, at the first unmount. Here one block is written, while the image is being built. The
backups keep the old UUID, which nothing compares: with metadata_csum_seed no checksum depends on it.

Source: Documentation/filesystems/ext4/super.rst, fs/ext4/super.c (ext4_superblock_csum).
"""

from __future__ import annotations

import os
import struct
import uuid as uuids
from typing import Final

from csi_driver.linux import crc32c

OFFSET: Final = 1024
BYTES: Final = 1024
MAGIC: Final = 0xEF53
INCOMPAT_RECOVER: Final = 0x4
INCOMPAT_CSUM_SEED: Final = 0x2000
RO_COMPAT_METADATA_CSUM: Final = 0x400
_MAGIC_AT: Final = 0x38
_FEATURES_AT: Final = 0x60  # s_feature_incompat, then s_feature_ro_compat
_UUID_AT: Final = 0x68
_CHECKSUM_AT: Final = 0x3FC
_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")
_FEATURES: Final = struct.Struct("<II")


def write_uuid(image_fd: int, uuid: str) -> bool:
    """Give the ext4 in an image file another UUID; nothing is synced.

    False, and nothing is written, when the superblock is not one whose every checksum we can keep right: not ext4, no
    metadata_csum_seed, a journal that waits for its replay, or its own checksum does not match. The caller may ask the
    kernel then, once it is mounted.

    Raises:
        OSError: EIO.
    """
    block = bytearray(os.pread(image_fd, BYTES, OFFSET))
    if not _is_understood(block):
        return False
    block[_UUID_AT : _UUID_AT + 16] = uuids.UUID(uuid).bytes
    _U32.pack_into(block, _CHECKSUM_AT, checksum(block))
    os.pwrite(image_fd, block, OFFSET)
    return True


def checksum(block: bytes | bytearray) -> int:
    """CRC-32C of a superblock up to its checksum field, seeded with ones and not inverted, as ext4 wants it."""
    return crc32c.update(memoryview(block)[:_CHECKSUM_AT])


def _is_understood(block: bytearray) -> bool:
    if len(block) != BYTES or _U16.unpack_from(block, _MAGIC_AT)[0] != MAGIC:
        return False
    incompat, ro_compat = _FEATURES.unpack_from(block, _FEATURES_AT)
    # A journal that is replayed may hold an older copy of this very block, which would come back with its UUID.
    if incompat & INCOMPAT_RECOVER:
        return False
    if not (incompat & INCOMPAT_CSUM_SEED and ro_compat & RO_COMPAT_METADATA_CSUM):
        return False
    return bool(_U32.unpack_from(block, _CHECKSUM_AT)[0] == checksum(block))
