"""What the superblock in an image that nobody has mounted says is wrong with its filesystem; knows no volume.

A log that waits for its replay is no damage: every crash leaves one. What is behind the superblock is not looked at.

Source: Documentation/filesystems/ext4/super.rst, fs/xfs/libxfs/xfs_format.h (struct xfs_dsb), fs/xfs/libxfs/xfs_sb.c.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from csi_driver.linux import btrfs_superblock, crc32c, ext4_superblock

XFS_MAGIC: Final = b"XFSB"
XFS_NEEDS_REPAIR: Final = 1 << 4  # XFS_SB_FEAT_INCOMPAT_NEEDSREPAIR
_XFS_MOST_BYTES: Final = 4096
_XFS_VERSION_AT: Final = 100  # sb_versionnum, then sb_sectsize
_XFS_INCOMPAT_AT: Final = 216
_XFS_CHECKSUM_AT: Final = 224
_XFS_SECTORS: Final = (512, 1024, 2048, 4096)
_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Finding:
    """`damage`: why the kernel refuses to mount it. `has_errors`: the kernel that had it mounted met errors.

    `first_error` is where and when, if that is known.
    """

    damage: str = ""
    has_errors: bool = False
    first_error: str = ""


SOUND: Final = Finding()


def look(fs_type: str, image_fd: int) -> Finding:
    """What the superblock of the ext4, XFS or btrfs in an image says.

    Raises:
        OSError: EIO.
    """
    return _LOOKS[fs_type](image_fd)


def _ext4(image_fd: int) -> Finding:
    block = os.pread(image_fd, ext4_superblock.BYTES, ext4_superblock.OFFSET)
    if not ext4_superblock.is_whole(block):
        return Finding(damage="its superblock is damaged")
    if not ext4_superblock.has_errors(block):
        return SOUND
    return Finding(has_errors=True, first_error=ext4_superblock.first_error(block))


def _xfs(image_fd: int) -> Finding:
    block = bytearray(os.pread(image_fd, _XFS_MOST_BYTES, 0))
    if not _is_whole_xfs(block):
        return Finding(damage="its superblock is damaged")
    if _U32.unpack_from(block, _XFS_INCOMPAT_AT)[0] & XFS_NEEDS_REPAIR:
        return Finding(damage="xfs_repair has begun and not finished with it")
    return SOUND


def _is_whole_xfs(block: bytearray) -> bool:
    if len(block) != _XFS_MOST_BYTES or block[: len(XFS_MAGIC)] != XFS_MAGIC:
        return False
    sector = _U16.unpack_from(block, _XFS_VERSION_AT + 2)[0]
    if sector not in _XFS_SECTORS:
        return False
    held = block[_XFS_CHECKSUM_AT : _XFS_CHECKSUM_AT + 4]
    block[_XFS_CHECKSUM_AT : _XFS_CHECKSUM_AT + 4] = bytes(4)
    return held == (crc32c.update(memoryview(block)[:sector]) ^ crc32c.SEED).to_bytes(4, "little")


def _btrfs(image_fd: int) -> Finding:
    if btrfs_superblock.is_whole(image_fd):
        return SOUND
    return Finding(damage="its superblock is damaged")


_LOOKS: Final[Mapping[str, Callable[[int], Finding]]] = {"ext4": _ext4, "xfs": _xfs, "btrfs": _btrfs}
