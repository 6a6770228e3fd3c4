"""A btrfs that was extended to less than the kernel lets it grow to, made large enough to grow; knows no request.

Builds before 0.1.0 extended a btrfs of less than 256 MiB to any size below that, where its filesystem cannot follow: it
stayed small in an image that had grown. Such a volume, and copies of it, are given what its filesystem needs.
"""

from __future__ import annotations

import logging

from csi_driver.domain import sizes
from csi_driver.domain.extension import Extension
from csi_driver.domain.pools import Pool, Pools
from csi_driver.errors import CapacityOutOfRange, HostvolError
from csi_driver.linux import btrfs_superblock
from csi_driver.model import Volume

_log = logging.getLogger("hostvol.growth")
_FS_TYPE = "btrfs"


def made_growable(pools: Pools, extension: Extension, volume: Volume, limit_bytes: int = 0) -> Volume:
    """The volume, with a size that its filesystem can take; as it was where there is no room for that.

    The caller holds the volume's claim. A crash leaves an intent, as with every extension. Idempotent.

    Raises: CapacityOutOfRange when that size is above `limit_bytes` (0: no limit).
    """
    least = sizes.grown_minimum_bytes(volume.volume_type, volume.access_type, volume.fs_type)
    if volume.fs_type != _FS_TYPE or volume.capacity_bytes >= least:
        return volume
    pool = pools.of(volume)
    try:
        if _filesystem_bytes(pool, volume) >= volume.capacity_bytes:
            return volume
    except (HostvolError, OSError) as cause:
        return _kept(volume, cause)
    if 0 < limit_bytes < least:
        raise CapacityOutOfRange(
            f"capacity_range.limit_bytes: {limit_bytes} is too small; the btrfs of volume {volume.volume_id} is "
            f"smaller than it, and the kernel lets it grow to no less than {least} bytes"
        )
    try:
        pool.promise(lambda: pool.ledger.admit_growth(volume, least, pool.overcommit))
        extended = extension.extend(volume, least)
    except (HostvolError, OSError) as cause:
        return _kept(volume, cause)
    _log.info("volume %s has %d bytes now: its btrfs can grow to no less", volume.volume_id, least)
    return extended


def _kept(volume: Volume, cause: Exception) -> Volume:
    _log.warning("volume %s keeps a btrfs that is smaller than it: %s", volume.volume_id, cause)
    return volume


def _filesystem_bytes(pool: Pool, volume: Volume) -> int:
    with pool.attachments.read(volume.volume_id) as image_fd:
        return btrfs_superblock.size_bytes(image_fd)
