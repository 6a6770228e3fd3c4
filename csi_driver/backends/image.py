"""Images as files: made, formatted and measured; knows neither loop devices nor mounts."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from csi_driver.backends.attachments import IMAGE
from csi_driver.backends.templates import Templates, template_name
from csi_driver.faults import crash_point
from csi_driver.linux import allocation, btrfs, ext4_superblock, extents, filesystem, reflink
from csi_driver.model import GIB, Provisioning, Volume, VolumeParameters
from csi_driver.store.pool import PoolDirectory

_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FORMAT_SECONDS: Final = 900.0
_STEP_BYTES: Final = GIB
# A clone bears its template's UUID. ext4 gets its own before anybody sees it, XFS is always mounted `nouuid`; the
# kernel confuses two btrfs of one UUID, so each is formatted by itself.
_WITH_TEMPLATE: Final = frozenset({"ext4", "xfs"})


class ImageFiles:
    """The image files of one pool."""

    def __init__(self, pool: PoolDirectory) -> None:
        self._pool = pool
        self._templates = Templates(pool)
        self._is_btrfs = btrfs.is_btrfs(pool.root_fd)
        self._can_reflink: bool | None = None

    @property
    def can_reflink(self) -> bool:
        """Whether files of this pool can share blocks, found out by doing it; no while a full pool has no answer."""
        if self._can_reflink is None:
            try:
                self._can_reflink = reflink.probe(self._pool.tmp_fd)
            except OSError:
                return False
        return self._can_reflink

    def build(self, volume: Volume, object_fd: int) -> None:
        """Make the image of a volume that is being built, formatted unless it is raw block, and fsync it.

        Raises: OSError; ToolMissing or ToolFailed of mkfs.
        """
        image_fd = os.open(IMAGE, _NEW, 0o600, dir_fd=object_fd)
        try:
            if self._is_btrfs:
                # Only an empty file can be told; without it a thick volume meets ENOSPC when it is rewritten.
                btrfs.set_nocow(image_fd)
            crash_point("image.made")
            self._fill(volume, image_fd)
            crash_point("image.filled")
            os.fsync(image_fd)
        finally:
            os.close(image_fd)

    def extend(self, volume: Volume, to_bytes: int) -> None:
        """The image has this size, all of it allocated if the volume is thick; fsynced. Idempotent.

        In steps, since a filesystem that allocates keeps the workload's writes to the image waiting.

        Raises: OSError: ENOSPC, EFBIG; a part may be allocated then.
        """
        with self._opened(volume, os.O_RDWR) as image_fd:
            if volume.is_thick:
                for start in range(volume.capacity_bytes, to_bytes, _STEP_BYTES):
                    os.posix_fallocate(image_fd, start, min(_STEP_BYTES, to_bytes - start))
                    crash_point("image.extended")
            elif os.fstat(image_fd).st_size < to_bytes:
                os.ftruncate(image_fd, to_bytes)
                crash_point("image.extended")
            os.fsync(image_fd)

    def change(self, volume: Volume, to: VolumeParameters, progress: Callable[[int], None]) -> None:
        """All of an image that becomes thick is allocated, and what it holds stays, also beside a writer; fsynced.

        Idempotent. In steps, as `extend`. Blocks that it shares with relatives stay shared.

        Raises: OSError: ENOSPC; a part may be allocated then.
        """
        if to.provisioning is not Provisioning.THICK or volume.is_thick:
            return
        with self._opened(volume, os.O_RDWR) as image_fd:
            for start in range(0, volume.capacity_bytes, _STEP_BYTES):
                end = min(start + _STEP_BYTES, volume.capacity_bytes)
                allocation.allocate(image_fd, start, end)
                crash_point("image.allocated_live")
                progress(end)
            os.fsync(image_fd)

    def retract(self, volume: Volume) -> None:
        """The image has the size that the volume has; fsynced. Only after an extension that nobody was shown."""
        with self._opened(volume, os.O_RDWR) as image_fd:
            # Also when the size is right: what was allocated behind it goes.
            os.ftruncate(image_fd, volume.capacity_bytes)
            os.fsync(image_fd)

    def own_bytes(self, volume: Volume) -> int:
        """What is allocated to the image and to no other file."""
        with self._opened(volume, os.O_RDONLY) as image_fd:
            return extents.allocated_bytes(image_fd).exclusive

    def drop_templates(self) -> None:
        """Give the space of the templates back."""
        self._templates.drop_all()

    @contextmanager
    def _opened(self, volume: Volume, flags: int) -> Iterator[int]:
        path = f"{volume.volume_id}/{IMAGE}"
        image_fd = os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._pool.volumes_fd)
        try:
            yield image_fd
        finally:
            os.close(image_fd)

    def _fill(self, volume: Volume, image_fd: int) -> None:
        if volume.is_thick:
            os.posix_fallocate(image_fd, 0, volume.capacity_bytes)
            crash_point("image.allocated")
        if volume.is_block:
            os.ftruncate(image_fd, volume.capacity_bytes)
        elif volume.fs_type in _WITH_TEMPLATE:
            self._copy_template(volume, image_fd)
        else:
            os.ftruncate(image_fd, volume.capacity_bytes)
            self._format(volume, f"{self._pool.building_path(volume.volume_id)}/{IMAGE}")

    def _copy_template(self, volume: Volume, image_fd: int) -> None:
        size, options = volume.capacity_bytes, volume.parameters.mkfs_options
        name = template_name(volume.fs_type, size, options)
        template_fd = self._templates.open(name, size, lambda path: self._format(volume, path))
        try:
            if self.can_reflink and not volume.is_thick:
                reflink.clone_file(template_fd, image_fd)
            else:
                # Shared blocks would have to be allocated when they are written: a thick volume owns all of its own.
                reflink.copy_data(template_fd, image_fd)
        finally:
            os.close(template_fd)
        crash_point("image.copied")
        if volume.fs_type == "ext4":
            ext4_superblock.write_uuid(image_fd, volume.fs_uuid)

    @staticmethod
    def _format(volume: Volume, path: str) -> None:
        kind = filesystem.FILESYSTEMS[volume.fs_type]
        filesystem.make(
            kind,
            path,
            uuid=str(uuid.uuid4()),
            extra=filesystem.parse_mkfs_options(kind, volume.parameters.mkfs_options),
            sector_size=volume.parameters.block_size,
            timeout=_FORMAT_SECONDS,
        )
