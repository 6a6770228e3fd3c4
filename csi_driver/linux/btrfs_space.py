"""The space that a btrfs has left for data, to the safe side; it knows no pool.

Every descriptor may be any file or directory of the filesystem, and stays the caller's.

Source: include/uapi/linux/btrfs.h, fs/btrfs/{ioctl,space-info,volumes}.c.
"""

from __future__ import annotations

import errno
import struct
import uuid
from dataclasses import dataclass
from typing import Final

from csi_driver.linux import btrfs
from csi_driver.linux.ioctl import exchange, iowr

SPACE_ARGS: Final = struct.Struct("=QQ")  # space_slots, total_spaces
SPACE_INFO: Final = struct.Struct("=QQQ")  # flags, total_bytes, used_bytes
BTRFS_IOC_SPACE_INFO: Final = iowr(btrfs.MAGIC, 20, SPACE_ARGS.size)
DEV_INFO: Final = struct.Struct("=Q16sQQ4056x")  # devid, uuid, bytes_used, total_bytes, …
BTRFS_IOC_DEV_INFO: Final = iowr(btrfs.MAGIC, 30, DEV_INFO.size)
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


def devices(fd: int) -> list[Device]:
    """Return the present devices of a filesystem.

    Raises:
        OSError: ENOTTY where this is no btrfs.
    """
    greatest, *_ = btrfs.filesystem_info(fd)
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
    filesystem = uuid.UUID(bytes=btrfs.filesystem_info(fd)[2])
    total = 0
    for kind in ("data", "mixed"):
        try:
            where = f"/sys/fs/btrfs/{filesystem}/allocation/{kind}/bytes_readonly"
            with open(where, encoding="ascii") as file:
                total += int(file.read())
        except OSError:
            continue  # sysfs is not mounted here, or there is no group of this kind
    return max(total, _SUPERBLOCK_WASTE * device_count)


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
