"""Image volumes with a filesystem: attached and mounted as one step; knows no record and no protocol."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import uuid
from collections.abc import Callable
from typing import Final

from csi_driver.backends import options
from csi_driver.backends.attachments import Attachments
from csi_driver.backends.image import ImageFiles
from csi_driver.backends.unmounted_growth import UnmountedGrowth
from csi_driver.errors import CapacityOutOfRange, GrowthRefused, VolumeBusy, VolumeDamaged
from csi_driver.faults import crash_point
from csi_driver.linux import filesystem, growth, mount, mountinfo
from csi_driver.linux.loop import LOOP_MAJOR, device_path
from csi_driver.model import Usage, Volume, VolumeParameters

_log = logging.getLogger("hostvol.growth")
# XFS refuses a second filesystem of one UUID; clones of a template share theirs.
_ALWAYS: Final = {"xfs": ("nouuid",)}
# What the machine lacks for the moment says nothing about the image.
_PASSING: Final = frozenset({errno.EBUSY, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EINTR})
_REFUSED: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.EINVAL})
_UUID_STAYS: Final = frozenset({errno.ENOTTY, errno.EROFS, errno.EOPNOTSUPP})


class FilesystemImageBackend:
    """Images of one pool that hold ext4, xfs or btrfs."""

    def __init__(self, files: ImageFiles, attachments: Attachments, unmounted: UnmountedGrowth) -> None:
        self._files = files
        self._attachments = attachments
        self._unmounted = unmounted

    def choose_identity(self, volume: Volume) -> Volume:
        """The volume with the UUID that its filesystem will bear.

        XFS shares that of its template or source; a new btrfs makes its own, a copied one is given it.
        """
        is_given = volume.fs_type == "ext4" or (volume.fs_type == "btrfs" and volume.source is not None)
        return dataclasses.replace(volume, fs_uuid=str(uuid.uuid4())) if is_given else volume

    def build(self, volume: Volume, object_fd: int) -> None:
        self._files.build(volume, object_fd)

    def require_extendable(self, volume: Volume, to_bytes: int) -> None:
        """What only resize2fs can grow has the bounds that it was made with.

        Raises: CapacityOutOfRange; VolumeDamaged; OSError.
        """
        with self._attachments.looked_at(volume) as image_fd:
            most = growth.most_ext4_bytes(image_fd) if volume.fs_type == "ext4" else None
        if most is not None and to_bytes > most:
            raise CapacityOutOfRange(
                f"capacity_range.required_bytes: {to_bytes} is more than the ext4 of volume {volume.volume_id} can "
                f"become while this driver lacks CAP_SYS_RESOURCE, {most}"
            )

    def extend(self, volume: Volume, to_bytes: int) -> None:
        self._files.extend(volume, to_bytes)

    def retract(self, volume: Volume) -> None:
        self._files.retract(volume)

    def grow(self, volume: Volume, mounted_fd: int | None) -> None:
        """The device has the size of its image, and the filesystem that of its device.

        Raises: GrowthRefused where the kernel does not let it grow while it is mounted; VolumeBusy; OSError.
        """
        with self._attachments.grown_device(volume) as device_fd:
            if device_fd is None or mounted_fd is None:
                return
            try:
                if growth.grow_mounted(volume.fs_type, mounted_fd, device_fd, volume.capacity_bytes):
                    crash_point("grow.filesystem_grown")
            except OSError as cause:
                raise _growth_failure(volume, cause) from cause

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
        """Attach the image and mount its filesystem at the staging path.

        A crash in between leaves nothing: the device detaches itself with our descriptor until it is mounted.

        Raises: VolumeBusy, VolumeDamaged, OSError.
        """
        number = self._attachments.number(volume.volume_id)
        if number is not None and self._entries(number):
            # Still published, but its staging mount was taken away behind our back: show the same superblock again.
            self._mount(volume, device_path(number), target_fd, mount_flags)
        else:
            self._settle_unmounted(volume)
            with self._attachments.attach(volume, autoclear=True) as device:
                self._mount(volume, device.path, target_fd, mount_flags)
        crash_point("stage.mounted")

    def finish_stage(self, volume: Volume, mounted_fd: int) -> None:
        """Give an ext4 that still bears its template's UUID its own. Idempotent; `mounted_fd` is the mount's root.

        Most got it when they were built. Where the kernel cannot (before 6.0) or the mount is read-only it keeps the
        template's, which ext4 tolerates.
        """
        if volume.fs_type != "ext4":
            return
        try:
            if filesystem.get_ext4_uuid(mounted_fd) != volume.fs_uuid:
                filesystem.set_ext4_uuid(mounted_fd, volume.fs_uuid)
        except OSError as error:
            if error.errno not in _UUID_STAYS:
                raise
        crash_point("stage.uuid_set")

    def is_attached(self, volume: Volume) -> bool:
        return self._attachments.number(volume.volume_id) is not None

    def shows(self, volume: Volume, point: mountinfo.MountPoint) -> bool:
        """Whether what is seen at some path is this volume's filesystem.

        A btrfs has an anonymous device number, so there the mount table's source column tells.
        """
        number = self._attachments.number(volume.volume_id)
        if number is None:
            return False
        if point.device == os.makedev(LOOP_MAJOR, number):
            return True
        return volume.fs_type == "btrfs" and any(entry.mount_id == point.mount_id for entry in self._entries(number))

    def mounts(self, volume: Volume) -> list[mountinfo.MountEntry]:
        """Everywhere the filesystem is mounted in this mount namespace."""
        number = self._attachments.number(volume.volume_id)
        return [] if number is None else self._entries(number)

    def device_fd(self, volume: Volume, *, read_only: bool) -> int | None:
        return None

    def is_device_read_only(self, volume: Volume) -> bool:
        return False

    def release(self, volume: Volume) -> None:
        """Wait until the loop device is gone after the last unmount.

        Raises: VolumeBusy naming the holder.
        """
        self._attachments.await_release(volume)

    def is_held(self, volume: Volume) -> bool:
        return self._attachments.is_held(volume)

    def usage(self, volume: Volume, path_fd: int) -> Usage:
        """What the filesystem in the image says of itself."""
        space = filesystem.space(path_fd)
        return Usage(
            space.total_bytes,
            space.used_bytes,
            space.available_bytes,
            space.inodes_total,
            space.inodes_used,
            space.inodes_free,
        )

    def _settle_unmounted(self, volume: Volume) -> None:
        """Let an ext4 grow that could not while it was mounted; XFS and btrfs grow only when they are.

        Raises: VolumeBusy while somebody has the image open, or when it takes too long; VolumeDamaged; OSError.
        """
        if volume.fs_type != "ext4":
            return
        with self._attachments.unattached(volume) as image_fd:
            self._unmounted.settle(volume.volume_id, image_fd)
            try:
                self._unmounted.ensure_grown(volume, image_fd)
            except GrowthRefused as refused:
                # A smaller filesystem is no reason to keep a workload from its data.
                _log.warning("%s", refused)

    @staticmethod
    def _mount(volume: Volume, source: str, target_fd: int, mount_flags: tuple[str, ...]) -> None:
        wanted = options.checked(volume.fs_type, mount_flags)
        try:
            mount.mount_filesystem(
                source,
                volume.fs_type,
                target_fd,
                options=(*_ALWAYS.get(volume.fs_type, ()), *wanted.options),
                flags=wanted.flags,
            )
        except OSError as cause:
            if cause.errno in _PASSING:
                raise
            raise VolumeDamaged(volume.volume_id, f"cannot be mounted: {cause.strerror}") from cause

    @staticmethod
    def _entries(number: int) -> list[mountinfo.MountEntry]:
        source = device_path(number)
        found = mountinfo.read_mounts(mountinfo.source_needle(source))
        return [entry for entry in found if entry.source == source]


def _growth_failure(volume: Volume, cause: OSError) -> Exception:
    if cause.errno == errno.EROFS:
        return GrowthRefused(volume.volume_id, f"its {volume.fs_type} is mounted read-only; stage it without `ro`")
    if cause.errno == errno.EBUSY:
        return VolumeBusy(volume.volume_id, f"its {volume.fs_type} does not grow now: {cause.strerror}")
    least = filesystem.FILESYSTEMS[volume.fs_type].grown_minimum_bytes
    if cause.errno == errno.EINVAL and volume.capacity_bytes < least:
        return GrowthRefused(
            volume.volume_id,
            f"the kernel lets a {volume.fs_type} grow to no less than {least} bytes; expand the volume to that",
        )
    if volume.fs_type != "ext4" or cause.errno not in _REFUSED:
        return cause
    later = "stop what uses it, and it grows when it is staged next"
    if growth.may_grow_mounted_ext4():
        return GrowthRefused(volume.volume_id, f"the kernel refuses its mounted ext4 ({cause.strerror}); {later}")
    return GrowthRefused(
        volume.volume_id,
        f"the kernel grows a mounted ext4 only for CAP_SYS_RESOURCE, which this driver lacks; {later}, or give the "
        "driver that capability",
    )
