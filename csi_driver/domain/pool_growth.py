"""Pools in backing files made larger while they are served; knows neither file nor device."""

from __future__ import annotations

from csi_driver.domain.claims import Claims
from csi_driver.domain.pools import Pool, Pools
from csi_driver.errors import InvalidField, PoolNotGrowable


class PoolGrowth:
    """Grows the pools of one node, one operation a pool."""

    def __init__(self, pools: Pools, claims: Claims) -> None:
        self._pools = pools
        self._claims = claims

    def grow(self, name: str, size_bytes: int, deadline: float | None) -> Pool:
        """The backing file of the pool has at least this size, and its filesystem too. Idempotent.

        Raises: InvalidField; NotReady when the pool is not served; PoolNotGrowable when it has no backing file;
            InsufficientCapacity; PoolRefused; OperationPending; OSError.
        """
        if not self._pools.has(name):
            raise InvalidField("pool", name, f"one of {', '.join(sorted(self._pools.opened)) or 'none'}")
        pool = self._pools.get(name)
        return self._claims.run(("growth of pool", name), size_bytes, deadline, lambda: self._grow(pool, size_bytes))

    def _grow(self, pool: Pool, size_bytes: int) -> Pool:
        if pool.backing is None:
            raise PoolNotGrowable(pool.name)
        more_bytes = size_bytes - pool.backing.size_bytes
        below = self._below(pool)
        if below is None or more_bytes <= 0:
            pool.backing.grow(size_bytes)
            return pool
        # What volumes of a pool beside the file were promised is not the file's to take.
        promise = f"backing file of pool {pool.name}"
        below.ledger.admit_copy(promise, below.name, more_bytes, below.overcommit)
        try:
            pool.backing.grow(size_bytes)
        finally:
            below.ledger.copied(promise, 0)
        return pool

    def _below(self, pool: Pool) -> Pool | None:
        """A pool on the filesystem that the backing file is on."""
        assert pool.backing is not None
        outer = pool.backing.outer_device
        return next((other for other in self._pools.opened.values() if other.store.device == outer), None)
