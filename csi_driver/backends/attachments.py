"""Which loop device holds which image; knows no filesystem and no mount.

The kernel is the truth: a number remembered here is believed only while the device's backing file is the image.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from csi_driver.errors import VolumeBusy, VolumeDamaged
from csi_driver.faults import crash_point
from csi_driver.linux import lease, loop, loop_holders
from csi_driver.model import Volume, VolumeId
from csi_driver.store.pool import PoolDirectory

IMAGE = "disk.img"
_RELEASE_SECONDS = 1.0
_SECTOR_WITHOUT_DIRECT_IO = 512


@dataclass(frozen=True, slots=True)
class Attachment:
    """A loop device and the file that it was attached to."""

    number: int
    device: int
    inode: int


class Attachments:
    """The attached images of one pool."""

    def __init__(self, pool: PoolDirectory) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        self._held: dict[VolumeId, Attachment] = {}

    def image_path(self, volume_id: str) -> str:
        """The image's absolute path, for messages."""
        return f"{self._pool.path_of(volume_id)}/{IMAGE}"

    def remembered(self, volume_id: VolumeId) -> Attachment | None:
        """What the image was attached to last, whether it still is or not; costs nothing."""
        return self._held.get(volume_id)

    def adopt(self, volume_id: VolumeId, number: int) -> bool:
        """Take over a device that an earlier process attached, if its backing file is this volume's image."""
        try:
            image = os.stat(f"{volume_id}/{IMAGE}", dir_fd=self._pool.volumes_fd, follow_symlinks=False)
        except FileNotFoundError:
            return False
        # Only now: a stranger's device over a filesystem that was shut down answers with EIO.
        info = loop.status(number)
        if info is None or not info.is_backed_by(image.st_dev, image.st_ino):
            return False
        self._held[volume_id] = Attachment(number, image.st_dev, image.st_ino)
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
        self._held[volume.volume_id] = Attachment(device.number, image.st_dev, image.st_ino)
        crash_point("attach.configured")
        return device

    def number(self, volume_id: VolumeId) -> int | None:
        """The number of the loop device that holds the image now, asked of the kernel; None when none does."""
        held = self._held.get(volume_id)
        if held is None:
            return None
        if loop.backing_is(held.number, held.device, held.inode):
            return held.number
        self._forget(volume_id, held)
        return None

    def keep(self, volume: Volume) -> bool:
        """Whether the image is attached, and will be when the last opener of its device closes it.

        A LOOP_CLR_FD that came while somebody held the device has only set autoclear: the device would go away below
        whoever it is shown to next, and its number to another volume.
        """
        held = self._held.get(volume.volume_id)
        if held is None:
            return False
        return self._keep(held) or self._forget(volume.volume_id, held)

    @contextmanager
    def unattached(self, volume: Volume) -> Iterator[int]:
        """A descriptor of an image that nobody else has open.

        Raises: VolumeBusy; VolumeDamaged when it is missing or too short.
        """
        image_fd = self._open(volume)
        try:
            self._checked(volume, image_fd)
            yield image_fd
        finally:
            os.close(image_fd)

    @contextmanager
    def grown_device(self, volume: Volume) -> Iterator[int | None]:
        """A descriptor of the volume's device, which has the size of its image now; None when it is not attached.

        Closed at the end: one that stays open would delay what happens at the last close.
        """
        number = self.number(volume.volume_id)
        if number is None:
            yield None
            return
        device_fd = os.open(loop.device_path(number), os.O_RDONLY | os.O_CLOEXEC)
        try:
            if loop.size_bytes(device_fd) < volume.capacity_bytes:
                loop.set_capacity(device_fd)
                crash_point("grow.device_sized")
            yield device_fd
        finally:
            os.close(device_fd)

    @contextmanager
    def looked_at(self, volume: Volume) -> Iterator[int]:
        """A descriptor, for a moment, of the image, whoever has it open.

        Raises: VolumeDamaged when it is missing or shorter than its record says.
        """
        with self.undisturbed():
            image_fd = self._open(volume)
            try:
                self._require_size(volume, os.fstat(image_fd))
                yield image_fd
            finally:
                os.close(image_fd)

    @contextmanager
    def read(self, volume_id: str) -> Iterator[int]:
        """The same, for reading only, of an image that may be too short.

        Raises: OSError.
        """
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
        with self.undisturbed():
            image_fd = os.open(f"{volume_id}/{IMAGE}", flags, dir_fd=self._pool.volumes_fd)
            try:
                yield image_fd
            finally:
                os.close(image_fd)

    @contextmanager
    def undisturbed(self) -> Iterator[None]:
        """Open images of this pool for a moment without being taken for a stranger who holds them."""
        with self._opening:
            yield

    def detach(self, volume: Volume) -> None:
        """The image is not attached afterwards. Idempotent.

        Raises: VolumeBusy naming who holds the device, when it does not go within a second.
        """
        held = self._held.get(volume.volume_id)
        if held is None:
            return
        if not loop.detach(held.number, device=held.device, inode=held.inode):
            try:
                self._wait_until_free(volume, held)
            except VolumeBusy:
                # As it was before, until the call is repeated.
                if self._keep(held):
                    raise
        crash_point("detach.cleared")
        self._forget(volume.volume_id, held)

    def await_release(self, volume: Volume) -> None:
        """Wait until the kernel has let go of an autoclear device after its last unmount. Idempotent.

        Raises: VolumeBusy naming who holds the device: a second opener delays it.
        """
        held = self._held.get(volume.volume_id)
        if held is None:
            return
        self._wait_until_free(volume, held)
        self._forget(volume.volume_id, held)

    def is_held(self, volume: Volume) -> bool:
        """Whether anybody has the image open: a loop device or a process. A missing image is held by nobody."""
        try:
            image_fd = self._open(volume)
        except VolumeDamaged:
            return False
        try:
            return self._is_open_elsewhere(image_fd)
        finally:
            os.close(image_fd)

    def _is_open_elsewhere(self, image_fd: int) -> bool:
        with self._opening:
            return lease.is_open_elsewhere(image_fd)

    def _forget(self, volume_id: VolumeId, held: Attachment) -> bool:
        """Forget this attachment, not one that took its place meanwhile (whoever looks holds no claim); False."""
        with self._lock:
            if self._held.get(volume_id) is held:
                del self._held[volume_id]
        return False

    @staticmethod
    def _keep(held: Attachment) -> bool:
        """Clear autoclear if the device is still the image's; tell whether it is."""
        try:
            fd = os.open(loop.device_path(held.number), os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            loop.set_autoclear(fd, False)
            info = loop.status_of(fd)
            return info is not None and info.is_backed_by(held.device, held.inode)
        except OSError:
            return False
        finally:
            os.close(fd)

    @staticmethod
    def _wait_until_free(volume: Volume, held: Attachment) -> None:
        if loop.is_gone(held.number, device=held.device, inode=held.inode, patience_seconds=_RELEASE_SECONDS):
            return
        holders = ", ".join(loop_holders.holders(held.number)) or "an unknown opener"
        raise VolumeBusy(volume.volume_id, f"{loop.device_path(held.number)} is in use by {holders}")

    def _open(self, volume: Volume) -> int:
        flags = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            return os.open(f"{volume.volume_id}/{IMAGE}", flags, dir_fd=self._pool.volumes_fd)
        except FileNotFoundError as cause:
            where = self.image_path(volume.volume_id)
            raise VolumeDamaged(volume.volume_id, f"its image {where} is missing") from cause

    def _checked(self, volume: Volume, image_fd: int) -> os.stat_result:
        found = os.fstat(image_fd)
        self._require_size(volume, found)
        if self._is_open_elsewhere(image_fd):
            raise VolumeBusy(volume.volume_id, "its image is open in another process or loop device")
        return found

    @staticmethod
    def _require_size(volume: Volume, image: os.stat_result) -> None:
        if image.st_size < volume.capacity_bytes:
            raise VolumeDamaged(
                volume.volume_id, f"its image holds {image.st_size} bytes, its record says {volume.capacity_bytes}"
            )
