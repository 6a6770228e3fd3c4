"""A filesystem in a file, made: whole or not at all, with the pool in it; it knows no volume.

It is built under another name, and renamed once the pool's identity is in it. So a file of that other name is an
attempt that was cut short, and is thrown away; a finished file without its record is never thrown away.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from typing import Final

from csi_driver.backends import backing_file
from csi_driver.errors import InsufficientCapacity, InvalidField, PoolRefused
from csi_driver.faults import crash_point
from csi_driver.linux import allocation, btrfs, filesystem, loop, sync
from csi_driver.store import backing, durable, pool
from csi_driver.store.backing import BackingRecord

_MKFS_SECONDS: Final = 300.0
# Every kernel that can do what we ask of it elsewhere knows it; an xfsprogs before 5.1 does not make it by itself.
_MKFS_OPTIONS: Final = ("-m", "reflink=1")
_EXPECTED: Final = frozenset({"lost+found", backing.BUILDING, f"{backing.RECORD}.new", backing.MOUNT_POINT})
_RELEASE_SECONDS: Final = 10.0


def ensure(dir_fd: int, directory: str, driver_name: str, size_bytes: int) -> BackingRecord:
    """The directory behind `dir_fd`, which is locked, holds a pool in a file; made with this size if it did not.

    Idempotent; the size of one that is there is not changed.

    Raises: InvalidField; PoolRefused when the directory holds anything else, or cannot keep the promise of a file;
        InsufficientCapacity; OSError.
    """
    record = backing.read(dir_fd, directory) or _found(dir_fd, directory, driver_name)
    if record is None:
        record = _made(dir_fd, directory, driver_name, backing_file.aligned(size_bytes))
    if record.driver_name != driver_name:
        raise PoolRefused(directory, f"it belongs to the driver {record.driver_name}")
    return record


def _found(dir_fd: int, directory: str, driver_name: str) -> BackingRecord | None:
    """The record of a finished file that lacks it, written now."""
    try:
        image_fd = os.open(backing.IMAGE, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError:
        return None
    try:
        found = filesystem.identify(image_fd)
        if found is None or found[0] != backing_file.FILESYSTEM:
            raise PoolRefused(directory, f"{backing.IMAGE} holds no {backing_file.FILESYSTEM}; nothing is done to it")
        size = os.fstat(image_fd).st_size
        with contextlib.closing(_Root(image_fd, directory)) as root:
            identity = pool.identity(root.fd, directory)
        if identity is None:
            raise PoolRefused(directory, f"{backing.IMAGE} holds no pool; nothing is done to it")
    finally:
        os.close(image_fd)
    record = BackingRecord(found[1], identity.driver_name, size, size)
    if identity.driver_name == driver_name:
        _record(dir_fd, record)
    return record


def _made(dir_fd: int, directory: str, driver_name: str, size_bytes: int) -> BackingRecord:
    least = filesystem.FILESYSTEMS[backing_file.FILESYSTEM].minimum_bytes
    if size_bytes < least:
        raise InvalidField("backing-file", size_bytes, f"at least {least} bytes")
    _require_fit(dir_fd, directory)
    durable.unlink_if_there(dir_fd, backing.BUILDING)
    backing_file.require_room(dir_fd, directory, size_bytes)
    image_fd = os.open(
        backing.BUILDING, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=dir_fd
    )
    try:
        filesystem_uuid = _build(image_fd, dir_fd, directory, driver_name, size_bytes)
    except BaseException:
        durable.unlink_if_there(dir_fd, backing.BUILDING)
        raise
    finally:
        os.close(image_fd)
    os.rename(backing.BUILDING, backing.IMAGE, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    os.fsync(dir_fd)
    crash_point("backing.placed")
    record = BackingRecord(filesystem_uuid, driver_name, size_bytes, size_bytes)
    _record(dir_fd, record)
    return record


def _record(dir_fd: int, record: BackingRecord) -> None:
    durable.ensure_directory(dir_fd, backing.MOUNT_POINT)
    backing.write(dir_fd, record)
    crash_point("backing.recorded")


def _require_fit(dir_fd: int, directory: str) -> None:
    strangers = [name for name in os.listdir(dir_fd) if name not in _EXPECTED]
    with contextlib.suppress(FileNotFoundError):
        strangers += [f"{backing.MOUNT_POINT}/{name}" for name in os.listdir(f"{directory}/{backing.MOUNT_POINT}")]
    if strangers:
        raise PoolRefused(directory, f"it is not empty ({strangers[0]!r}); a new pool needs an empty directory")
    if btrfs.is_btrfs(dir_fd):
        raise PoolRefused(directory, "btrfs shares blocks by itself, and a file on it keeps no blocks: use it directly")


def _build(image_fd: int, dir_fd: int, directory: str, driver_name: str, size_bytes: int) -> str:
    try:
        allocation.allocate(image_fd, 0, size_bytes)
    except OSError as cause:
        raise InsufficientCapacity(directory, size_bytes, backing_file.room_bytes(dir_fd)) from cause
    os.ftruncate(image_fd, size_bytes)
    crash_point("backing.allocated")
    made = filesystem.make(
        filesystem.FILESYSTEMS[backing_file.FILESYSTEM],
        f"{directory}/{backing.BUILDING}",
        uuid=str(uuid.uuid4()),
        extra=_MKFS_OPTIONS,
        timeout=_MKFS_SECONDS,
    )
    crash_point("backing.formatted")
    with contextlib.closing(_Root(image_fd, directory)) as root:
        os.fchmod(root.fd, 0o700)
        pool.initialise(root.fd, directory, driver_name)
        sync.sync_filesystem(root.fd)
    os.fsync(image_fd)
    crash_point("backing.built")
    return made


class _Root:
    """The root of the filesystem in a file, mounted where nobody sees it until `close`."""

    def __init__(self, image_fd: int, directory: str) -> None:
        self._image = os.fstat(image_fd)
        with backing_file.attached(image_fd, directory) as device:
            self._number = device.number
            self.fd = backing_file.mounted_unseen(device)

    def close(self) -> None:
        os.close(self.fd)
        # So that who looks next finds no device on its way out.
        loop.is_gone(
            self._number,
            device=self._image.st_dev,
            inode=self._image.st_ino,
            patience_seconds=_RELEASE_SECONDS,
        )
