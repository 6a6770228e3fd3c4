"""Filesystems made as large as the device that they lie on; it knows descriptors and bytes, and no volume.

A mounted one is grown by its own ioctl, which the workload does not notice. XFS and btrfs want CAP_SYS_ADMIN for it,
ext4 CAP_SYS_RESOURCE, which root in a container or a restricted machine may lack. One that is not mounted is grown by
resize2fs without it, here in a copy of its metadata.

Source: fs/ext4/{ioctl,resize}.c, fs/xfs/libxfs/xfs_fs.h, fs/xfs/xfs_fsops.c, fs/btrfs/ioctl.c.
"""

from __future__ import annotations

import errno
import os
import re
import struct
from collections.abc import Callable, Mapping
from typing import Final

from csi_driver.linux import btrfs, btrfs_space, ext4_superblock, filesystem, ioctl, process

# fs/ext4/ext4.h: _IOW('f', 16, __u64)
EXT4_IOC_RESIZE_FS: Final = ioctl.iow(ord("f"), 16, 8)
_BLOCKS: Final = struct.Struct("=Q")

# struct xfs_fsop_geom_v1: blocksize, rtextsize, agblocks, agcount, logblocks, sectsize, inodesize, imaxpct, datablocks
XFS_GEOMETRY: Final = struct.Struct("=IIIIIIIIQ72x")
XFS_IOC_FSGEOMETRY_V1: Final = ioctl.ior(ord("X"), 100, XFS_GEOMETRY.size)
# struct xfs_growfs_data: newblocks, imaxpct
XFS_GROWFS: Final = struct.Struct("=QI4x")
XFS_IOC_FSGROWFSDATA: Final = ioctl.iow(ord("X"), 110, XFS_GROWFS.size)
# fs/xfs/libxfs/xfs_ag.h, XFS_MIN_AG_BLOCKS: a smaller rest is no allocation group.
XFS_LEAST_GROUP_BLOCKS: Final = 64

BTRFS_IOC_RESIZE: Final = ioctl.iow(0x94, 3, btrfs.VOL_ARGS.size)
_BTRFS_SECTOR: Final = 4096

CAP_SYS_RESOURCE: Final = 24  # include/uapi/linux/capability.h
_EFFECTIVE: Final = re.compile(rb"^CapEff:\s*([0-9a-f]+)$", re.MULTILINE)


def may_grow_mounted_ext4() -> bool:
    """Whether this thread has the capability that the kernel asks for (CAP_SYS_RESOURCE)."""
    with open("/proc/thread-self/status", "rb") as file:
        found = _EFFECTIVE.search(file.read())
    return found is not None and bool(int(found[1], 16) >> CAP_SYS_RESOURCE & 1)


def most_ext4_bytes(image_fd: int) -> int | None:
    """How large the ext4 in an image can become here; None: as large as any."""
    if may_grow_mounted_ext4():
        return None
    size = ext4_superblock.size(image_fd)
    return size.most_blocks_in_place * size.block_size


def grow_mounted(name: str, mounted_fd: int, device_fd: int, device_bytes: int) -> bool:
    """Let the mounted filesystem take its whole device; True when it was made larger, False when it was so already.

    `mounted_fd` is any file or directory of it, open for reading, on a mount that is not read-only; `device_fd` is
    its device, which has `device_bytes`. Durable once the filesystem's own log says so; repeated after a crash.

    Raises:
        OSError: EPERM: ext4 without CAP_SYS_RESOURCE, or marked with an error; EROFS; EBUSY: something else that
            excludes it is under way (a balance); EOPNOTSUPP: ext4 made so that only resize2fs can do it.
    """
    return _GROWN[name](mounted_fd, device_fd, device_bytes)


def unmounted_ext4_lags(image_fd: int, image_bytes: int) -> bool:
    """Whether the ext4 in an image that nobody has mounted can be larger, and only resize2fs can make it so.

    No where there is no ext4 at all: the mount will say what is wrong.
    """
    try:
        size = ext4_superblock.size(image_fd)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return False
    if size.blocks_on(image_bytes) <= size.blocks:
        return False
    return not (size.grows_mounted and may_grow_mounted_ext4())


def copy_grown_ext4(image_path: str, copy_path: str, blocks: int, timeout: float) -> None:
    """Make a copy of the metadata of an unmounted, checked ext4, grown to so many blocks, in a sparse file.

    Not more blocks than it can have without moving data, which the copy lacks (Ext4Size.most_blocks_in_place). The copy
    is checked. All tools die with the calling thread; `timeout` is in seconds, for each. Nothing is synced.

    Raises:
        OSError: ToolError, ToolMissing, ToolTimeout; ENOSPC.
    """

    def run(*command: str) -> None:
        process.run(command, timeout=timeout, die_with_caller=True)

    run("e2image", "-r", image_path, copy_path)
    os.truncate(copy_path, blocks * filesystem.BLOCK_SIZE)
    run("resize2fs", "--", copy_path, str(blocks))
    run("e2fsck", "-fn", "--", copy_path)


def _grow_ext4(mounted_fd: int, device_fd: int, device_bytes: int) -> bool:
    # From the device, whose page cache has the superblock of the mounted filesystem; statfs leaves the overhead out.
    size = ext4_superblock.size(device_fd)
    wanted = size.blocks_on(device_bytes)
    if wanted <= size.blocks:
        return False
    ioctl.exchange(mounted_fd, EXT4_IOC_RESIZE_FS, bytearray(_BLOCKS.pack(wanted)))
    return True


def _grow_xfs(mounted_fd: int, device_fd: int, device_bytes: int) -> bool:
    geometry = bytearray(XFS_GEOMETRY.size)
    ioctl.exchange(mounted_fd, XFS_IOC_FSGEOMETRY_V1, geometry)
    block_size, _, group_blocks, _, _, _, _, inode_percent, blocks = XFS_GEOMETRY.unpack(geometry)
    wanted = device_bytes // block_size
    if wanted % group_blocks < XFS_LEAST_GROUP_BLOCKS:
        wanted -= wanted % group_blocks
    if wanted <= blocks:
        return False
    ioctl.exchange(mounted_fd, XFS_IOC_FSGROWFSDATA, bytearray(XFS_GROWFS.pack(wanted, inode_percent)))
    return True


def _grow_btrfs(mounted_fd: int, device_fd: int, device_bytes: int) -> bool:
    wanted = device_bytes // _BTRFS_SECTOR * _BTRFS_SECTOR
    [device, *others] = btrfs_space.devices(mounted_fd)
    if others or wanted <= device.size:
        return False
    asked = bytearray(btrfs.VOL_ARGS.pack(0, f"{device.device_id}:{wanted}".encode()))
    if ioctl.exchange(mounted_fd, BTRFS_IOC_RESIZE, asked):
        # BTRFS_ERROR_DEV_EXCL_RUN_IN_PROGRESS, which is no errno.
        raise OSError(errno.EBUSY, "a balance or another exclusive operation of the btrfs is running")
    return True


_GROWN: Final[Mapping[str, Callable[[int, int, int], bool]]] = {
    "ext4": _grow_ext4,
    "xfs": _grow_xfs,
    "btrfs": _grow_btrfs,
}
