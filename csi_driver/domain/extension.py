"""A live volume's size changed on disk: intent, effect, record; knows no request, and asks nobody whether it may."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import ExitStack

from csi_driver.domain.catalogue import Catalogue
from csi_driver.domain.live_records import LiveRecords
from csi_driver.domain.pools import Pool, Pools
from csi_driver.errors import HostvolError, UndoFailed
from csi_driver.faults import crash_point
from csi_driver.model import Volume

_log = logging.getLogger("hostvol.growth")


class Extension:
    """Extends volumes; the caller holds the claim of the volume, or nobody knows the volume yet."""

    def __init__(self, pools: Pools, catalogue: Catalogue) -> None:
        self._pools = pools
        self._records = LiveRecords(catalogue)

    def extend(self, volume: Volume, to_bytes: int) -> Volume:
        """The volume holds `to_bytes`, durably, when this returns; whoever uses it sees that only after `Backend.grow`.

        Whatever fails is taken back; a crash at any point leaves an intent, which `settle` carries out.

        Raises: UndoFailed when it can be neither finished nor taken back; whatever the backend raises.
        """
        pool = self._pools.of(volume)
        intended = dataclasses.replace(volume, growing_to_bytes=to_bytes)
        with ExitStack() as undo:
            undo.callback(self._undo, pool, intended)
            self._records.remember(pool, intended)
            crash_point("expand.intended")
            extended = self._carry_out(pool, intended)
            undo.pop_all()
        return extended

    def settle(self, volume: Volume) -> Volume:
        """What an earlier process intended is carried out, or taken back where it cannot be. Idempotent.

        Raises: UndoFailed: the intent stays.
        """
        if not volume.growing_to_bytes:
            return volume
        pool = self._pools.of(volume)
        try:
            with ExitStack() as undo:
                undo.callback(self._undo, pool, volume)
                extended = self._carry_out(pool, volume)
                undo.pop_all()
        except UndoFailed:
            raise
        except (HostvolError, OSError) as cause:
            _log.warning("volume %s: its expansion was taken back: %s", volume.volume_id, cause)
            return dataclasses.replace(volume, growing_to_bytes=0)
        return extended

    def _carry_out(self, pool: Pool, intended: Volume) -> Volume:
        extended = dataclasses.replace(intended, capacity_bytes=intended.growing_to_bytes, growing_to_bytes=0)
        pool.backend(intended).extend(intended, intended.growing_to_bytes)
        crash_point("expand.extended")
        self._records.remember(pool, extended)
        crash_point("expand.recorded")
        pool.ledger.resize(extended, extended.capacity_bytes - intended.capacity_bytes if extended.is_thick else 0)
        return extended

    def _undo(self, pool: Pool, intended: Volume) -> None:
        before = dataclasses.replace(intended, growing_to_bytes=0)
        try:
            pool.backend(before).retract(before)
            self._records.recall(pool, before)
        except (HostvolError, OSError) as cause:
            self._records.keep(intended)
            raise UndoFailed(
                f"volume {intended.volume_id}: its expansion to {intended.growing_to_bytes} bytes could be neither "
                f"finished nor taken back ({cause}); repeat the call"
            ) from cause
        pool.ledger.resize(before)
