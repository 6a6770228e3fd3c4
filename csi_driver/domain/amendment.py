"""A living volume's parameters changed on disk: intent, effect, record; knows no request, and asks nobody."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from contextlib import ExitStack

from csi_driver.domain.catalogue import Catalogue
from csi_driver.domain.live_records import LiveRecords
from csi_driver.domain.pools import Pool, Pools
from csi_driver.errors import HostvolError, UndoFailed
from csi_driver.faults import crash_point
from csi_driver.model import Volume, VolumeParameters

_log = logging.getLogger("hostvol.modification")


class Amendment:
    """Changes parameters; the caller holds the claim of the volume, or nobody knows the volume yet."""

    def __init__(self, pools: Pools, catalogue: Catalogue) -> None:
        self._pools = pools
        self._records = LiveRecords(catalogue)

    def amend(self, volume: Volume, to: VolumeParameters, progress: Callable[[int], None]) -> Volume:
        """The volume has the parameters `to`, durably, when this returns.

        Whatever fails is taken back; a crash at any point leaves an intent, which `settle` takes back. What allocation
        was done stays: it is the volume's, and the repetition goes on from there.

        Raises: UndoFailed when it can be neither finished nor taken back; whatever the backend raises.
        """
        pool = self._pools.of(volume)
        intended = dataclasses.replace(volume, becoming=to)
        with ExitStack() as undo:
            undo.callback(self._undo, pool, intended)
            self._records.remember(pool, intended)
            crash_point("modify.intended")
            pool.backend(intended).change(intended, to, progress)
            crash_point("modify.changed")
            amended = _amended(intended)
            self._records.remember(pool, amended)
            crash_point("modify.recorded")
            undo.pop_all()
        return amended

    def settle(self, volume: Volume) -> Volume:
        """What an earlier process intended is taken back. Idempotent.

        Raises: UndoFailed: the intent stays.
        """
        if volume.becoming is None:
            return volume
        _log.info("volume %s: a change of its parameters was cut short, and is taken back", volume.volume_id)
        self._undo(self._pools.of(volume), volume)
        return dataclasses.replace(volume, becoming=None)

    def _undo(self, pool: Pool, intended: Volume) -> None:
        before = dataclasses.replace(intended, becoming=None)
        try:
            pool.backend(before).restore(before)
            self._records.recall(pool, before)
        except (HostvolError, OSError) as cause:
            self._records.keep(intended)
            raise UndoFailed(
                f"volume {intended.volume_id}: a change of its parameters could be neither finished nor taken back "
                f"({cause}); repeat the call"
            ) from cause


def _amended(intended: Volume) -> Volume:
    parameters, first = intended.becoming or intended.parameters, intended.first_parameters
    return dataclasses.replace(
        intended, parameters=parameters, becoming=None, created_as=None if first == parameters else first
    )
