"""Quotas of btrfs: what its qgroups count and limit; it knows no volume and no pool.

Every descriptor may be any file or directory of the filesystem, and stays the caller's. Quotas are full qgroups: simple
quotas set an incompatible feature bit, and an older kernel then refuses the mount.

Life of a qgroup: it is made with its subvolume (0/<subvolume id>). Deleting the subvolume only unlinks it; the space
comes back when the kernel's cleaner is through (it wakes with each commit), and then Linux 6.18 removes the qgroup
too. 6.1 leaves it for ever: `stale_qgroups` finds these, `destroy_qgroup` removes them.

Source: include/uapi/linux/btrfs.h, include/uapi/linux/btrfs_tree.h, fs/btrfs/{ioctl,qgroup}.c.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from csi_driver.linux import btrfs, btrfs_items
from csi_driver.linux.ioctl import exchange, io, ior, iow, iowr

# struct btrfs_ioctl_quota_ctl_args: cmd, status
QUOTA_CTL: Final = struct.Struct("=QQ")
BTRFS_IOC_QUOTA_CTL: Final = iowr(btrfs.MAGIC, 40, QUOTA_CTL.size)
_QUOTA_CTL_ENABLE: Final = 1
_QUOTA_RESCAN_BYTES: Final = 64  # struct btrfs_ioctl_quota_rescan_args, all zero
BTRFS_IOC_QUOTA_RESCAN: Final = iow(btrfs.MAGIC, 44, _QUOTA_RESCAN_BYTES)
BTRFS_IOC_QUOTA_RESCAN_WAIT: Final = io(btrfs.MAGIC, 46)
# struct btrfs_ioctl_qgroup_create_args: create, qgroupid
QGROUP_CREATE: Final = struct.Struct("=QQ")
BTRFS_IOC_QGROUP_CREATE: Final = iow(btrfs.MAGIC, 42, QGROUP_CREATE.size)
# struct btrfs_ioctl_qgroup_limit_args: qgroupid, flags, max_rfer, max_excl, rsv_rfer, rsv_excl
QGROUP_LIMIT: Final = struct.Struct("=QQQQQQ")
BTRFS_IOC_QGROUP_LIMIT: Final = ior(btrfs.MAGIC, 43, QGROUP_LIMIT.size)
_LIMIT_MAX_REFERENCED: Final = 1
_NO_LIMIT: Final = (1 << 64) - 1  # btrfs_limit_qgroup, CLEAR_VALUE; 0 would be a limit of no bytes
_QUOTA_TREE: Final = 8
_ROOT_ITEM_KEY: Final = 132
_QGROUP_STATUS_KEY: Final = 240
_QGROUP_INFO_KEY: Final = 242
_QGROUP_LIMIT_KEY: Final = 244
QGROUP_STATUS: Final = struct.Struct("<QQQQ")  # version, btrfs.generation, flags, rescan
_STATUS_ON: Final = 1
_STATUS_RESCAN: Final = 1 << 1
_STATUS_INCONSISTENT: Final = 1 << 2
_STATUS_SIMPLE: Final = 1 << 3
QGROUP_INFO: Final = struct.Struct("<QQQQQ")  # btrfs.generation, rfer, rfer_cmpr, excl, excl_cmpr
QGROUP_LIMIT_ITEM: Final = struct.Struct("<QQQQQ")  # flags, max_rfer, max_excl, rsv_rfer, rsv_excl


@dataclass(frozen=True, slots=True)
class QgroupUsage:
    """Bytes that a subvolume refers to, metadata included, those of it alone, and its limit (0: none)."""

    referenced: int
    exclusive: int
    limit: int


def quota_enabled(fd: int) -> bool:
    """Tell whether full qgroups are on; False for simple quotas, whose usage means something else.

    Raises:
        OSError: ENOTTY where this is no btrfs, EPERM without CAP_SYS_ADMIN.
    """
    flags = _quota_status(fd)
    return bool(flags & _STATUS_ON) and not flags & _STATUS_SIMPLE


def quota_consistent(fd: int) -> bool:
    """Tell whether usage is right, as of the last commit; False also while it is being counted, or quotas are off.

    The kernel gives up counting when a large snapshot is dropped (qgroups/drop_subtree_threshold in sysfs) or a
    qgroup is assigned by hand. Limits then hold against stale figures until `rescan_quota`.

    Raises:
        OSError: as quota_enabled.
    """
    return _quota_status(fd) & (_STATUS_ON | _STATUS_RESCAN | _STATUS_INCONSISTENT) == _STATUS_ON


def enable_quota(fd: int) -> None:
    """Turn full qgroups on and wait until what exists is counted; nothing happens when they are on.

    The first time costs a walk over all extents (seconds to minutes on a large filesystem).

    Raises:
        OSError: EROFS, ENOSPC; EINVAL when simple quotas are on.
    """
    # The kernel answers "already on" with success, for simple quotas too.
    exchange(fd, BTRFS_IOC_QUOTA_CTL, bytearray(QUOTA_CTL.pack(_QUOTA_CTL_ENABLE, 0)))
    exchange(fd, BTRFS_IOC_QUOTA_RESCAN_WAIT, bytearray(8))
    if not quota_enabled(fd):
        raise OSError(errno.EINVAL, "simple quotas are on, and their limits count otherwise")


def rescan_quota(fd: int) -> None:
    """Count again what all subvolumes refer to, and wait for it; joins a count that runs already.

    Raises:
        OSError: ENOTCONN or EINVAL when quotas are off, EROFS.
    """
    try:
        exchange(fd, BTRFS_IOC_QUOTA_RESCAN, bytearray(_QUOTA_RESCAN_BYTES))
    except OSError as error:
        if error.errno != errno.EINPROGRESS:
            raise
    exchange(fd, BTRFS_IOC_QUOTA_RESCAN_WAIT, bytearray(8))


def set_qgroup_limit(fd: int, subvolume_id: int, max_referenced_bytes: int) -> None:
    """Let a subvolume refer to at most so many bytes, its own metadata included; 0 removes the limit.

    Writes beyond it fail with EDQUOT. A limit below the present usage is accepted, and only stops growth.

    Raises:
        OSError: ENOTCONN when quotas are off, ENOENT when the subvolume has no qgroup.
    """
    limit = max_referenced_bytes or _NO_LIMIT
    structure = bytearray(QGROUP_LIMIT.pack(subvolume_id, _LIMIT_MAX_REFERENCED, limit, 0, 0, 0))
    exchange(fd, BTRFS_IOC_QGROUP_LIMIT, structure)


def qgroup_usage(fd: int, subvolume_id: int) -> QgroupUsage:
    """Return what a subvolume refers to and its limit, as of the last commit (every 30 s, or syncfs).

    Raises:
        OSError: ENOENT when the subvolume has no qgroup, or quotas are off.
    """
    info = dict(_quota_items(fd, _QGROUP_INFO_KEY, subvolume_id)).get(subvolume_id)
    if info is None:
        raise OSError(errno.ENOENT, f"no qgroup 0/{subvolume_id}")
    _, referenced, _, exclusive, _ = QGROUP_INFO.unpack_from(info)
    limits = dict(_quota_items(fd, _QGROUP_LIMIT_KEY, subvolume_id))
    flags, limit, *_ = QGROUP_LIMIT_ITEM.unpack_from(limits.get(subvolume_id, bytes(QGROUP_LIMIT_ITEM.size)))
    return QgroupUsage(referenced, exclusive, limit if flags & _LIMIT_MAX_REFERENCED else 0)


def destroy_qgroup(fd: int, subvolume_id: int) -> bool:
    """Remove the qgroup of a subvolume that is gone; False while the kernel still cleans the subvolume up.

    Gone already is True: Linux 6.18 removes it itself. For ids of deleted subvolumes only: kernels before 6.8 take
    the qgroup of a living one away without a word.

    Raises:
        OSError: ENOTCONN when quotas are off.
    """
    try:
        exchange(fd, BTRFS_IOC_QGROUP_CREATE, bytearray(QGROUP_CREATE.pack(0, subvolume_id)))
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno == errno.EBUSY:  # can_delete_qgroup: its tree still exists, deleted or not
            return False
        raise
    return True


def stale_qgroups(fd: int) -> list[int]:
    """Return the ids of subvolumes that are gone for good and left a qgroup behind (Linux 6.1 does).

    Raises:
        OSError: as quota_enabled.
    """
    # The level of a qgroup is in the upper 16 bits; only level 0 belongs to a subvolume.
    qgroups = [found for found, _ in _quota_items(fd, _QGROUP_INFO_KEY) if 256 <= found < 1 << 48]
    if not qgroups:
        return []
    found = btrfs_items.search(fd, btrfs_items.ROOT_TREE, _ROOT_ITEM_KEY, objectids=(256, btrfs_items.GREATEST))
    roots = {item.objectid for item in found}
    return [identity for identity in qgroups if identity not in roots]


def _quota_status(fd: int) -> int:
    """Return the flags of the quota tree, 0 when there is none."""
    for _, content in _quota_items(fd, _QGROUP_STATUS_KEY, 0):
        flags: int = QGROUP_STATUS.unpack_from(content)[2]
        return flags
    return 0


def _quota_items(fd: int, item_type: int, identity: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield (qgroup id, content) of the quota tree's items of one type; none when there is no such tree."""
    offsets = (0, btrfs_items.GREATEST) if identity is None else (identity, identity)
    try:
        for item in btrfs_items.search(fd, _QUOTA_TREE, item_type, objectids=(0, 0), offsets=offsets):
            yield item.offset, item.content
    except FileNotFoundError:
        return
