"""What lies in the trash as bytes: measured, and exchanged with what is live; knows no record and no retention."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator

from csi_driver.backends.attachments import IMAGE
from csi_driver.backends.directory import DATA
from csi_driver.errors import UndoFailed
from csi_driver.faults import crash_point
from csi_driver.linux import btrfs, btrfs_quota, extents, rename
from csi_driver.store import durable
from csi_driver.store.pool import PoolDirectory

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def exchange(pool: PoolDirectory, volume_id: str, trash_name: str) -> None:
    """A live volume's directory and one in the trash change places, at one instant and durably.

    Raises: OSError: EINVAL where the pool's filesystem cannot.
    """
    rename.exchange(pool.volumes_fd, volume_id, pool.trash_fd, trash_name)
    crash_point("exchange.renamed")
    try:
        os.fsync(pool.volumes_fd)
        os.fsync(pool.trash_fd)
    except OSError as cause:
        try:
            rename.exchange(pool.volumes_fd, volume_id, pool.trash_fd, trash_name)
        except OSError:
            raise UndoFailed(
                f"{volume_id}: exchanged, neither durably nor back: {cause}; restart the driver"
            ) from cause
        raise


def own_bytes(room_fd: int, name: str) -> int:
    """What is given back when this object goes: allocated to it and to no other file.

    A look at every file of a directory, but for a subvolume that is counted. Raises: OSError.
    """
    object_fd = durable.open_directory(name, dir_fd=room_fd)
    try:
        try:
            image_fd = os.open(IMAGE, _READ, dir_fd=object_fd)
        except FileNotFoundError:
            return _directory_bytes(object_fd)
        try:
            return extents.allocated_bytes(image_fd, sync=True).exclusive
        finally:
            os.close(image_fd)
    finally:
        os.close(object_fd)


def _directory_bytes(object_fd: int) -> int:
    try:
        data_fd = durable.open_directory(DATA, dir_fd=object_fd)
    except FileNotFoundError:
        return 0
    try:
        if btrfs.is_btrfs(data_fd) and btrfs.is_subvolume(data_fd) and btrfs_quota.quota_enabled(data_fd):
            return btrfs_quota.qgroup_usage(data_fd, btrfs.subvolume_id(data_fd)).exclusive
        return sum(_exclusive(*place) for place in _files(data_fd))
    finally:
        os.close(data_fd)


def _files(data_fd: int) -> Iterator[tuple[str, int]]:
    """Every regular file once, as (name, descriptor of its directory)."""
    seen: set[int] = set()
    for _, _, names, directory_fd in os.fwalk(dir_fd=data_fd, follow_symlinks=False):
        for name in names:
            found = os.stat(name, dir_fd=directory_fd, follow_symlinks=False)
            if stat.S_ISREG(found.st_mode) and found.st_blocks and found.st_ino not in seen:
                if found.st_nlink > 1:
                    seen.add(found.st_ino)
                yield name, directory_fd


def _exclusive(name: str, directory_fd: int) -> int:
    file_fd = os.open(name, _READ, dir_fd=directory_fd)
    try:
        return extents.allocated_bytes(file_fd, sync=True).exclusive
    finally:
        os.close(file_fd)
