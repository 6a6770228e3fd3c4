"""How large a volume of some kind could be now; never more than a create would be granted."""

from __future__ import annotations

from dataclasses import dataclass

from csi_driver.backends.directory import QuotaKind
from csi_driver.domain import sizes
from csi_driver.domain.pools import Pool, Pools
from csi_driver.model import AccessType, Provisioning, QuotaPolicy, VolumeParameters, VolumeType


@dataclass(frozen=True, slots=True)
class Capacity:
    """Bytes that can be granted, and the least and the largest that one volume may have."""

    available_bytes: int
    minimum_bytes: int
    maximum_bytes: int


def ask(pools: Pools, access_type: AccessType, fs_type: str, values: VolumeParameters) -> Capacity:
    """The capacity of the pool that the parameters name, for the kind of volume that they describe.

    Nothing where the node has no such pool, or does not serve it now, or only for reading.
    """
    kind = (values.volume_type, access_type, fs_type)
    minimum = sizes.minimum_bytes(*kind)
    pool = pools.opened.get(values.pool)
    if pool is None or pool.is_read_only:
        # A class may name a pool that only other nodes have. In one that is not served nothing can be created either,
        # and a scheduler that hears an error goes on with the latest number that it knows.
        return Capacity(0, minimum, 0)
    available = _grantable(pool, values)
    if available < minimum:
        available = 0
    return Capacity(available, minimum, min(available, sizes.maximum_bytes(*kind)))


def _grantable(pool: Pool, values: VolumeParameters) -> int:
    if pool.allowed_retention(values.retention_seconds) < values.retention_seconds:
        # Refused, whatever its size.
        return 0
    if values.volume_type is VolumeType.DIRECTORY and values.quota is QuotaPolicy.NONE:
        # Nothing is promised to such a volume; what it could fill now is the honest answer.
        space = pool.ledger.space()
        return max(0, space.available_bytes - pool.ledger.reserve_bytes(space))
    if values.volume_type is VolumeType.DIRECTORY and pool.quota is QuotaKind.NONE:
        # Refused, whatever its size: the filesystem enforces none.
        return 0
    return pool.grantable_bytes(thick=values.provisioning is Provisioning.THICK)
