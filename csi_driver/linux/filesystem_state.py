"""What the kernel itself has found wrong with a mounted filesystem; it knows a line of mountinfo and no volume.

Read from mountinfo and sysfs, which answer from memory, whatever the filesystem does; only XFS, which shows its
shutdown nowhere there, is asked by one statx(2), which may hang with its disk. What else XFS knows: `xfs_health`.

Source: Documentation/ABI/testing/sysfs-fs-ext4, fs/ext4/super.c (_ext4_show_options, ext4_seq_options_show),
fs/btrfs/sysfs.c (btrfs_devinfo_error_stats_show), fs/xfs/xfs_iops.c (xfs_vn_getattr).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from csi_driver.linux import ext4_superblock, mountinfo

# What ext4 (Linux 6.15) has become for good, at an error under errors=remount-ro; statvfs(3) does not tell it.
_EMERGENCY: Final = "emergency_ro"
_MOST_OPTIONS_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class FilesystemState:
    """One mounted filesystem. `error_counts`: the counters that are not zero, by name.

    `first_error`: where and when the first of them was met, as far as the kernel remembers (ext4).
    """

    is_shut_down: bool = False
    is_read_only: bool = False
    error_counts: Mapping[str, int] = field(default_factory=dict)
    first_error: str = ""


def state_of(entry: mountinfo.MountEntry) -> FilesystemState:
    """The state of the filesystem behind a mount. `is_read_only`: its superblock is, whoever asked for it.

    Raises:
        OSError: XFS only: the mount point cannot be reached.
    """
    options = set(entry.super_options)
    shut_down = "shutdown" in options or (entry.fs_type == "xfs" and _is_dead(entry.target))
    counts = error_counts(entry.fs_type, entry.source)
    first = _first_error(entry.source) if counts and entry.fs_type == "ext4" else ""
    return FilesystemState(shut_down, bool(options & {"ro", _EMERGENCY}), counts, first)


def is_emergency_ext4(device: int) -> bool:
    """Whether the mounted ext4 of this device (st_dev) takes no more writes after an error, though it is mounted `rw`.

    Some microseconds, from memory, however much is mounted. False where it cannot be told.
    """
    try:
        fd = os.open(f"/proc/fs/ext4/{_device_name(device)}/options", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return _EMERGENCY.encode() in os.read(fd, _MOST_OPTIONS_BYTES).split(b"\n")
    except OSError:
        # Unmounted meanwhile.
        return False
    finally:
        os.close(fd)


def _device_name(device: int) -> str:
    """As the kernel names the block device now; its number is another's after it has gone."""
    return os.path.basename(os.readlink(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}"))


def error_counts(fs_type: str, source: str) -> dict[str, int]:
    """The errors that the kernel has counted, by name; nothing where it counts none.

    Of ext4 since the last e2fsck (in its superblock), of btrfs since the last reset of its device statistics.
    """
    name = os.path.basename(os.path.realpath(source))
    if fs_type == "ext4":
        count = _number(f"/sys/fs/ext4/{name}/errors_count")
        return {"errors_count": count} if count else {}
    return _btrfs_counts(name) if fs_type == "btrfs" else {}


def _first_error(source: str) -> str:
    directory = f"/sys/fs/ext4/{os.path.basename(os.path.realpath(source))}"
    function = _text(f"{directory}/first_error_func").strip()
    return ext4_superblock.told_error(function, _number(f"{directory}/first_error_time"))


def _btrfs_counts(device_name: str) -> dict[str, int]:
    counts: dict[str, int] = {}
    uuid = _btrfs_uuid(device_name)
    for device_id in _names(f"/sys/fs/btrfs/{uuid}/devinfo") if uuid else ():
        for name, _, value in _words(f"/sys/fs/btrfs/{uuid}/devinfo/{device_id}/error_stats"):
            counts[name] = counts.get(name, 0) + int(value)
    return {name: count for name, count in counts.items() if count}


def _btrfs_uuid(device_name: str) -> str:
    """The UUID under which sysfs has the mounted btrfs on a device; empty when it is mounted no more."""
    uuid = _searched_uuid(device_name)
    if not _has_device(uuid, device_name):
        _searched_uuid.cache_clear()
        uuid = _searched_uuid(device_name)
    return uuid


@functools.lru_cache(maxsize=1024)
def _searched_uuid(device_name: str) -> str:
    """The same, as of the first look: where a thousand are mounted, a search for each would take a second."""
    return next((uuid for uuid in _names("/sys/fs/btrfs") if _has_device(uuid, device_name)), "")


def _has_device(uuid: str, device_name: str) -> bool:
    return bool(uuid) and os.path.exists(f"/sys/fs/btrfs/{uuid}/devices/{device_name}")


def _words(path: str) -> list[tuple[str, str, str]]:
    lines = [line.partition(" ") for line in _text(path).splitlines()]
    return [parts for parts in lines if parts[2].isdigit()]


def _number(path: str) -> int:
    text = _text(path).strip()
    return int(text) if text.isdigit() else 0


def _text(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read()
    except OSError:
        # Unmounted meanwhile, or a kernel that has no such file.
        return ""


def _names(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _is_dead(target: str) -> bool:
    try:
        mountinfo.observe(target)
    except OSError as error:
        if mountinfo.is_dead_mount(error):
            return True
        raise
    return False
