"""A filesystem in a file, brought into service: what makes a directory on ext4 a pool that shares blocks.

Knows neither volume nor pool. Two loop devices over one file would be two filesystems that destroy each other, so
whoever has anything to do with the file holds a lock on its directory, and finds the device that is there already by
the file's inode: that of a driver before us, whose mount may have ended with its container while volumes, attached or
bind-mounted, kept the filesystem alive.

All blocks of the file are allocated, so that the pool can promise what its filesystem says it has. It grows by intent
(the record), effect (blocks behind the end of the file; its size; the device; the filesystem) and record. The file is
shown larger only once all blocks are there, and only then can the filesystem use them.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

from csi_driver.errors import InsufficientCapacity, InvalidField, PoolRefused
from csi_driver.faults import crash_point
from csi_driver.linux import allocation, filesystem, growth, lock, loop, mount, mountinfo, sync
from csi_driver.store import backing, durable
from csi_driver.store.backing import BackingRecord

_log = logging.getLogger("hostvol.backing")
BLOCK_BYTES: Final = 4096
FILESYSTEM: Final = "xfs"
# A kernel without project quotas refuses the option.
_MOUNT_OPTIONS: Final = (("prjquota",), ())
_RESERVE_BYTES: Final = 64 << 20
_RESERVE_PART: Final = 50
_ATTEMPTS: Final = 50
_PAUSE_SECONDS: Final = 0.02


class BackingFile:
    """Owner of the lock on one directory with a filesystem in a file."""

    def __init__(self, dir_fd: int, directory: str, record: BackingRecord) -> None:
        """`dir_fd` is locked, and closed by `close`."""
        self.directory = directory
        self._dir_fd = dir_fd
        self._record = record
        self._busy = threading.Lock()

    @classmethod
    def open(cls, directory: str) -> BackingFile | None:
        """The backing file in the directory, for this process alone; None when there is none.

        Raises: PoolRefused when another process has it, or its record is damaged or missing.
        """
        try:
            dir_fd = durable.open_directory(directory)
        except OSError:
            return None  # whoever opens it as a pool says what is wrong
        try:
            record = backing.read(dir_fd, directory)
            if record is None and backing.is_there(dir_fd):
                raise PoolRefused(
                    directory,
                    f"{backing.IMAGE} lies there without its record; if it is a pool's, say: "
                    f"hostvol pool init --backing-file SIZE {directory}",
                )
            if record is not None:
                if not lock.try_lock(dir_fd):
                    raise PoolRefused(directory, "another hostvol process serves it")
                return cls(dir_fd, os.path.realpath(directory), record)
        except BaseException:
            os.close(dir_fd)
            raise
        os.close(dir_fd)
        return None

    @property
    def path(self) -> str:
        """The file."""
        return f"{self.directory}/{backing.IMAGE}"

    @property
    def size_bytes(self) -> int:
        """What it was made or grown to."""
        return self._record.size_bytes

    @property
    def driver_name(self) -> str:
        """Whose it is."""
        return self._record.driver_name

    @property
    def outer_device(self) -> int:
        """The st_dev of the filesystem that the file is on."""
        return os.fstat(self._dir_fd).st_dev

    def close(self) -> None:
        """Give the lock back. What is mounted stays mounted: volumes may be in use."""
        os.close(self._dir_fd)

    def mounted(self) -> str:
        """The directory at which the filesystem is mounted, from now on if it was not. Idempotent.

        Growth that was cut short is finished, or taken back where there is no room for it any more. Blocks that
        somebody took out of the file are given back to it.

        Raises: PoolRefused when the file is missing, shorter than its record says or another one; OSError.
        """
        with self._busy, self._image() as image_fd:
            self._settle_file(image_fd)
            self._fill(image_fd)
            with attached(image_fd, self.directory) as device:
                place_fd = self._mount(device)
                try:
                    self._settle_filesystem(device, place_fd, image_fd)
                finally:
                    os.close(place_fd)
        return f"{self.directory}/{backing.MOUNT_POINT}"

    def grow(self, size_bytes: int) -> None:
        """File and filesystem have at least this size, mounted or not; never a smaller one. Idempotent.

        Raises: InvalidField when it is smaller than now; InsufficientCapacity; PoolRefused; OSError.
        """
        wanted = aligned(size_bytes)
        with self._busy, self._image() as image_fd:
            if wanted < self._record.size_bytes:
                raise InvalidField("size", size_bytes, f"at least the present {self._record.size_bytes} bytes")
            if wanted > self._record.wanted_bytes:
                require_room(self._dir_fd, self.directory, wanted - self._record.size_bytes)
                self._write(replace(self._record, wanted_bytes=wanted))
                crash_point("backing.grow_intended")
            try:
                self._extend(image_fd)
            except OSError as cause:
                self._retract(image_fd)
                raise self._no_room(wanted, cause) from cause
            with attached(image_fd, self.directory) as device, self._seen(device) as root_fd:
                self._settle_filesystem(device, root_fd, image_fd)

    def problem(self) -> str:
        """What is wrong with the file of a filesystem that is mounted; empty when nothing is."""
        try:
            with self._image() as image_fd:
                if not allocation.is_whole(image_fd):
                    return "blocks are missing in it: what the pool promises may not be there"
        except (PoolRefused, OSError) as cause:
            return str(cause)
        return ""

    def tend(self) -> None:
        """Give the file back what somebody took out of it (fstrim on the mount below a pool does).

        Raises: PoolRefused; OSError: ENOSPC.
        """
        with self._busy, self._image() as image_fd:
            self._allocate_holes(image_fd)

    # the file

    @contextmanager
    def _image(self) -> Iterator[int]:
        """The file, open for writing.

        Raises: PoolRefused.
        """
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            image_fd = os.open(backing.IMAGE, flags, dir_fd=self._dir_fd)
        except OSError as cause:
            raise PoolRefused(self.directory, f"its backing file cannot be opened: {cause.strerror}") from cause
        try:
            self._check(image_fd)
            yield image_fd
        finally:
            os.close(image_fd)

    def _check(self, image_fd: int) -> None:
        size = os.fstat(image_fd).st_size
        if size < self._record.size_bytes:
            raise PoolRefused(
                self.directory,
                f"its backing file has {size} bytes and should have {self._record.size_bytes}: it was cut off; "
                "nothing is written to it",
            )
        found = filesystem.identify(image_fd)
        if found != (FILESYSTEM, self._record.filesystem_uuid):
            raise PoolRefused(
                self.directory, f"its backing file does not hold the {FILESYSTEM} {self._record.filesystem_uuid}"
            )

    def _settle_file(self, image_fd: int) -> None:
        """Finish what was intended of the file, or take it back."""
        if self._record.wanted_bytes <= self._record.size_bytes:
            return
        try:
            self._extend(image_fd)
        except OSError as cause:
            self._retract(image_fd)
            _log.error("%s", self._no_room(self._record.wanted_bytes, cause))

    def _extend(self, image_fd: int) -> None:
        wanted = self._record.wanted_bytes
        if os.fstat(image_fd).st_size >= wanted:
            return
        allocation.allocate(image_fd, self._record.size_bytes, wanted)
        # Before the size: a filesystem that sees the end also has the blocks in front of it.
        os.fsync(image_fd)
        crash_point("backing.grow_allocated")
        os.ftruncate(image_fd, wanted)
        os.fsync(image_fd)
        crash_point("backing.grow_extended")

    def _retract(self, image_fd: int) -> None:
        """Give up a growth that has no room. The filesystem knows nothing of it: the file still has its old size."""
        allocation.drop_behind_end(image_fd)
        self._write(replace(self._record, wanted_bytes=self._record.size_bytes))

    def _no_room(self, wanted: int, cause: OSError) -> Exception:
        if cause.errno not in (errno.ENOSPC, errno.EDQUOT):
            return PoolRefused(self.directory, f"its backing file cannot grow to {wanted} bytes: {cause.strerror}")
        return InsufficientCapacity(self.directory, wanted - self._record.size_bytes, room_bytes(self._dir_fd))

    def _fill(self, image_fd: int) -> None:
        try:
            self._allocate_holes(image_fd)
        except OSError as cause:
            _log.error("%s: blocks are missing and cannot be given back to it: %s", self.path, cause.strerror)

    def _allocate_holes(self, image_fd: int) -> None:
        if not allocation.is_whole(image_fd):
            _log.warning("%s: somebody took blocks out of it (fstrim?); they are given back", self.path)
            allocation.allocate(image_fd, 0, os.fstat(image_fd).st_size)
            os.fsync(image_fd)

    def _write(self, record: BackingRecord) -> None:
        backing.write(self._dir_fd, record)
        self._record = record

    # the filesystem

    def _mount(self, device: loop.LoopDevice) -> int:
        """The root of the filesystem at its place, mounted if it was not; the caller's descriptor."""
        durable.ensure_directory(self._dir_fd, backing.MOUNT_POINT)
        place_fd = durable.open_directory(backing.MOUNT_POINT, dir_fd=self._dir_fd)
        try:
            if self._is_mounted(place_fd, device):
                return place_fd
            if os.listdir(place_fd):
                raise PoolRefused(self.directory, f"{backing.MOUNT_POINT} is not empty, so nothing is mounted there")
            mount.attach(_mount_tree(device), place_fd)
            crash_point("backing.mounted")
        except BaseException:
            os.close(place_fd)
            raise
        os.close(place_fd)
        return durable.open_directory(backing.MOUNT_POINT, dir_fd=self._dir_fd)

    def _is_mounted(self, place_fd: int, device: loop.LoopDevice) -> bool:
        place = mountinfo.observe(place_fd)
        # A bind mount of the directory (a container's) makes no mount of what is below it.
        if place.device == os.fstat(self._dir_fd).st_dev:
            return False
        if not place.is_mount or place.device != device.device:
            raise PoolRefused(self.directory, f"something else is mounted at {backing.MOUNT_POINT}")
        return True

    @contextmanager
    def _seen(self, device: loop.LoopDevice) -> Iterator[int]:
        """The root of the filesystem, where it is mounted, or for this moment only."""
        place_fd = -1
        with contextlib.suppress(FileNotFoundError):
            place_fd = durable.open_directory(backing.MOUNT_POINT, dir_fd=self._dir_fd)
        if place_fd < 0 or not self._is_mounted(place_fd, device):
            if place_fd >= 0:
                os.close(place_fd)
            place_fd = mounted_unseen(device)
        try:
            yield place_fd
        finally:
            os.close(place_fd)

    def _settle_filesystem(self, device: loop.LoopDevice, root_fd: int, image_fd: int) -> None:
        """Device and filesystem have the size of the file, and the record says so."""
        size = os.fstat(image_fd).st_size
        if loop.size_bytes(device.fd) != size:
            loop.set_capacity(device.fd)
            crash_point("backing.device_grown")
        if growth.grow_mounted(FILESYSTEM, root_fd, device.fd, loop.size_bytes(device.fd)):
            sync.sync_filesystem(root_fd)
            crash_point("backing.filesystem_grown")
        if (self._record.size_bytes, self._record.wanted_bytes) != (size, size):
            self._write(replace(self._record, size_bytes=size, wanted_bytes=size))


def is_served(directory: str) -> bool:
    """Whether another process has the backing file in the directory.

    Raises: OSError.
    """
    dir_fd = durable.open_directory(directory)
    try:
        return not lock.try_lock(dir_fd)
    finally:
        os.close(dir_fd)


def aligned(size_bytes: int) -> int:
    """The size rounded up to whole blocks."""
    return -(-size_bytes // BLOCK_BYTES) * BLOCK_BYTES


def room_bytes(dir_fd: int) -> int:
    """What a backing file may take of the filesystem that `dir_fd` is on, which keeps a reserve for itself."""
    space = filesystem.space(dir_fd)
    return max(0, space.available_bytes - max(_RESERVE_BYTES, space.total_bytes // _RESERVE_PART))


def require_room(dir_fd: int, directory: str, more_bytes: int) -> None:
    """There is room for so many bytes more.

    Raises: InsufficientCapacity with the numbers.
    """
    if more_bytes > room_bytes(dir_fd):
        raise InsufficientCapacity(directory, more_bytes, room_bytes(dir_fd))


@contextmanager
def attached(image_fd: int, directory: str) -> Iterator[loop.LoopDevice]:
    """The one loop device of the file, found or attached now; without a mount it goes when this ends.

    Raises: PoolRefused when there are two, or it is attached otherwise than by us; OSError.
    """
    image = os.fstat(image_fd)
    device = _found_or_attached(image_fd, image, directory)
    with device:
        info = loop.status_of(device.fd)
        if info is None or info.read_only or info.offset_bytes or info.size_limit_bytes:
            raise PoolRefused(directory, f"its backing file is attached in part or read-only by {device.path}")
        crash_point("backing.attached")
        yield device


def _found_or_attached(image_fd: int, image: os.stat_result, directory: str) -> loop.LoopDevice:
    for _ in range(_ATTEMPTS):
        found = loop.find(image.st_dev, image.st_ino)
        if len(found) > 1:
            names = " and ".join(info.path for info in found)
            raise PoolRefused(directory, f"its backing file is attached by {names}: detach what is not hostvol's")
        if not found:
            return loop.attach(image_fd, block_size=BLOCK_BYTES, autoclear=True, direct_io="preferred")
        device = loop.reopen(found[0].number, device=image.st_dev, inode=image.st_ino)
        if device is not None:
            return device
        # On its way out: the last user of a driver before us has just gone.
        time.sleep(_PAUSE_SECONDS)
    raise PoolRefused(directory, "a loop device of its backing file comes and goes")


def mounted_unseen(device: loop.LoopDevice) -> int:
    """The filesystem, mounted where nobody sees it; the caller's descriptor of its root, with which it goes.

    Raises: OSError.
    """
    tree = _mount_tree(device)
    try:
        return durable.open_directory(".", dir_fd=tree)
    finally:
        os.close(tree)


def _mount_tree(device: loop.LoopDevice) -> int:
    quota, plain = _MOUNT_OPTIONS
    try:
        return mount.detached(device.path, FILESYSTEM, options=quota)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return mount.detached(device.path, FILESYSTEM, options=plain)
