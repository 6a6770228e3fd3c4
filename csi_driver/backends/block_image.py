"""Raw block volumes: an image behind a loop device that stays until it is detached; knows no record, no protocol."""

from __future__ import annotations

import os
from collections.abc import Callable

from csi_driver.backends.attachments import Attachments
from csi_driver.backends.image import ImageFiles
from csi_driver.errors import NotStaged
from csi_driver.faults import crash_point
from csi_driver.linux import loop, mountinfo
from csi_driver.linux.loop import LOOP_MAJOR
from csi_driver.model import Usage, Volume, VolumeParameters

_DEVICE_FILESYSTEMS = frozenset({"devtmpfs", "tmpfs"})


class BlockImageBackend:
    """Images of one pool that are shown as block devices."""

    def __init__(self, files: ImageFiles, attachments: Attachments) -> None:
        self._files = files
        self._attachments = attachments

    def choose_identity(self, volume: Volume) -> Volume:
        return volume

    def build(self, volume: Volume, object_fd: int) -> None:
        self._files.build(volume, object_fd)

    def require_extendable(self, volume: Volume, to_bytes: int) -> None:
        with self._attachments.looked_at(volume):
            pass

    def extend(self, volume: Volume, to_bytes: int) -> None:
        self._files.extend(volume, to_bytes)

    def retract(self, volume: Volume) -> None:
        self._files.retract(volume)

    def grow(self, volume: Volume, mounted_fd: int | None) -> None:
        """The device, where there is one, has the size of its image."""
        with self._attachments.grown_device(volume):
            pass

    def require_changeable(self, volume: Volume, to: VolumeParameters) -> Volume:
        with self._attachments.looked_at(volume):
            return volume

    def change(self, volume: Volume, to: VolumeParameters, progress: Callable[[int], None]) -> None:
        self._files.change(volume, to, progress)

    def restore(self, volume: Volume) -> None:
        """Blocks that are allocated already belong to what the volume was promised: they stay."""

    def own_bytes(self, volume: Volume) -> int:
        with self._attachments.undisturbed():
            return self._files.own_bytes(volume)

    def stage(self, volume: Volume, target_fd: int, mount_flags: tuple[str, ...]) -> None:
        """Attach the image; nothing is mounted at the staging path.

        Without autoclear: with it the device would be gone as soon as our own descriptor closes. After a crash it is
        found again by its backing inode.

        Raises: VolumeBusy, VolumeDamaged, OSError.
        """
        if not self._attachments.keep(volume):
            self._attachments.attach(volume, autoclear=False).close()
            crash_point("stage.attached")

    def finish_stage(self, volume: Volume, mounted_fd: int) -> None:
        """Nothing is left to do once the device is there."""

    def is_attached(self, volume: Volume) -> bool:
        return self._attachments.number(volume.volume_id) is not None

    def shows(self, volume: Volume, point: mountinfo.MountPoint) -> bool:
        """Whether what is seen at some path is this volume's block device."""
        if not point.is_block_device or os.major(point.special_device) != LOOP_MAJOR:
            return False
        return os.minor(point.special_device) == self._attachments.number(volume.volume_id)

    def mounts(self, volume: Volume) -> list[mountinfo.MountEntry]:
        """Everywhere the device node is mounted in this mount namespace."""
        number = self._attachments.number(volume.volume_id)
        if number is None:
            return []
        root = f"/loop{number}"
        found = mountinfo.read_mounts(f"{root} ".encode())
        return [entry for entry in found if entry.root == root and entry.fs_type in _DEVICE_FILESYSTEMS]

    def device_fd(self, volume: Volume, *, read_only: bool) -> int | None:
        """An O_PATH descriptor, the caller's, of the device's node, after setting whether it refuses writes.

        A read-only bind of a device node does not stop writes to the device, so the device itself must refuse.

        Raises: NotStaged.
        """
        number = self._attachments.number(volume.volume_id)
        if number is None or not self._attachments.keep(volume):
            raise NotStaged(volume.volume_id, "")
        device = os.open(loop.device_path(number), os.O_RDONLY | os.O_CLOEXEC)
        try:
            loop.set_read_only(device, read_only)
        finally:
            os.close(device)
        crash_point("publish.device_set")
        return os.open(loop.device_path(number), os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)

    def is_device_read_only(self, volume: Volume) -> bool:
        """The device's own switch."""
        number = self._attachments.number(volume.volume_id)
        if number is None:
            return False
        device = os.open(loop.device_path(number), os.O_RDONLY | os.O_CLOEXEC)
        try:
            return loop.is_read_only(device)
        finally:
            os.close(device)

    def release(self, volume: Volume) -> None:
        """Detach the loop device.

        Raises: VolumeBusy naming the holder.
        """
        self._attachments.detach(volume)

    def is_held(self, volume: Volume) -> bool:
        return self._attachments.is_held(volume)

    def usage(self, volume: Volume, path_fd: int) -> Usage:
        """A block device is as large as its volume; what the workload makes of it is not known."""
        return Usage(volume.capacity_bytes, 0, 0)
