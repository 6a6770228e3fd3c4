"""What deleted objects leave in the trash, cleared away until nothing is left; knows no volume and no snapshot."""

from __future__ import annotations

from csi_driver.backends import removal
from csi_driver.domain.pools import Pool
from csi_driver.errors import RemainsHeld


class Disposal:
    """The remains of deleted objects by id. The caller holds the object's claim."""

    def __init__(self) -> None:
        self._remains: dict[str, tuple[Pool, str]] = {}

    def take(self, object_id: str, pool: Pool, trash_name: str) -> None:
        """The object lies in the pool's trash under that name."""
        self._remains[object_id] = (pool, trash_name)

    def clear(self, object_id: str) -> None:
        """Nothing of the object is left, as far as this process knows. Idempotent.

        Raises: RemainsHeld; repeated, it goes on where it was stopped.
        """
        remains = self._remains.get(object_id)
        if remains is None:
            return
        pool, trash_name = remains
        try:
            removal.clear(pool.store.trash_fd, trash_name)
        except OSError as cause:
            raise RemainsHeld(object_id, cause) from cause
        self._remains.pop(object_id, None)
