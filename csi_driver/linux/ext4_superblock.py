"""The superblock of an ext4: its size read, its UUID exchanged while nobody has it mounted; knows no other structure.

The kernel can do the same to a mounted ext4 (EXT4_IOC_SETFSUUID) and also writes every backup superblock: on a clone
each of them is a block to copy, at the first unmount. Here one block is written, while the image is being built. The
backups keep the old UUID, which nothing compares: with metadata_csum_seed no checksum depends on it.

Source: Documentation/filesystems/ext4/super.rst, fs/ext4/super.c (ext4_superblock_csum); for what a last block group
must hold at least, e2fsprogs' resize/resize2fs.c (adjust_fs_info).
"""

from __future__ import annotations

import errno
import os
import struct
import uuid as uuids
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from csi_driver.linux import crc32c

OFFSET: Final = 1024
BYTES: Final = 1024
MAGIC: Final = 0xEF53
INCOMPAT_RECOVER: Final = 0x4
INCOMPAT_64BIT: Final = 0x80
INCOMPAT_CSUM_SEED: Final = 0x2000
RO_COMPAT_METADATA_CSUM: Final = 0x400
_MAGIC_AT: Final = 0x38
_FEATURES_AT: Final = 0x60  # s_feature_incompat, then s_feature_ro_compat
_UUID_AT: Final = 0x68
_MOUNT_SECONDS_AT: Final = 0x2C
_MOUNT_COUNT_AT: Final = 0x34
_CHECK_SECONDS_AT: Final = 0x40
_CHECKSUM_AT: Final = 0x3FC
_U16: Final = struct.Struct("<H")
_U32: Final = struct.Struct("<I")
_FEATURES: Final = struct.Struct("<II")
COMPAT_SPARSE_SUPER2: Final = 0x0200
ERROR_FS: Final = 0x0002
_BLOCKS_AT: Final = 0x4
_FIRST_BLOCK_AT: Final = 0x14
_BLOCK_SIZE_AT: Final = 0x18
_GROUP_BLOCKS_AT: Final = 0x20
_GROUP_INODES_AT: Final = 0x28
_STATE_AT: Final = 0x3A
_INODE_SIZE_AT: Final = 0x58
_COMPAT_AT: Final = 0x5C
_RESERVED_DESCRIPTORS_AT: Final = 0xCE
_ERROR_COUNT_AT: Final = 0x194
_FIRST_ERROR_SECONDS_AT: Final = 0x198
_FIRST_ERROR_SECONDS_HIGH_AT: Final = 0x278
_FIRST_ERROR_FUNCTION_AT: Final = 0x1A8
_FUNCTION_BYTES: Final = 32
# The end of what a datetime can be.
_YEAR_10000_SECONDS: Final = 253_402_300_800
_BLOCKS_HIGH_AT: Final = 0x150
_DESCRIPTOR_SIZE_AT: Final = 0xFE
_SHORT_DESCRIPTOR_BYTES: Final = 32
_LEAST_IN_GROUP: Final = 50


@dataclass(frozen=True, slots=True)
class Ext4Size:
    """How large an ext4 is, and what decides how large it can become; counts are of blocks."""

    blocks: int
    block_size: int
    first_block: int
    group_blocks: int
    group_overhead: int
    reserved_descriptor_blocks: int
    descriptor_bytes: int
    grows_mounted: bool

    @property
    def most_blocks_in_place(self) -> int:
        """What it can have before its group descriptors need blocks that hold something else."""
        groups = -(-(self.blocks - self.first_block) // self.group_blocks)
        held = -(-groups * self.descriptor_bytes // self.block_size) + self.reserved_descriptor_blocks
        return held * (self.block_size // self.descriptor_bytes) * self.group_blocks + self.first_block

    def blocks_on(self, device_bytes: int) -> int:
        """The blocks that it would have on a device of this size, never less than it has.

        A last group that would hold hardly more than its own tables is left out, as mke2fs and resize2fs do.
        """
        wanted = device_bytes // self.block_size
        rest = (wanted - self.first_block) % self.group_blocks
        descriptors = wanted // self.group_blocks * self.descriptor_bytes // self.block_size
        if wanted - rest >= self.blocks and rest < self.group_overhead + descriptors:
            wanted -= rest
        return max(wanted, self.blocks)


def size(fd: int) -> Ext4Size:
    """Read the size of the ext4 in an image file, or on a block device that may be mounted.

    Of an image that is mounted it is the size as it was written last; the device shows the one in memory.

    Raises:
        OSError: EINVAL: no ext4; EIO.
    """
    block = os.pread(fd, BYTES, OFFSET)
    if len(block) != BYTES or _u16(block, _MAGIC_AT) != MAGIC:
        raise OSError(errno.EINVAL, "there is no ext4")
    block_size = 1024 << _u32(block, _BLOCK_SIZE_AT)
    tables = -(-_u32(block, _GROUP_INODES_AT) * _u16(block, _INODE_SIZE_AT) // block_size)
    has_errors = _u16(block, _STATE_AT) & ERROR_FS
    incompat, _ = _FEATURES.unpack_from(block, _FEATURES_AT)
    return Ext4Size(
        blocks=_u32(block, _BLOCKS_AT) | _u32(block, _BLOCKS_HIGH_AT) << 32,
        block_size=block_size,
        first_block=_u32(block, _FIRST_BLOCK_AT),
        group_blocks=_u32(block, _GROUP_BLOCKS_AT),
        # Two bitmaps, the inode table, a copy of the superblock, the room for descriptors behind it.
        group_overhead=_LEAST_IN_GROUP + 4 + tables + _u16(block, _RESERVED_DESCRIPTORS_AT),
        reserved_descriptor_blocks=_u16(block, _RESERVED_DESCRIPTORS_AT),
        descriptor_bytes=_u16(block, _DESCRIPTOR_SIZE_AT) if incompat & INCOMPAT_64BIT else _SHORT_DESCRIPTOR_BYTES,
        grows_mounted=not (has_errors or _u32(block, _COMPAT_AT) & COMPAT_SPARSE_SUPER2),
    )


def is_whole(block: bytes) -> bool:
    """Whether this is a superblock that the kernel takes: the magic number, and its checksum where it has one."""
    if len(block) != BYTES or _u16(block, _MAGIC_AT) != MAGIC:
        return False
    _, ro_compat = _FEATURES.unpack_from(block, _FEATURES_AT)
    return not ro_compat & RO_COMPAT_METADATA_CSUM or _u32(block, _CHECKSUM_AT) == checksum(block)


def last_used(block: bytes) -> tuple[int, int, int]:
    """When it was mounted for writing and when it was checked last, in seconds, and its mounts since that check.

    Neither e2image nor resize2fs changes them.
    """
    return _u32(block, _MOUNT_SECONDS_AT), _u32(block, _CHECK_SECONDS_AT), _u16(block, _MOUNT_COUNT_AT)


def has_errors(block: bytes) -> bool:
    """Whether a kernel that had it mounted met an error, and e2fsck has not looked at it since.

    Not seen is what is still in the journal.
    """
    return bool(_u16(block, _STATE_AT) & ERROR_FS or _u32(block, _ERROR_COUNT_AT))


def first_error(block: bytes) -> str:
    """Where and when the first of these errors was met, as `told_error` words it."""
    function = block[_FIRST_ERROR_FUNCTION_AT : _FIRST_ERROR_FUNCTION_AT + _FUNCTION_BYTES].rstrip(b"\0")
    at_seconds = _u32(block, _FIRST_ERROR_SECONDS_AT) | block[_FIRST_ERROR_SECONDS_HIGH_AT] << 32
    return told_error(function.decode("ascii", "replace"), at_seconds)


def told_error(function: str, at_seconds: int) -> str:
    """A kernel function and a time (since 1970) in words; empty when they are not known.

    Both may be anything: an image's superblock holds what somebody wrote there.
    """
    if not (function.isascii() and function.isidentifier()):
        return ""
    if not 0 <= at_seconds < _YEAR_10000_SECONDS:
        return f"in {function}"
    return f"in {function} at {datetime.fromtimestamp(at_seconds, UTC):%Y-%m-%dT%H:%M:%SZ}"


def _u16(block: bytes, offset: int) -> int:
    return int(_U16.unpack_from(block, offset)[0])


def _u32(block: bytes, offset: int) -> int:
    return int(_U32.unpack_from(block, offset)[0])


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
