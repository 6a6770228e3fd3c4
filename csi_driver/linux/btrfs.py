"""btrfs: subvolumes, qgroups and the space that is left for data; it knows no volume and no pool.

Every descriptor may be any file or directory of the filesystem unless it says otherwise, and stays the
caller's. Quotas are full qgroups: simple quotas set an incompatible feature bit, and an older kernel then
refuses the mount.

Life of a qgroup: it is made with its subvolume (0/<subvolume id>). Deleting the subvolume only unlinks it; the
space comes back when the kernel's cleaner is through (it wakes with each commit), and then Linux 6.18 removes the
qgroup too. 6.1 leaves it for ever: `stale_qgroups` finds these, `destroy_qgroup` removes them.

Source: include/uapi/linux/btrfs.h, include/uapi/linux/btrfs_tree.h,
fs/btrfs/{ioctl,qgroup,space-info,volumes}.c.
"""

from __future__ import annotations

import errno
import os
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from csi_driver.linux import statfs
from csi_driver.linux.attributes import InodeFlag, get_flags, set_flags
from csi_driver.linux.ioctl import exchange, io, ior, iow, iowr

_MAGIC: Final = 0x94
BTRFS_SUPER_MAGIC: Final = 0x9123683E  # include/uapi/linux/magic.h
_FIRST_FREE_OBJECTID: Final = 256

# struct btrfs_ioctl_vol_args: fd, name
VOL_ARGS: Final = struct.Struct("=q4088s")
BTRFS_IOC_SUBVOL_CREATE: Final = iow(_MAGIC, 14, VOL_ARGS.size)
BTRFS_IOC_SNAP_DESTROY: Final = iow(_MAGIC, 15, VOL_ARGS.size)
_NAME_BYTES: Final = 255

BTRFS_IOC_SUBVOL_GETFLAGS: Final = ior(_MAGIC, 25, 8)
BTRFS_IOC_SUBVOL_SETFLAGS: Final = iow(_MAGIC, 26, 8)
SUBVOL_RDONLY: Final = 1 << 1

# struct btrfs_ioctl_ino_lookup_args: treeid, objectid, name
INO_LOOKUP: Final = struct.Struct("=QQ4080s")
BTRFS_IOC_INO_LOOKUP: Final = iowr(_MAGIC, 18, INO_LOOKUP.size)

# struct btrfs_ioctl_quota_ctl_args: cmd, status
QUOTA_CTL: Final = struct.Struct("=QQ")
BTRFS_IOC_SYNC: Final = io(_MAGIC, 8)
BTRFS_IOC_QUOTA_CTL: Final = iowr(_MAGIC, 40, QUOTA_CTL.size)
_QUOTA_CTL_ENABLE: Final = 1
_QUOTA_RESCAN_BYTES: Final = 64  # struct btrfs_ioctl_quota_rescan_args, all zero
BTRFS_IOC_QUOTA_RESCAN: Final = iow(_MAGIC, 44, _QUOTA_RESCAN_BYTES)
BTRFS_IOC_QUOTA_RESCAN_WAIT: Final = io(_MAGIC, 46)

# struct btrfs_ioctl_qgroup_create_args: create, qgroupid
QGROUP_CREATE: Final = struct.Struct("=QQ")
BTRFS_IOC_QGROUP_CREATE: Final = iow(_MAGIC, 42, QGROUP_CREATE.size)

# struct btrfs_ioctl_qgroup_limit_args: qgroupid, flags, max_rfer, max_excl, rsv_rfer, rsv_excl
QGROUP_LIMIT: Final = struct.Struct("=QQQQQQ")
BTRFS_IOC_QGROUP_LIMIT: Final = ior(_MAGIC, 43, QGROUP_LIMIT.size)
_LIMIT_MAX_REFERENCED: Final = 1
_NO_LIMIT: Final = (1 << 64) - 1  # btrfs_limit_qgroup, CLEAR_VALUE; 0 would be a limit of no bytes

# struct btrfs_ioctl_search_args_v2: the key (tree_id; objectid, offset, transid: each min, max; type: min,
# max; nr_items, unused), then buf_size, and the buffer itself behind it.
SEARCH_KEY: Final = struct.Struct("=QQQQQQQIIII32x")
SEARCH_ARGS: Final = struct.Struct("=104sQ")
SEARCH_HEADER: Final = struct.Struct("=QQQII")  # transid, objectid, offset, type, len
BTRFS_IOC_TREE_SEARCH_V2: Final = iowr(_MAGIC, 17, SEARCH_ARGS.size)
_SEARCH_BYTES: Final = 16 << 10
ROOT_TREE: Final = 1
_QUOTA_TREE: Final = 8
_EXTENT_DATA_KEY: Final = 108
_ROOT_ITEM_KEY: Final = 132
_QGROUP_STATUS_KEY: Final = 240
_QGROUP_INFO_KEY: Final = 242
_QGROUP_LIMIT_KEY: Final = 244
_GREATEST: Final = (1 << 64) - 1
_FILE_EXTENT_BYTES: Final = 53  # struct btrfs_file_extent_item of what is not inside metadata

QGROUP_STATUS: Final = struct.Struct("<QQQQ")  # version, generation, flags, rescan
_STATUS_ON: Final = 1
_STATUS_RESCAN: Final = 1 << 1
_STATUS_INCONSISTENT: Final = 1 << 2
_STATUS_SIMPLE: Final = 1 << 3
QGROUP_INFO: Final = struct.Struct("<QQQQQ")  # generation, rfer, rfer_cmpr, excl, excl_cmpr
QGROUP_LIMIT_ITEM: Final = struct.Struct("<QQQQQ")  # flags, max_rfer, max_excl, rsv_rfer, rsv_excl

SPACE_ARGS: Final = struct.Struct("=QQ")  # space_slots, total_spaces
SPACE_INFO: Final = struct.Struct("=QQQ")  # flags, total_bytes, used_bytes
BTRFS_IOC_SPACE_INFO: Final = iowr(_MAGIC, 20, SPACE_ARGS.size)
# max_id, num_devices, fsid, nodesize, sectorsize, clone_alignment, csum_type, csum_size, flags, generation, …
FS_INFO: Final = struct.Struct("=QQ16sIIIHHQQ960x")
BTRFS_IOC_FS_INFO: Final = ior(_MAGIC, 31, FS_INFO.size)
_INFO_GENERATION: Final = 1 << 1
DEV_INFO: Final = struct.Struct("=Q16sQQ4056x")  # devid, uuid, bytes_used, total_bytes, …
BTRFS_IOC_DEV_INFO: Final = iowr(_MAGIC, 30, DEV_INFO.size)

_DATA: Final = 1 << 0
_METADATA: Final = 1 << 2
_RAID0: Final = 1 << 3
_DUP: Final = 1 << 5
_PROFILES: Final = 0x7F8
_GLOBAL_RESERVE: Final = 1 << 49
# How many devices hold a copy of each byte. What is not here (RAID5, RAID6, the future) is taken for four
# copies.
_COPIES: Final = {0: 1, _RAID0: 1, _DUP: 2, 1 << 4: 2, 1 << 6: 2, 1 << 9: 3, 1 << 10: 4}
_MOST_COPIES: Final = 4

_MIB: Final = 1 << 20
# The first MiB of a device is reserved, and stripes are cut to 64 KiB.
_DEVICE_WASTE: Final = 2 * _MIB
# Copies of the superblock at 64 MiB and 256 GiB take a stripe each out of a block group.
_SUPERBLOCK_WASTE: Final = 128 << 10

# What data makes of metadata at worst, one extent for every 4 KiB of a NOCOW file: measured 4.3 %. 1/22 of
# the data.
_METADATA_DIVISOR: Final = 22
# What one transaction copies on write before it can give the originals back.
_TRANSACTION_BYTES: Final = 16 * _MIB
# btrfs_calc_chunk_size and init_alloc_chunk_ctl_policy_regular: a metadata chunk has at most 256 MiB, 1 GiB
# on a filesystem beyond 50 GiB, and never more than a tenth of it, in steps of 16 MiB.
_CHUNK_BYTES: Final = 256 * _MIB
_LARGE_CHUNK_BYTES: Final = 1024 * _MIB
_LARGE_FILESYSTEM: Final = 50 * 1024 * _MIB
_CHUNK_STEP: Final = 16 * _MIB


@dataclass(frozen=True, slots=True)
class QgroupUsage:
    """Bytes that a subvolume refers to, metadata included, those of it alone, and its limit (0: none)."""

    referenced: int
    exclusive: int
    limit: int


@dataclass(frozen=True, slots=True)
class SpaceInfo:
    """Block groups of one kind and profile (flags: BTRFS_BLOCK_GROUP_*), the bytes they take and hold."""

    flags: int
    total: int
    used: int


@dataclass(frozen=True, slots=True)
class Device:
    """One device of a filesystem: its size, and how much of it belongs to block groups."""

    device_id: int
    size: int
    allocated: int


def is_btrfs(fd: int) -> bool:
    """Tell whether the descriptor is on btrfs.

    Raises:
        OSError: EBADF, ENOSYS.
    """
    return statfs.magic(fd) & 0xFFFFFFFF == BTRFS_SUPER_MAGIC


def create_subvolume(parent_fd: int, name: str) -> None:
    """Make an empty subvolume, mode 0755 less the umask, in the directory `parent_fd`.

    Not durable until the filesystem commits: fsync the parent or syncfs.

    Raises:
        OSError: EEXIST, ENOTTY where this is no btrfs, ENOSPC.
    """
    exchange(parent_fd, BTRFS_IOC_SUBVOL_CREATE, _vol_args(name))


def delete_subvolume(parent_fd: int, name: str) -> None:
    """Unlink a subvolume with all it holds; its space comes back later, when the cleaner is through.

    Raises:
        OSError: ENOENT; EINVAL or ENOTDIR when it is no subvolume; ENOTEMPTY when it holds another subvolume;
            EBUSY when it is a mount point; EPERM when it is the default subvolume.
    """
    exchange(parent_fd, BTRFS_IOC_SNAP_DESTROY, _vol_args(name))


def subvolume_id(fd: int) -> int:
    """Return the id of the subvolume that a file or directory lies in; ids are never used again.

    Raises:
        OSError: ENOTTY where this is no btrfs.
    """
    structure = bytearray(INO_LOOKUP.pack(0, _FIRST_FREE_OBJECTID, b""))
    exchange(fd, BTRFS_IOC_INO_LOOKUP, structure)
    identity: int = INO_LOOKUP.unpack(structure)[0]
    return identity


def is_subvolume(fd: int) -> bool:
    """Tell whether the descriptor is the top directory of a subvolume (or of the filesystem)."""
    return os.fstat(fd).st_ino == _FIRST_FREE_OBJECTID and is_btrfs(fd)


def ensure_writable(fd: int) -> None:
    """Make the subvolume whose top directory `fd` is writable, if it is a read-only snapshot.

    Raises:
        OSError: EINVAL when it is no top directory, EPERM while `btrfs send` reads it.
    """
    structure = bytearray(8)
    exchange(fd, BTRFS_IOC_SUBVOL_GETFLAGS, structure)
    flags = int.from_bytes(structure, "little")
    if flags & SUBVOL_RDONLY:
        exchange(fd, BTRFS_IOC_SUBVOL_SETFLAGS, bytearray((flags & ~SUBVOL_RDONLY).to_bytes(8, "little")))


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
    roots = {item.objectid for item in search(fd, ROOT_TREE, _ROOT_ITEM_KEY, objectids=(256, _GREATEST))}
    return [identity for identity in qgroups if identity not in roots]


def set_nocow(fd: int) -> None:
    """Let an empty file be written in place (`chattr +C`): preallocated space then stays enough for rewrites.

    Raises:
        OSError: EINVAL when the file is not empty (the kernel would ignore it) or the mount forbids it.
    """
    if os.fstat(fd).st_size:
        raise OSError(errno.EINVAL, "only an empty file can become NOCOW")
    set_flags(fd, get_flags(fd) | InodeFlag.NOCOW)
    if not get_flags(fd) & InodeFlag.NOCOW:
        raise OSError(errno.EINVAL, "the filesystem ignored NOCOW")


def space_infos(fd: int) -> list[SpaceInfo]:
    """Return the sizes and contents of all kinds of block groups; the global reserve is one of them.

    Raises:
        OSError: ENOTTY where this is no btrfs.
    """
    count = SPACE_ARGS.unpack(_space_answer(fd, 0))[1]
    answer = _space_answer(fd, count)
    given = min(SPACE_ARGS.unpack_from(answer)[1], count)
    items = memoryview(answer)[SPACE_ARGS.size : SPACE_ARGS.size + given * SPACE_INFO.size]
    return [SpaceInfo(*item) for item in SPACE_INFO.iter_unpack(items)]


def commit(fd: int) -> None:
    """Commit the running transaction of the filesystem, and wait: the space of what was deleted is free afterwards.

    Raises:
        OSError: EROFS, EIO.
    """
    exchange(fd, BTRFS_IOC_SYNC, bytearray(8))


def filesystem_uuid(fd: int) -> str:
    """Return the UUID of the filesystem, the same for all its subvolumes, whose st_dev differ.

    Raises:
        OSError: ENOTTY where this is no btrfs.
    """
    return str(uuid.UUID(bytes=_filesystem_info(fd)[2]))


def generation(fd: int) -> int:
    """Return the number of the filesystem's youngest transaction, which may still be running.

    Raises:
        OSError: ENOTTY where this is no btrfs; ENOSYS where the kernel does not tell (before Linux 5.10).
    """
    structure = bytearray(FS_INFO.pack(0, 0, b"", 0, 0, 0, 0, 0, _INFO_GENERATION, 0))
    exchange(fd, BTRFS_IOC_FS_INFO, structure)
    *_, flags, number = FS_INFO.unpack(structure)
    if not flags & _INFO_GENERATION:
        raise OSError(errno.ENOSYS, "the kernel does not tell the generation of a btrfs; it needs Linux 5.10")
    return int(number)


def devices(fd: int) -> list[Device]:
    """Return the present devices of a filesystem.

    Raises:
        OSError: ENOTTY where this is no btrfs.
    """
    greatest, *_ = _filesystem_info(fd)
    return [device for device_id in range(1, greatest + 1) if (device := _device(fd, device_id)) is not None]


def available_data_bytes(fd: int) -> int:
    """Return how many bytes of file data can still be allocated, to the safe side; at least 0.

    Free room in data block groups, and what new ones can take from unallocated device space after metadata
    has had what this much data will make it need, by the factor of the data profile. NOCOW files of this
    total size can be allocated in full. Bytes freed and not committed yet count as available (an allocation
    that needs them commits).

    Raises:
        OSError: ENOTTY where this is no btrfs.
    """
    present = devices(fd)
    return estimate_data_bytes(space_infos(fd), present, _read_only_bytes(fd, len(present)))


def estimate_data_bytes(spaces: list[SpaceInfo], devices: list[Device], read_only_bytes: int = 0) -> int:
    """Return what available_data_bytes says of these figures; nobody can write to `read_only_bytes`."""
    data = [space for space in spaces if space.flags & _DATA]
    metadata = [space for space in spaces if space.flags & _METADATA]
    reserve = sum(space.total for space in spaces if space.flags & _GLOBAL_RESERVE) + _TRANSACTION_BYTES
    free = sum(space.total - space.used for space in data) - read_only_bytes
    room = [max(0, device.size - device.allocated - _DEVICE_WASTE) for device in devices]
    at_most = max(0, free + _usable(room, _strictest(data)))
    if not at_most:
        return 0
    growth = reserve + at_most // _METADATA_DIVISOR
    if any(space.flags & _METADATA for space in data):  # mixed: metadata lives off the same groups
        return max(0, at_most - growth)
    chunk = _metadata_chunk(sum(device.size for device in devices))
    # should_alloc_chunk: metadata gets a new chunk when the old ones are full to 80 %.
    wanted = (sum(space.used for space in metadata) + growth) * 5 // 4
    missing = wanted - sum(space.total for space in metadata)
    # One chunk at least: what a transaction pins counts as full, so the kernel takes one long before it needs
    # it.
    chunks = max(1, -(-missing // chunk))
    room = _after_metadata(room, chunks * chunk, _strictest(metadata))
    return max(0, free + _usable(room, _strictest(data)))


def _usable(room: list[int], profile: int) -> int:
    """How many bytes block groups of this profile can take from devices with so much room."""
    copies = _COPIES.get(profile, _MOST_COPIES)
    if profile in {0, _DUP}:
        return sum(device // copies for device in room)
    if profile == _RAID0:  # kernels before 5.15 stripe over two devices at least
        copies, factor = 2, 2
    else:
        factor = 1
    falling = sorted(room, reverse=True) + [0] * copies
    # Each byte lies on `copies` different devices: the largest k devices cannot outweigh the rest.
    return factor * min(sum(falling[skipped:]) // (copies - skipped) for skipped in range(copies))


def _after_metadata(room: list[int], size: int, profile: int) -> list[int]:
    """Take `size` bytes of metadata in this profile from the devices with most room, as the kernel does."""
    copies = _COPIES.get(profile, _MOST_COPIES)
    falling = sorted(room, reverse=True)
    shares = [size * copies] if profile in {0, _DUP} else [size] * max(copies, 2)
    shares += [0] * len(falling)
    return [max(0, device - share) for device, share in zip(falling, shares, strict=False)]


def _strictest(spaces: list[SpaceInfo]) -> int:
    """The profile with most copies; during a conversion there are two."""
    profiles = [space.flags & _PROFILES for space in spaces] or [0]
    return max(profiles, key=lambda profile: _COPIES.get(profile, _MOST_COPIES))


def _metadata_chunk(size: int) -> int:
    greatest = _LARGE_CHUNK_BYTES if size > _LARGE_FILESYSTEM else _CHUNK_BYTES
    tenth = -(-(size // 10) // _CHUNK_STEP) * _CHUNK_STEP
    return min(greatest, tenth)


def _read_only_bytes(fd: int, device_count: int) -> int:
    """Bytes of data groups that are read-only (scrub, a failed balance, superblock copies); no ioctl says."""
    filesystem = uuid.UUID(bytes=_filesystem_info(fd)[2])
    total = 0
    for kind in ("data", "mixed"):
        try:
            where = f"/sys/fs/btrfs/{filesystem}/allocation/{kind}/bytes_readonly"
            with open(where, encoding="ascii") as file:
                total += int(file.read())
        except OSError:
            continue  # sysfs is not mounted here, or there is no group of this kind
    return max(total, _SUPERBLOCK_WASTE * device_count)


def _filesystem_info(fd: int) -> tuple[int, int, bytes]:
    structure = bytearray(FS_INFO.size)
    exchange(fd, BTRFS_IOC_FS_INFO, structure)
    greatest, count, identity, *_ = FS_INFO.unpack(structure)
    return greatest, count, identity


def _device(fd: int, device_id: int) -> Device | None:
    structure = bytearray(DEV_INFO.pack(device_id, b"", 0, 0))
    try:
        exchange(fd, BTRFS_IOC_DEV_INFO, structure)
    except OSError as error:
        if error.errno == errno.ENODEV:  # ids of removed devices leave gaps
            return None
        raise
    identity, _, allocated, size = DEV_INFO.unpack(structure)
    return Device(identity, size, allocated)


def _space_answer(fd: int, slots: int) -> bytearray:
    structure = bytearray(SPACE_ARGS.size + slots * SPACE_INFO.size)
    SPACE_ARGS.pack_into(structure, 0, slots, 0)
    exchange(fd, BTRFS_IOC_SPACE_INFO, structure)
    return structure


def _quota_status(fd: int) -> int:
    """Return the flags of the quota tree, 0 when there is none."""
    for _, content in _quota_items(fd, _QGROUP_STATUS_KEY, 0):
        flags: int = QGROUP_STATUS.unpack_from(content)[2]
        return flags
    return 0


def _quota_items(fd: int, item_type: int, identity: int | None = None) -> Iterator[tuple[int, bytes]]:
    """Yield (qgroup id, content) of the quota tree's items of one type; none when there is no such tree."""
    offsets = (0, _GREATEST) if identity is None else (identity, identity)
    try:
        for item in search(fd, _QUOTA_TREE, item_type, objectids=(0, 0), offsets=offsets):
            yield item.offset, item.content
    except FileNotFoundError:
        return


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
    offsets: tuple[int, int] = (0, _GREATEST),
) -> Iterator[Item]:
    """Yield a tree's items of one type between two keys (which the kernel compares as whole keys)."""
    objectid, offset, kind = objectids[0], offsets[0], item_type
    while True:
        key = (tree, objectid, objectids[1], offset, offsets[1], 0, _GREATEST, kind, item_type, 1 << 20)
        last = None
        for header, content in _search_once(fd, SEARCH_KEY.pack(*key, 0)):
            last = header
            if header[2] == item_type:
                yield Item(header[0], header[1], content)
        if last is None:
            return
        objectid, offset, kind = last
        if offset < _GREATEST:
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
    while count < at_most and offset <= _GREATEST:
        key = (0, inode, inode, offset, _GREATEST, 0, _GREATEST, _EXTENT_DATA_KEY, _EXTENT_DATA_KEY, 1 << 20)
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


def _vol_args(name: str) -> bytearray:
    encoded = os.fsencode(name)
    if not encoded or b"/" in encoded or encoded in {b".", b".."} or len(encoded) > _NAME_BYTES:
        raise OSError(errno.EINVAL, f"{name!r} is no name of a directory entry")
    return bytearray(VOL_ARGS.pack(0, encoded))
