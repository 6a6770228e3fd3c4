"""Pools in backing files made larger while they are served; knows neither file nor device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

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
        with room_below(self._pools, pool.name, pool.backing.outer_device, more_bytes):
            pool.backing.grow(size_bytes)
        return pool


@contextmanager
def room_below(pools: Pools, name: str, device: int, more_bytes: int) -> Iterator[None]:
    """The backing file of pool `name`, on the filesystem `device`, may take so many bytes more meanwhile.

    What the volumes of a pool beside the file were promised is not the file's to take.

    Raises: InsufficientCapacity.
    """
    below = next((other for other in pools.opened.values() if other.store.device == device), None)
    if below is None or more_bytes <= 0:
        yield
        return
    promise = f"backing file of pool {name}"
    below.ledger.admit_copy(promise, below.name, more_bytes, below.overcommit)
    try:
        yield
    finally:
        below.ledger.copied(promise, 0)
