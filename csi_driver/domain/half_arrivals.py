"""Volumes whose content has come from another node in part; knows neither the way nor the bytes.

Each lies under `tmp/` with its record and a journal of what has come, and its space stays promised. The repeated create
goes on with it, whichever process it finds; what nobody asks for again is cleared after a quarter of an hour.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass
from functools import partial

from csi_driver.backends import removal
from csi_driver.domain.claims import Claims
from csi_driver.domain.pools import Pool
from csi_driver.domain.transfers import KEPT_SECONDS
from csi_driver.errors import OperationPending, RecordDamaged
from csi_driver.faults import crash_point
from csi_driver.model import Volume
from csi_driver.store import records

_log = logging.getLogger("hostvol.transfers")


@dataclass(frozen=True, slots=True)
class HalfArrival:
    """One of them. `since`: when it came to rest (time.monotonic())."""

    pool: Pool
    volume: Volume
    since: float

    def fits(self, planned: Volume) -> bool:
        """Whether it is what is asked for now."""
        own = self.volume
        identified = dataclasses.replace(
            planned,
            volume_id=own.volume_id,
            fs_uuid=own.fs_uuid,
            project_id=own.project_id,
            created_at=own.created_at,
        )
        return identified == own


class HalfArrivals:
    """All of this node, by the names of their volumes."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._all: dict[str, HalfArrival] = {}

    def load(self, pool: Pool) -> None:
        """Find what an earlier process left in the pool; what cannot be used is cleared."""
        for directory in pool.store.arrived_at_open:
            try:
                where = f"{pool.store.building_path(directory)}/{records.RECORD}"
                volume = records.read_volume(pool.store.tmp_fd, directory, where)
                if volume.pool != pool.name or volume.name in self._all:
                    raise RecordDamaged(where, "it belongs to another pool, or there is another one of its name")
            except RecordDamaged as damage:
                _log.warning("what has come of %s is given up: %s", directory, damage)
                pool.clear_later(pool.store.tmp_fd, directory)
            else:
                pool.ledger.settle(volume, 0)
                self.keep(pool, volume)

    def keep(self, pool: Pool, volume: Volume) -> None:
        """What has come of the volume stays, as does the promise of its space, until it is asked for again."""
        self._all[volume.name] = HalfArrival(pool, volume, time.monotonic())

    def get(self, name: str) -> HalfArrival | None:
        """What has come of the volume of that name; the caller has claimed the name."""
        return self._all.get(name)

    def has(self, volume: Volume) -> bool:
        """Whether it is kept."""
        found = self._all.get(volume.name)
        return found is not None and found.volume.volume_id == volume.volume_id

    def forget(self, volume: Volume) -> None:
        """It is whole now, or cleared by the caller. Idempotent."""
        if self.has(volume):
            del self._all[volume.name]

    def drop(self, half: HalfArrival) -> None:
        """Nothing is left of it, nor of its promise. Idempotent; the caller has claimed its name."""
        if not self.has(half.volume):
            return
        pool, volume = half.pool, half.volume
        try:
            removal.clear(pool.store.tmp_fd, volume.volume_id)
        except OSError:
            pool.clear_later(pool.store.tmp_fd, volume.volume_id)
        self.forget(volume)
        pool.ledger.forget(volume)
        crash_point("arrival.dropped")

    def delete(self, volume_id: str) -> None:
        """Nothing is left of the one that would have become this volume, if there is one. Idempotent.

        Raises: OperationPending while its content is on its way.
        """
        for half in list(self._all.values()):
            if half.volume.volume_id == volume_id:
                self._claims.run(("volume name", half.volume.name), "clear", None, partial(self.drop, half))

    def tend(self, pool: Pool) -> None:
        """Clear those of the pool that nobody has asked for in time."""
        for half in list(self._all.values()):
            if half.pool is not pool or time.monotonic() < half.since + KEPT_SECONDS:
                continue
            try:
                self._claims.run(("volume name", half.volume.name), "lapse", None, partial(self._lapse, half))
            except OperationPending:
                continue

    def _lapse(self, half: HalfArrival) -> None:
        found = self._all.get(half.volume.name)
        if found is None or time.monotonic() < found.since + KEPT_SECONDS:
            return
        _log.warning("volume %s: nobody asks for it any more, what has come of it is cleared", half.volume.name)
        self.drop(found)
