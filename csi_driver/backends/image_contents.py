"""The content of images: shared, copied, and made fit for a life of its own; knows no record and no mount."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Final

from csi_driver.backends import increments
from csi_driver.backends.attachments import IMAGE, Attachments
from csi_driver.backends.image import ImageFiles
from csi_driver.backends.increments import Base, Onward
from csi_driver.backends.unmounted_growth import UnmountedGrowth
from csi_driver.errors import VolumeDamaged
from csi_driver.faults import crash_point
from csi_driver.linux import btrfs, btrfs_superblock, ext4_superblock, extents, lease, loop, reflink
from csi_driver.linux.reflink import Cost
from csi_driver.model import Volume
from csi_driver.store.pool import PoolDirectory

if TYPE_CHECKING:
    from csi_driver.streams.frames import Reader
    from csi_driver.streams.header import Header

_NEW: Final = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class ImageContents:
    """The images of one pool as sources and targets of copies."""

    def __init__(
        self, pool: PoolDirectory, files: ImageFiles, attachments: Attachments, unmounted: UnmountedGrowth
    ) -> None:
        self._pool = pool
        self._files = files
        self._attachments = attachments
        self._unmounted = unmounted

    @property
    def entry(self) -> str:
        return IMAGE

    @property
    def can_share(self) -> bool:
        """Whether a copy within the pool takes no time and no space."""
        return self._files.can_reflink

    def open(self, room_fd: int, object_id: str) -> int:
        """A read-only descriptor, the caller's, of an object's image; that of a live volume is whole then.

        Raises: VolumeDamaged when it is missing; VolumeBusy, RecordDamaged, OSError: what was to be written into it
            cannot be.
        """
        try:
            if room_fd == self._pool.volumes_fd:
                self._unmounted.settle_left(object_id)
            return os.open(f"{object_id}/{IMAGE}", _READ, dir_fd=room_fd)
        except FileNotFoundError as cause:
            raise VolumeDamaged(object_id, "its image is missing") from cause

    def is_at_rest(self, volume: Volume, content_fd: int) -> bool:
        """Whether nobody has the image open for writing: neither a loop device nor a process."""
        with self._attachments.undisturbed():
            return not lease.is_written_elsewhere(content_fd)

    def flush(self, volume: Volume) -> None:
        """What was written to a raw block device is in its image. (A filesystem is synced by its mount.)"""
        number = self._attachments.number(volume.volume_id)
        if number is None:
            return
        device_fd = os.open(loop.device_path(number), os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(device_fd)
        finally:
            os.close(device_fd)

    def sharing_cost(self, content_fd: int) -> Cost:
        """What a cut will cost, during which the workload's writes wait."""
        return reflink.cost(content_fd)

    def size_bytes(self, content_fd: int) -> int:
        """What a copy will have to write."""
        return extents.allocated_bytes(content_fd, sync=True).total

    def share(self, content_fd: int, size_bytes: int, object_fd: int, expected: Cost | None = None) -> None:
        """An image of `size_bytes` beside the record, which shares all blocks with the content; fsynced.

        Raises: OSError: EXDEV where the two cannot share; ENOSPC.
        """
        image_fd = self._make(object_fd)
        try:
            reflink.clone_file(content_fd, image_fd, expected or reflink.cost(content_fd))
            crash_point("image.shared")
            # An extension of the source that was not finished has left it longer than it is said to be.
            os.ftruncate(image_fd, size_bytes)
            os.fsync(image_fd)
        finally:
            os.close(image_fd)

    def copy(self, content_fd: int, size_bytes: int, object_fd: int, progress: Callable[[int], None]) -> None:
        """An image of `size_bytes` beside the record with the same content and holes; fsynced."""
        image_fd = self._make(object_fd)
        try:
            reflink.copy_sparse(content_fd, image_fd, progress=progress)
            crash_point("image.copied_from")
            os.ftruncate(image_fd, size_bytes)
            os.fsync(image_fd)
        finally:
            os.close(image_fd)

    def mark(self, content_fd: int) -> str:
        """The file and the time of its latest change, which no write and no mount for writing leaves as it is."""
        found = os.fstat(content_fd)
        return f"{found.st_ino:x}-{found.st_ctime_ns:x}"

    def still(self, volume: Volume, content_fd: int, expected: Cost | None = None) -> int | None:
        """A descriptor, the caller's, of the content as of now, which does not change; None where that costs a copy."""
        if not self.can_share:
            return None
        return reflink.clone_unnamed(content_fd, self._pool.tmp_fd, expected or reflink.cost(content_fd))

    def build(
        self,
        volume: Volume,
        content_fd: int,
        source_bytes: int,
        object_fd: int,
        *,
        share: bool,
        progress: Callable[[int], None],
    ) -> None:
        """The image of a volume that is being built, with the content and an identity of its own; fsynced.

        Raises: OSError; VolumeDamaged when the content is not the filesystem that it is said to be.
        """
        if share:
            self.share(content_fd, source_bytes, object_fd)
        else:
            self.copy(content_fd, source_bytes, object_fd, progress)
        self._adopt(volume, object_fd)

    def sent(self, header: Header, content_fd: int) -> Generator[bytes]:
        """The image as a stream.

        Raises: OSError: EIO.
        """
        from csi_driver.streams import images  # noqa: PLC0415 - most nodes never do this

        yield from images.stream(header, content_fd)

    def received(
        self,
        volume: Volume,
        stream: Reader,
        object_fd: int,
        progress: Callable[[int], None],
        base: Base | None = None,
    ) -> str:
        """The image of a volume that is being built, with the content of a stream and an identity of its own; fsynced.

        Returns the content_id of what was applied last.

        Raises: StreamDamaged; OSError; VolumeDamaged when the content is not the filesystem that it is said to be.
        """
        from csi_driver.streams import images  # noqa: PLC0415 - as above

        journal, size_bytes = stream.journal, stream.header.size_bytes
        onward = increments.Onward(progress)
        is_resumed = journal is not None and journal.is_resumed
        image_fd = self._begun(base, object_fd, onward, is_resumed=is_resumed)
        try:
            os.ftruncate(image_fd, size_bytes)
            if journal is not None:
                journal.place(object_fd)
            crash_point("image.receiving")
            images.receive(
                stream, image_fd, size_bytes, is_incremental=base is not None, progress=onward, journal=journal
            )
            crash_point("image.received")
            last = stream
            for last in increments.following(volume, stream, onward):
                os.ftruncate(image_fd, last.header.size_bytes)
                images.receive(last, image_fd, last.header.size_bytes, is_incremental=True, progress=onward)
                crash_point("image.followed")
            os.fsync(image_fd)
            if journal is not None:
                journal.drop(object_fd)
        finally:
            os.close(image_fd)
        self._adopt(volume, object_fd)
        return last.header.content_id

    def _begun(self, base: Base | None, object_fd: int, progress: Onward, *, is_resumed: bool) -> int:
        """A descriptor, the caller's, of the image to which the stream is written, as the next step."""
        if is_resumed:
            return os.open(IMAGE, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=object_fd)
        return self._make(object_fd) if base is None else self._based(base, object_fd, progress)

    def _based(self, base: Base, object_fd: int, progress: Onward) -> int:
        """A descriptor, the caller's, of an image that has the content of the base."""
        if base.share:
            self.share(base.content_fd, base.size_bytes, object_fd)
        else:
            self.copy(base.content_fd, base.size_bytes, object_fd, progress)
            progress.step()
        return os.open(IMAGE, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=object_fd)

    def _adopt(self, volume: Volume, object_fd: int) -> None:
        """Give the image its volume's size, blocks and identity; a smaller filesystem grows when it is staged."""
        image_fd = os.open(IMAGE, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=object_fd)
        try:
            os.ftruncate(image_fd, volume.capacity_bytes)
            if volume.is_thick:
                # Holes get blocks; those that are shared are promised by the ledger.
                os.posix_fallocate(image_fd, 0, volume.capacity_bytes)
            crash_point("image.sized")
            _write_identity(volume, image_fd)
            os.fsync(image_fd)
        finally:
            os.close(image_fd)

    def _make(self, object_fd: int) -> int:
        image_fd = os.open(IMAGE, _NEW, 0o600, dir_fd=object_fd)
        try:
            if btrfs.is_btrfs(image_fd):
                # As its source: files share blocks only when both are written in place, or neither.
                btrfs.set_nocow(image_fd)
        except BaseException:
            os.close(image_fd)
            raise
        return image_fd


def _write_identity(volume: Volume, image_fd: int) -> None:
    """Two filesystems with one UUID must not be confused when both are mounted; XFS is always mounted `nouuid`.

    An ext4 whose journal waits for its replay gets its UUID when it is staged.

    So what was made of a stream is not what the stream had, byte by byte: the UUID in the superblock (of a btrfs, in
    each of its superblocks, with the feature that tells the old one, and their checksums) is the volume's own. A later
    increment is applied to that all the same: what it has of these blocks it has whole, and this is done again behind
    it.
    """
    if volume.fs_type == "ext4":
        ext4_superblock.write_uuid(image_fd, volume.fs_uuid)
    elif volume.fs_type == "btrfs":
        try:
            btrfs_superblock.write_uuid(image_fd, volume.fs_uuid)
        except OSError as cause:
            if cause.errno != errno.EINVAL:
                raise
            raise VolumeDamaged(volume.volume_id, f"its source holds no sound btrfs: {cause.strerror}") from cause
    crash_point("image.identified")
