"""The content of a volume as of now: flushed, promised to be written over, and shared; knows no request.

A cut of an image needs no freeze: what was written before is synced, and sharing its blocks holds the file's lock, so
that it is of one instant, as after a power cut. The filesystem inside replays its log when the copy is mounted.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Final

from csi_driver.domain.backend import Backend
from csi_driver.domain.contents import Contents
from csi_driver.domain.freezing import Mounted
from csi_driver.domain.pools import Pool
from csi_driver.errors import SourceBusy, VolumeBusy
from csi_driver.linux import mountinfo, sync
from csi_driver.model import Volume, VolumeType

_log = logging.getLogger("hostvol.snapshots")
_STALL_BUDGET_SECONDS: Final = 0.5
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def flush(pool: Pool, volume: Volume) -> None:
    """Everything that was written to the volume before is in its content.

    Raises: VolumeBusy when its filesystem is mounted where this driver cannot see it; OSError: EIO of an earlier write.
    """
    backend = pool.backend(volume)
    if volume.volume_type is VolumeType.DIRECTORY or volume.is_block:
        pool.contents(volume.volume_type).flush(volume)
    elif backend.is_attached(volume) and not _synced(volume, backend) and backend.is_attached(volume):
        raise VolumeBusy(volume.volume_id, "its filesystem is attached, but not mounted where the driver sees it")


def admit(pool: Pool, volume: Volume) -> None:
    """Promise that all of the volume can be written over once its blocks are shared.

    Raises: InsufficientForCut.
    """
    pool.promise(lambda: pool.ledger.admit_cut(volume, pool.overcommit))


def share(pool: Pool, volume: Volume, content_fd: int, object_fd: int) -> float:
    """The volume's content beside the record of a snapshot; returns the time of the cut."""
    contents = pool.contents(volume.volume_type)
    expected = contents.sharing_cost(content_fd)
    if expected.seconds > _STALL_BUDGET_SECONDS:
        _log.warning(
            "volume %s lies in %d extents or more: its writes wait about %.1f s for this cut; preallocate it and "
            "write it once in sequence, or defragment it",
            volume.volume_id,
            *expected,
        )
    cut_at, began = time.time(), time.monotonic()
    contents.share(content_fd, volume.capacity_bytes, object_fd, expected)
    pool.last_cut.extents, pool.last_cut.seconds = expected.extents, time.monotonic() - began
    return cut_at


def require_at_rest(pool: Pool, contents: Contents, volume: Volume, content_fd: int) -> None:
    """Refuse to copy beside a writer: such a copy is torn, and no fsck notices.

    Raises: SourceBusy naming the remedy.
    """
    if not contents.is_at_rest(volume, content_fd):
        raise SourceBusy(
            volume.volume_id,
            pool.name,
            "it is staged, or something has it open",
            "stop what uses it, or keep such volumes in a pool on XFS or btrfs, where a snapshot takes no time"
            if not contents.can_share
            else "stop what uses it, or make the copy in the volume's own pool",
        )


def open_mounted(volume: Volume, backend: Backend) -> Mounted | None:
    """The volume's filesystem where this driver can see it mounted; its descriptor is the caller's."""
    for entry in backend.mounts(volume):
        try:
            mounted_fd = os.open(entry.target, _OPEN)
        except OSError:
            continue
        # What is seen at the path may be another mount on top.
        if backend.shows(volume, mountinfo.observe(mounted_fd)):
            return Mounted(volume.volume_id, entry.target, entry.source, mounted_fd)
        os.close(mounted_fd)
    return None


def _synced(volume: Volume, backend: Backend) -> bool:
    mounted = open_mounted(volume, backend)
    if mounted is None:
        return False
    try:
        sync.sync_filesystem(mounted.fd)
    finally:
        os.close(mounted.fd)
    return True
