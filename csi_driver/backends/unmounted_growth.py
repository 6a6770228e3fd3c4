"""An ext4 made larger while nobody has it mounted, whole or not at all; knows no loop device and no mount.

resize2fs works in place, and one that is killed leaves an image that e2fsck repairs only with questions, or not at
all (103 of 106 that were killed at one of their writes). So it works on a copy of the metadata (e2image: a sparse file
without any file's data), which is checked afterwards; the blocks that differ go into a redo log, and from there into
the image. As long as the group descriptors find room where mke2fs reserved it, no data is moved, which the copy lacks.
The log lies beside the image that it belongs to, and goes wherever that goes: to the trash and back, or out of the way
of a rollback. Whoever opens the image of a live volume carries out what he finds there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from typing import Final

from csi_driver.backends.attachments import IMAGE, Attachments
from csi_driver.errors import GrowthRefused, RecordDamaged, VolumeBusy, VolumeDamaged
from csi_driver.faults import crash_point
from csi_driver.linux import ext4_superblock, filesystem, growth, lease
from csi_driver.linux.process import ToolError, ToolTimeout
from csi_driver.model import MIB, Volume
from csi_driver.store import durable, redo
from csi_driver.store.pool import REDO_SUFFIX, TMP, PoolDirectory

_log = logging.getLogger("hostvol.growth")
_SECONDS: Final = 900.0
_STRIDE: Final = MIB
_BLOCK: Final = 4096
# Beside the image: what is to be written into it.
REDO: Final = "growth.redo"
_WRITE: Final = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC


class UnmountedGrowth:
    """The ext4 images of one pool, each while nobody else has it open."""

    def __init__(self, pool: PoolDirectory, attachments: Attachments) -> None:
        self._pool = pool
        self._attachments = attachments
        # Who finds no log goes on at once: a log is removed when all of it is written.
        self._settling = threading.Lock()

    def settle_all(self) -> None:
        """Finish what an earlier process was about to write into images; for the start, before anybody uses one."""
        self._adopt()
        for volume_id in self._pool.volume_names():
            with contextlib.suppress(OSError):
                durable.unlink_if_there(self._pool.volumes_fd, f"{volume_id}/{REDO}{redo.UNFINISHED}")
            self.try_to_settle(volume_id)

    def try_to_settle(self, volume_id: str) -> None:
        """Finish it for one volume if that can be done now: whoever opens it next tries again, and fails loudly."""
        try:
            self.settle_left(volume_id)
        except (OSError, RecordDamaged, VolumeBusy) as cause:
            _log.error("the growth of %s cannot be carried out: %s", self._pool.path_of(volume_id), cause)

    def settle_left(self, volume_id: str) -> None:
        """Finish it for one volume. Idempotent.

        Raises: VolumeBusy while somebody has its image open; RecordDamaged; OSError.
        """
        if not self._has_log(volume_id):
            return
        image_fd = os.open(f"{volume_id}/{IMAGE}", _WRITE, dir_fd=self._pool.volumes_fd)
        try:
            with self._attachments.undisturbed():
                is_held = lease.is_open_elsewhere(image_fd)
            if is_held:
                raise VolumeBusy(
                    volume_id, "its growth has to be finished, and its image is open elsewhere; unmount or close it"
                )
            self.settle(volume_id, image_fd)
        finally:
            os.close(image_fd)

    def settle(self, volume_id: str, image_fd: int) -> None:
        """The same with its image, open for writing and by nobody else. Idempotent.

        Raises: RecordDamaged; OSError.
        """
        if not self._has_log(volume_id):
            return
        with self._settling, self._object(volume_id) as object_fd:
            if _is_outdated(object_fd, image_fd):
                _log.error(
                    "%s: what was to be written into it when it grew is dropped: it was mounted or checked since, by "
                    "another program or an earlier version",
                    self._pool.path_of(volume_id),
                )
                redo.drop(object_fd, REDO)
            redo.carry_out(object_fd, REDO, image_fd)

    def _has_log(self, volume_id: str) -> bool:
        try:
            os.stat(f"{volume_id}/{REDO}", dir_fd=self._pool.volumes_fd, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def _adopt(self) -> None:
        """Put the logs that an earlier build wrote under `tmp/` beside the images that they belong to."""
        for name in os.listdir(self._pool.tmp_fd):
            volume_id = name.removesuffix(REDO_SUFFIX)
            if volume_id == name:
                continue
            try:
                with self._object(volume_id) as object_fd:
                    os.rename(name, REDO, src_dir_fd=self._pool.tmp_fd, dst_dir_fd=object_fd)
                    os.fsync(object_fd)
                    os.fsync(self._pool.tmp_fd)
            except OSError as cause:
                _log.warning("%s in %s/%s is left there: %s", name, self._pool.directory, TMP, cause)

    def ensure_grown(self, volume: Volume, image_fd: int) -> None:
        """The ext4 takes its whole image, unless the kernel can do that better once it is mounted. Idempotent.

        Raises: GrowthRefused when it cannot, and is as it was; VolumeBusy when it takes too long; VolumeDamaged when it
            is not sound; OSError.
        """
        if not growth.unmounted_ext4_lags(image_fd, volume.capacity_bytes):
            return
        try:
            _check(volume, self._image_path(volume))
            size = ext4_superblock.size(image_fd)
            wanted = min(size.blocks_on(volume.capacity_bytes), size.most_blocks_in_place)
            if wanted > size.blocks:
                self._grow(volume, image_fd, wanted)
        except ToolTimeout as cause:
            raise VolumeBusy(volume.volume_id, f"its filesystem is being grown: {cause.strerror}") from cause
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._copy_path(volume))

    def _grow(self, volume: Volume, image_fd: int, blocks: int) -> None:
        copy_path = self._copy_path(volume)
        try:
            growth.copy_grown_ext4(self._image_path(volume), copy_path, blocks, _SECONDS)
            crash_point("growth.copied")
            with open(copy_path, "rb", buffering=0) as copy, self._object(volume.volume_id) as object_fd:
                redo.write(object_fd, REDO, _differences(copy.fileno(), image_fd))
        except ToolTimeout:
            raise
        except OSError as cause:
            raise GrowthRefused(volume.volume_id, f"a grown copy of its metadata cannot be made: {cause}") from cause
        self.settle(volume.volume_id, image_fd)

    @contextlib.contextmanager
    def _object(self, volume_id: str) -> Iterator[int]:
        object_fd = durable.open_directory(volume_id, dir_fd=self._pool.volumes_fd)
        try:
            yield object_fd
        finally:
            os.close(object_fd)

    def _image_path(self, volume: Volume) -> str:
        return f"{self._pool.path_of(volume.volume_id)}/{IMAGE}"

    def _copy_path(self, volume: Volume) -> str:
        return f"{self._pool.directory}/{TMP}/{volume.volume_id}.metadata"


def _is_outdated(object_fd: int, image_fd: int) -> bool:
    """Whether the ext4 was used since its log was written: that can only be by somebody who did not know of it."""
    logged = redo.first(object_fd, REDO)
    if logged is None or logged[0] != 0:
        return False
    begin, end = ext4_superblock.OFFSET, ext4_superblock.OFFSET + ext4_superblock.BYTES
    held = os.pread(image_fd, ext4_superblock.BYTES, ext4_superblock.OFFSET)
    return ext4_superblock.last_used(logged[1][begin:end]) != ext4_superblock.last_used(held)


def _check(volume: Volume, image_path: str) -> None:
    try:
        filesystem.check_ext4(image_path, _SECONDS, thoroughly=True)
    except ToolError as cause:
        raise VolumeDamaged(
            volume.volume_id, f"its filesystem has errors: {cause.strerror}; repair it by e2fsck -f {image_path}"
        ) from cause


def _differences(copy_fd: int, image_fd: int) -> Iterator[redo.Block]:
    """What the copy holds and the image does not, by offset; a hole of the copy says nothing."""
    for start, end in _data(copy_fd):
        for offset in range(start, end, _STRIDE):
            length = min(_STRIDE, end - offset)
            wanted, held = os.pread(copy_fd, length, offset), os.pread(image_fd, length, offset)
            if wanted != held:
                yield from _differing_blocks(offset, wanted, held)


def _differing_blocks(offset: int, wanted: bytes, held: bytes) -> Iterator[redo.Block]:
    for at in range(0, len(wanted), _BLOCK):
        block = wanted[at : at + _BLOCK]
        if block != held[at : at + _BLOCK]:
            yield offset + at, block


def _data(fd: int) -> Iterator[tuple[int, int]]:
    """Where a file has data, in whole blocks."""
    end, size = 0, os.fstat(fd).st_size
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
        except OSError:
            return
        end = os.lseek(fd, start, os.SEEK_HOLE)
        yield start // _BLOCK * _BLOCK, end
