"""Snapshots of btrfs subvolumes, by one ioctl; it knows no volume and no quota.

Source: include/uapi/linux/btrfs.h, fs/btrfs/ioctl.c (btrfs_ioctl_snap_create_v2).
"""

from __future__ import annotations

import errno
import os
import struct
from typing import Final

from csi_driver.linux import btrfs, btrfs_items
from csi_driver.linux.ioctl import exchange, iow

# struct btrfs_ioctl_vol_args_v2: fd, transid, flags, a union of 32 bytes that is for quotas, name
VOL_ARGS_V2: Final = struct.Struct("=qQQ32x4040s")
BTRFS_IOC_SNAP_CREATE_V2: Final = iow(0x94, 23, VOL_ARGS_V2.size)
_NAME_BYTES: Final = 255
_ROOT_REF_KEY: Final = 156  # include/uapi/linux/btrfs_tree.h


def snapshot(source_fd: int, parent_fd: int, name: str, *, read_only: bool) -> None:
    """Make `name` in the directory `parent_fd` a snapshot of the subvolume whose top directory is `source_fd`.

    It is of one instant and holds all that was written before. Subvolumes inside the source are empty directories in
    it. Durable but for its name: fsync the parent.

    Raises:
        OSError: EEXIST; EINVAL when the source is no top directory of a subvolume; EXDEV between filesystems; ENOSPC.
    """
    encoded = os.fsencode(name)
    if not encoded or b"/" in encoded or encoded in {b".", b".."} or len(encoded) > _NAME_BYTES:
        raise OSError(errno.EINVAL, f"{name!r} is no name of a directory entry")
    flags = btrfs.SUBVOL_RDONLY if read_only else 0
    exchange(parent_fd, BTRFS_IOC_SNAP_CREATE_V2, bytearray(VOL_ARGS_V2.pack(source_fd, 0, flags, encoded)))


def holds_subvolumes(fd: int) -> bool:
    """Tell whether other subvolumes lie inside the one whose top directory `fd` is.

    Raises:
        OSError: ENOTTY where this is no btrfs, EPERM without CAP_SYS_ADMIN.
    """
    identity = btrfs.subvolume_id(fd)
    return any(btrfs_items.search(fd, btrfs_items.ROOT_TREE, _ROOT_REF_KEY, objectids=(identity, identity)))
