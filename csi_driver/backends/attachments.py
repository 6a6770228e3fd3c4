"""Which loop device holds which image; knows no filesystem and no mount.

The kernel is the truth: a number remembered here is believed only while the device's backing file is the image.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from csi_driver.errors import VolumeBusy, VolumeDamaged
from csi_driver.faults import crash_point
from csi_driver.linux import lease, loop
from csi_driver.model import Volume, VolumeId
from csi_driver.store.pool import PoolDirectory

IMAGE = "disk.img"
_RELEASE_SECONDS = 1.0
_SECTOR_WITHOUT_DIRECT_IO = 512


@dataclass(frozen=True, slots=True)
class _Attachment:
    """A loop device and the file that it was attached to."""

    number: int
    device: int
    inode: int


class Attachments:
    """The attached images of one pool."""

    def __init__(self, pool: PoolDirectory) -> None:
        self._pool = pool
        self._held: dict[VolumeId, _Attachment] = {}

    def image_path(self, volume_id: str) -> str:
        """The image's absolute path, for messages."""
        return f"{self._pool.path_of(volume_id)}/{IMAGE}"

    def adopt(self, volume_id: VolumeId, number: int) -> bool:
        """Take over a device that an earlier process attached, if its backing file is this volume's image."""
        info = loop.status(number)
        try:
            image = os.stat(f"{volume_id}/{IMAGE}", dir_fd=self._pool.volumes_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if info is None or not info.is_backed_by(image.st_dev, image.st_ino):
            return False
        self._held[volume_id] = _Attachment(number, image.st_dev, image.st_ino)
        return True

    def attach(self, volume: Volume, *, autoclear: bool) -> loop.LoopDevice:
        """Attach the image, which nobody else may have open; the caller closes the device's descriptor.

        With `autoclear` the device goes away with that descriptor unless a filesystem was mounted from it, so a
        crash in between leaves nothing.

        Raises: VolumeBusy when the image is open elsewhere (two filesystems on one image destroy it); VolumeDamaged
            when it is missing or shorter than its record says; OSError.
        """
        image_fd = self._open(volume)
        try:
            image = self._checked(volume, image_fd)
            device = loop.attach(
                image_fd,
                block_size=volume.parameters.block_size,
                autoclear=autoclear,
                direct_io=volume.parameters.block_size != _SECTOR_WITHOUT_DIRECT_IO or "preferred",
            )
        finally:
            os.close(image_fd)
        self._held[volume.volume_id] = _Attachment(device.number, image.st_dev, image.st_ino)
        crash_point("attach.configured")
        return device

    def number(self, volume_id: VolumeId) -> int | None:
        """The number of the loop device that holds the image now, asked of the kernel; None when none does."""
        held = self._held.get(volume_id)
        if held is None:
            return None
        if loop.backing_is(held.number, held.device, held.inode):
            return held.number
        self._held.pop(volume_id, None)
        return None

    def detach(self, volume: Volume) -> None:
        """The image is not attached afterwards. Idempotent.

        Raises: VolumeBusy naming who holds the device, when it does not go within a second.
        """
        held = self._held.get(volume.volume_id)
        if held is None:
            return
        if not loop.detach(held.number, device=held.device, inode=held.inode):
            self._wait_until_free(volume, held)
        crash_point("detach.cleared")
        self._held.pop(volume.volume_id, None)

    def await_release(self, volume: Volume) -> None:
        """Wait until the kernel has let go of an autoclear device after its last unmount. Idempotent.

        Raises: VolumeBusy naming who holds the device: a second opener delays it.
        """
        held = self._held.get(volume.volume_id)
        if held is None:
            return
        self._wait_until_free(volume, held)
        self._held.pop(volume.volume_id, None)

    def is_held(self, volume: Volume) -> bool:
        """Whether anybody has the image open: a loop device or a process."""
        image_fd = self._open(volume)
        try:
            return lease.is_open_elsewhere(image_fd)
        finally:
            os.close(image_fd)

    @staticmethod
    def _wait_until_free(volume: Volume, held: _Attachment) -> None:
        if loop.is_gone(held.number, device=held.device, inode=held.inode, patience_seconds=_RELEASE_SECONDS):
            return
        holders = ", ".join(loop.holders(held.number)) or "an unknown opener"
        raise VolumeBusy(volume.volume_id, f"{loop.device_path(held.number)} is in use by {holders}")

    def _open(self, volume: Volume) -> int:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(f"{volume.volume_id}/{IMAGE}", flags, dir_fd=self._pool.volumes_fd)
        except FileNotFoundError as cause:
            where = self.image_path(volume.volume_id)
            raise VolumeDamaged(volume.volume_id, f"its image {where} is missing") from cause

    @staticmethod
    def _checked(volume: Volume, image_fd: int) -> os.stat_result:
        found = os.fstat(image_fd)
        if found.st_size < volume.capacity_bytes:
            raise VolumeDamaged(
                volume.volume_id, f"its image holds {found.st_size} bytes, its record says {volume.capacity_bytes}"
            )
        if lease.is_open_elsewhere(image_fd):
            raise VolumeBusy(volume.volume_id, "its image is open in another process or loop device")
        return found
