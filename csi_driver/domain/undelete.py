"""What lies in the trash brought back with its id, and what a rollback replaced put in its place again.

Claim the entry, the name and the id -> is the id free, and the name? -> promise what it lacks -> rename into its room.
Where the id is a living volume's that was rolled back, the two contents change places in one rename, so that there is
always one of them, whole, and the other in the trash.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable

from csi_driver.backends import remains
from csi_driver.domain.catalogue import Catalogue, SnapshotCatalogue
from csi_driver.domain.claims import Claims
from csi_driver.domain.mounts import VolumeMounts
from csi_driver.domain.trash import Entry, Trash
from csi_driver.errors import RecordDamaged, StillLive, UndoFailed, VolumeInUse
from csi_driver.faults import crash_point
from csi_driver.model import Snapshot, Volume
from csi_driver.store import durable, records

# What an earlier operation intended with a volume is finished or taken back. Raises: UndoFailed.
Settle = Callable[[Volume], Volume]


class Undelete:
    """The way back from the trash."""

    def __init__(
        self,
        mounts: VolumeMounts,
        volumes: Catalogue,
        snapshots: SnapshotCatalogue,
        claims: Claims,
        settle: Settle,
        *,
        trash: Trash,
    ) -> None:
        self._mounts = mounts
        self._volumes = volumes
        self._snapshots = snapshots
        self._claims = claims
        self._settle = settle
        self._trash = trash

    def restore(self, reference: str, deadline: float | None) -> Volume | Snapshot:
        """The object of the trash entry that is called so is served again, with its id and its name.

        Raises: NotInTrash; StillLive; InsufficientCapacity; VolumeInUse where it takes a living volume's place;
            RecordDamaged; OperationPending.
        """
        entry = self._trash.find(reference)
        if entry.held is None:
            raise RecordDamaged(entry.path, entry.damage)
        kind = "snapshot" if isinstance(entry.held, Snapshot) else "volume"

        def claimed() -> Volume | Snapshot:
            return self._claims.run((kind, entry.object_id), "undelete", deadline, lambda: self._restore(entry.name))

        def named() -> Volume | Snapshot:
            assert entry.held is not None
            return self._claims.run((f"{kind} name", entry.held.name), "undelete", deadline, claimed)

        with entry.pool.slot():
            return self._claims.run(("trash", entry.name), "undelete", deadline, named)

    def _restore(self, name: str) -> Volume | Snapshot:
        entry = self._trash.get(name)
        entry.pool.require_writable()
        if isinstance(entry.held, Snapshot):
            return self._restore_snapshot(entry, entry.held)
        assert entry.held is not None
        if entry.is_replaced and self._volumes.has(entry.object_id):
            return self._exchange(entry, entry.held, self._volumes.get(entry.object_id))
        return self._restore_volume(entry, entry.held)

    def _restore_volume(self, entry: Entry, volume: Volume) -> Volume:
        _require_free(entry, self._volumes, volume)
        pool = entry.pool
        own_bytes = self._own_bytes(entry, volume)
        pool.promise(lambda: pool.ledger.admit_return(volume, own_bytes, pool.overcommit))
        try:
            pool.store.undelete(entry.name, volume.volume_id, pool.store.volumes_fd)
        except BaseException:
            pool.ledger.retire(volume, own_bytes)
            raise
        crash_point("undelete.moved")
        pool.unmounted_growth.try_to_settle(volume.volume_id)
        try:
            volume = self._settle(volume)
        finally:
            self._volumes.add(volume)
            self._trash.forget(entry)
        return volume

    def _restore_snapshot(self, entry: Entry, snapshot: Snapshot) -> Snapshot:
        _require_free(entry, self._snapshots, snapshot)
        entry.pool.store.undelete(entry.name, snapshot.snapshot_id, entry.pool.store.snapshots_fd)
        crash_point("undelete.snapshot_moved")
        self._snapshots.add(snapshot)
        self._trash.forget(entry)
        return snapshot

    def _exchange(self, entry: Entry, before: Volume, live: Volume) -> Volume:
        pool = entry.pool
        require_unused(self._mounts, live)
        live = self._settle(live)
        if live.capacity_bytes > before.capacity_bytes:
            # A volume never becomes smaller: the intent is carried out once it is in its place, or by the next start.
            before = dataclasses.replace(before, growing_to_bytes=live.capacity_bytes)
            self._intend(entry, before)
        own_bytes, leaving = self._own_bytes(entry, before), pool.filesystem.own_bytes(live)
        pool.promise(lambda: pool.ledger.admit_return(before, own_bytes, pool.overcommit, leaving))
        try:
            remains.exchange(pool.store, live.volume_id, entry.name)
        except BaseException:
            pool.ledger.settle(live, 0)
            raise
        crash_point("undelete.exchanged")
        pool.unmounted_growth.try_to_settle(before.volume_id)
        self._volumes.replace(before)
        self._trash.add(pool, entry.name, live, leaving)
        with contextlib.suppress(UndoFailed):
            return self._settle(before)
        return before

    def _own_bytes(self, entry: Entry, volume: Volume) -> int:
        if entry.pool.counts_shared(volume):
            # As it will be measured once it is back.
            return 0
        return remains.own_bytes(entry.pool.store.trash_fd, entry.name)

    @staticmethod
    def _intend(entry: Entry, volume: Volume) -> None:
        object_fd = durable.open_directory(entry.name, dir_fd=entry.pool.store.trash_fd)
        try:
            records.replace_record(object_fd, volume)
        finally:
            os.close(object_fd)
        crash_point("undelete.intended")


def require_unused(mounts: VolumeMounts, volume: Volume) -> None:
    """Refuse to change the content of a volume below its users.

    Raises: VolumeInUse.
    """
    backend = mounts.pools.backend(volume)
    places = sorted({entry.target for entry in backend.mounts(volume)})
    if places or backend.is_attached(volume) or backend.is_held(volume):
        where = ", ".join(places) or "its image is attached or open"
        raise VolumeInUse(volume.volume_id, f"{where}; end what uses it, and let it be unstaged")


def _require_free(entry: Entry, index: Catalogue | SnapshotCatalogue, held: Volume | Snapshot) -> None:
    if index.has(held.object_id):
        raise StillLive(entry.name, f"{held.object_id} is there; delete it first")
    taken = index.named(held.name)
    if taken is not None:
        raise StillLive(entry.name, f"its name {held.name!r} belongs to {taken.object_id} now; delete that one first")
