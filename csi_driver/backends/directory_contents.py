"""The content of directories: shared, copied, and given a limit of its own; knows no record and no mount.

Shared on btrfs: one snapshot of a subvolume, of one instant. Elsewhere: a walk, of one instant only within each file.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Generator
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Final

from csi_driver.backends import increments
from csi_driver.backends.directory import DATA, DirectoryBackend
from csi_driver.backends.increments import Base, Onward
from csi_driver.errors import CapacityOutOfRange, VolumeDamaged
from csi_driver.faults import crash_point
from csi_driver.linux import btrfs, btrfs_snapshots, filesystem, reflink, sync, tree_copy, tree_mark
from csi_driver.linux.reflink import Cost
from csi_driver.model import MIB, QuotaPolicy, Volume
from csi_driver.store import durable
from csi_driver.store.pool import PoolDirectory

if TYPE_CHECKING:
    from csi_driver.streams.frames import Reader
    from csi_driver.streams.header import Header
    from csi_driver.streams.journal import Journal

_SOME_ROOM: Final = MIB


class DirectoryContents:
    """The directories of one pool as sources and targets of copies."""

    def __init__(self, pool: PoolDirectory, backend: DirectoryBackend, can_reflink: Callable[[], bool]) -> None:
        self._pool = pool
        self._backend = backend
        self._can_reflink = can_reflink

    @property
    def entry(self) -> str:
        return DATA

    @property
    def can_share(self) -> bool:
        """Whether a copy within the pool takes no space for what the files hold."""
        return self._can_reflink()

    def open(self, room_fd: int, object_id: str) -> int:
        """A descriptor, the caller's, of an object's directory.

        Raises: VolumeDamaged when it is missing.
        """
        try:
            return durable.open_directory(f"{object_id}/{DATA}", dir_fd=room_fd)
        except FileNotFoundError as cause:
            raise VolumeDamaged(object_id, "its directory is missing") from cause

    def is_at_rest(self, volume: Volume, content_fd: int) -> bool:
        """Whether the directory is mounted nowhere."""
        return not self._backend.mounts(volume)

    def flush(self, volume: Volume) -> None:
        """Nothing to do: files that share blocks are written out by the kernel first."""

    def sharing_cost(self, content_fd: int) -> Cost:
        """Not known without looking at every file; nobody waits for the whole of it."""
        return Cost(0, 0.0)

    def size_bytes(self, content_fd: int) -> int:
        """What a copy will have to write, as far as that is known without looking at every file: nothing."""
        return 0

    def share(self, content_fd: int, size_bytes: int, object_fd: int, expected: Cost | None = None) -> None:
        """The directory again beside the record, its files sharing all blocks with the content; durable.

        Raises: OSError: EXDEV where the two cannot share; as tree_copy.copy_tree.
        """
        if self._is_whole_subvolume(content_fd):
            btrfs_snapshots.snapshot(content_fd, object_fd, DATA, read_only=True)
            crash_point("directory.shared")
            return
        self._fill(content_fd, object_fd, _share, lambda _: None)

    def copy(self, content_fd: int, size_bytes: int, object_fd: int, progress: Callable[[int], None]) -> None:
        """The directory again beside the record; durable."""
        self._fill(content_fd, object_fd, _copy, progress)

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
        """The directory of a volume that is being built, with its limit and the content; durable.

        Raises: CapacityOutOfRange when the content is more than the volume's size; OSError as `share` and `copy`.
        """
        try:
            if share and self._is_whole_subvolume(content_fd):
                btrfs_snapshots.snapshot(content_fd, object_fd, DATA, read_only=False)
                crash_point("directory.shared")
                self._backend.limit(volume, object_fd)
            else:
                # The limit goes first: what is made in the directory is of its project then.
                self._backend.build(volume, object_fd)
                self._fill_made(content_fd, object_fd, _share if share else _copy, progress)
        except OSError as cause:
            if self._is_limit(volume, cause):
                raise _too_large(volume) from cause
            raise
        # Whoever has CAP_SYS_RESOURCE is held by no quota of ext4, and a snapshot of a subvolume by none at all.
        if self._backend.used_in(volume, object_fd) > volume.capacity_bytes:
            raise _too_large(volume)

    def sent(self, header: Header, content_fd: int) -> Generator[bytes]:
        """The directory as a stream.

        Raises: OSError: EIO; as tree_copy.copy_tree for what cannot be read.
        """
        from csi_driver.streams import trees  # noqa: PLC0415 - most nodes never do this

        yield from trees.stream(header, content_fd)

    def received(
        self,
        volume: Volume,
        stream: Reader,
        object_fd: int,
        progress: Callable[[int], None],
        base: Base | None = None,
    ) -> str:
        """The directory of a volume that is being built, with its limit and the content of a stream; durable.

        Returns the content_id of what was applied last.

        Raises: StreamDamaged; CapacityOutOfRange when the content is more than the volume's size; OSError.
        """
        try:
            self._begin(volume, stream.journal, object_fd)
            data_fd = durable.open_directory(DATA, dir_fd=object_fd)
            try:
                last = _received(volume, stream, data_fd, Onward(progress), base)
                sync.sync_filesystem(data_fd)
            finally:
                os.close(data_fd)
            if stream.journal is not None:
                stream.journal.drop(object_fd)
        except OSError as cause:
            if self._is_limit(volume, cause):
                raise _too_large(volume) from cause
            raise
        if self._backend.used_in(volume, object_fd) > volume.capacity_bytes:
            raise _too_large(volume)
        return last.header.content_id

    def _begin(self, volume: Volume, journal: Journal | None, object_fd: int) -> None:
        """The directory with its limit; again, when another process had begun it."""
        if journal is not None and journal.is_resumed:
            self._backend.limit(volume, object_fd)
            return
        self._backend.build(volume, object_fd)
        if journal is not None:
            journal.place(object_fd)

    def mark(self, content_fd: int) -> str:
        """A sum over all that is in the directory; see `tree_mark`."""
        return tree_mark.mark(content_fd)

    def still(self, volume: Volume, content_fd: int, expected: Cost | None = None) -> int | None:
        """Nothing: a directory that does not change is made by a snapshot of it."""
        return None

    def _is_whole_subvolume(self, content_fd: int) -> bool:
        """Whether one snapshot holds all of the content: subvolumes inside would be empty in it."""
        return btrfs.is_subvolume(content_fd) and not btrfs_snapshots.holds_subvolumes(content_fd)

    def _is_limit(self, volume: Volume, cause: OSError) -> bool:
        """Whether it was the directory's own limit; XFS says of a project's that there is no space."""
        if volume.parameters.quota is QuotaPolicy.NONE:
            return False
        if cause.errno == errno.ENOSPC:
            return filesystem.space(self._pool.root_fd).available_bytes > _SOME_ROOM
        return cause.errno == errno.EDQUOT

    def _fill(
        self, content_fd: int, object_fd: int, copy_file: tree_copy.CopyFile, progress: Callable[[int], None]
    ) -> None:
        if btrfs.is_btrfs(object_fd):
            btrfs.create_subvolume(object_fd, DATA)
        else:
            os.mkdir(DATA, 0o700, dir_fd=object_fd)
        crash_point("directory.copy_made")
        self._fill_made(content_fd, object_fd, copy_file, progress)

    @staticmethod
    def _fill_made(
        content_fd: int, object_fd: int, copy_file: tree_copy.CopyFile, progress: Callable[[int], None]
    ) -> None:
        data_fd = durable.open_directory(DATA, dir_fd=object_fd)
        try:
            tree_copy.copy_tree(content_fd, data_fd, copy_file, progress=progress)
            crash_point("directory.filled")
            # One sync for all: an fsync of each of ten thousand files takes minutes.
            sync.sync_filesystem(data_fd)
        finally:
            os.close(data_fd)


def _received(volume: Volume, stream: Reader, data_fd: int, progress: Onward, base: Base | None) -> Reader:
    """Fill the directory with what the stream has and those behind it; returns the last of them."""
    from csi_driver.streams import bases, tree_building  # noqa: PLC0415 - most nodes never do this

    with ExitStack() as opened:
        kept = None if base is None else bases.Kept(base.content_fd, share=base.share)
        if kept is not None:
            opened.callback(kept.close)
        tree_building.receive(stream, data_fd, progress=progress, base=kept, journal=stream.journal)
    crash_point("directory.received")
    last = stream
    for last in increments.following(volume, stream, progress):
        with closing(bases.Consumed(data_fd)) as consumed:
            crash_point("directory.following")
            tree_building.receive(last, data_fd, progress=progress, base=consumed)
        crash_point("directory.followed")
    return last


def _share(source_fd: int, target_fd: int, progress: Callable[[int], None]) -> int:
    try:
        reflink.clone_file(source_fd, target_fd)
    except OSError as error:
        # On btrfs a file that is written in place shares blocks only with one of its kind.
        if error.errno != errno.EINVAL or not btrfs.is_btrfs(target_fd):
            raise
        btrfs.set_nocow(target_fd)
        reflink.clone_file(source_fd, target_fd)
    return 0


def _copy(source_fd: int, target_fd: int, progress: Callable[[int], None]) -> int:
    return reflink.copy_sparse(source_fd, target_fd, progress=progress)


def _too_large(volume: Volume) -> CapacityOutOfRange:
    return CapacityOutOfRange(
        f"capacity_range.required_bytes: {volume.capacity_bytes} is less than what the source holds; ask for more"
    )
