"""Mounted volumes copied where blocks cannot be shared: frozen for the whole copy, if that is short; knows no request.

A copy beside a writer is torn, and no fsck notices. So the writers wait, which is worth it only where it is short: what
a copy will take is estimated from how fast the pool's latest ones were, and one that takes longer is given up.
"""

from __future__ import annotations

import logging
import os
from typing import Final

from csi_driver.domain import cuts
from csi_driver.domain.freezing import BUDGET_SECONDS, Freezing, Mounted
from csi_driver.domain.pools import Pool
from csi_driver.errors import FreezeExpired, SourceBusy
from csi_driver.faults import crash_point
from csi_driver.linux import reflink, sync
from csi_driver.model import MIB, Volume

_log = logging.getLogger("hostvol.copies")
# Of the budget, which is no aim; a disk may be slower the next time.
_AT_MOST_SECONDS: Final = 1.0
# Rates below this many bytes are those of a handful of system calls.
_TELLING_BYTES: Final = 8 * MIB


class Stills:
    """Copies of mounted images, each of one instant."""

    def __init__(self, freezing: Freezing) -> None:
        self._freezing = freezing

    @staticmethod
    def is_wanted(pool: Pool, volume: Volume) -> bool:
        """Whether the volume can be copied only while it is frozen: mounted, in a pool that cannot share blocks."""
        contents = pool.contents(volume.volume_type)
        return volume.has_filesystem and not contents.can_share and pool.backend(volume).is_attached(volume)

    def copy(self, pool: Pool, volume: Volume, content_fd: int) -> int:
        """A descriptor, the caller's, of a file without a name that holds all that was written before.

        Raises: SourceBusy when it would take, or has taken, longer than the volume may be frozen; VolumeBusy;
            FreezeBroken; OSError: ENOSPC.
        """
        mounted = cuts.open_mounted(volume, pool.backend(volume))
        if mounted is None:
            raise SourceBusy(volume.volume_id, pool.name, "something has it open", "stop what uses it")
        try:
            sync.sync_filesystem(mounted.fd)
            size_bytes = pool.contents(volume.volume_type).size_bytes(content_fd)
            if size_bytes > pool.copied_per_second * _AT_MOST_SECONDS:
                raise _too_long(pool, volume, size_bytes)
            crash_point("still.flushed")
            return self._copy(pool, volume, mounted, content_fd)
        finally:
            os.close(mounted.fd)

    def _copy(self, pool: Pool, volume: Volume, mounted: Mounted, content_fd: int) -> int:
        copied_bytes = 0
        still_fd = -1
        try:
            with self._freezing.frozen([mounted]) as freeze:

                def progress(copied: int) -> None:
                    nonlocal copied_bytes
                    copied_bytes = copied
                    freeze.check()

                still_fd = reflink.copy_unnamed(content_fd, pool.store.tmp_fd, progress=progress)
                seconds = freeze.seconds
                crash_point("still.copied")
        except FreezeExpired as cause:
            _close(still_fd)
            pool.copied_per_second = max(1.0, min(pool.copied_per_second, copied_bytes) / 2)
            raise _too_long(pool, volume, copied_bytes) from cause
        except BaseException:
            _close(still_fd)
            raise
        if copied_bytes >= _TELLING_BYTES:
            pool.copied_per_second = copied_bytes / seconds
        _log.info("volume %s was frozen for %.0f ms to copy %d bytes", volume.volume_id, seconds * 1000, copied_bytes)
        return still_fd


def _close(fd: int) -> None:
    if fd >= 0:
        os.close(fd)


def _too_long(pool: Pool, volume: Volume, size_bytes: int) -> SourceBusy:
    return SourceBusy(
        volume.volume_id,
        pool.name,
        f"it is mounted, and to copy {size_bytes} bytes takes longer than it may be frozen ({BUDGET_SECONDS:.0f} s)",
        "stop what uses it, or keep such volumes in a pool on XFS or btrfs, where a snapshot takes no time",
    )
