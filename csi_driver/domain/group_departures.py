"""Group snapshots on their way out: whole or not at all, also after a crash; knows no protocol.

The record says first that the group is leaving: from then on it is not there for anybody, and a start goes on with it.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Sequence

from csi_driver.domain.catalogue import GroupCatalogue, SnapshotCatalogue
from csi_driver.domain.claims import Claims
from csi_driver.domain.disposal import Disposal
from csi_driver.domain.members import check_members
from csi_driver.domain.pools import Pool, Pools
from csi_driver.errors import GroupNotFound, SnapshotNotFound
from csi_driver.faults import crash_point
from csi_driver.model import GroupSnapshot, Snapshot
from csi_driver.store import records


class GroupDepartures:
    """The groups that are being deleted. The caller holds the claim of the group."""

    def __init__(
        self,
        pools: Pools,
        snapshots: SnapshotCatalogue,
        groups: GroupCatalogue,
        claims: Claims,
        retain: Callable[[Pool, Snapshot], None],
    ) -> None:
        """`retain` moves a snapshot into the trash for its retention."""
        self._retain = retain
        self._pools = pools
        self._snapshots = snapshots
        self._groups = groups
        self._claims = claims
        self._disposal = Disposal()
        self._lock = threading.Lock()
        self._leaving: dict[str, GroupSnapshot] = {}

    def delete(self, group_snapshot_id: str, snapshot_ids: Sequence[str], deadline: float | None) -> None:
        """The group and its members are gone. Idempotent, and goes on where an earlier attempt was stopped.

        Raises: InvalidField; OperationPending; NotReady; RemainsHeld; RecordDamaged; OSError.
        """
        try:
            group = self._groups.get(group_snapshot_id)
        except GroupNotFound:
            leaving = self._leaving.get(group_snapshot_id)
            if leaving is not None:
                self._with_claims(list(leaving.snapshot_ids), leaving, deadline, lambda: self.finish(leaving))
            return
        check_members(group, snapshot_ids)
        self._with_claims(list(group.snapshot_ids), group, deadline, lambda: self._delete(group))

    def add(self, group: GroupSnapshot) -> None:
        """A start has found the record of a group that was leaving."""
        with self._lock:
            self._leaving[group.group_snapshot_id] = group

    def waiting(self) -> list[GroupSnapshot]:
        """The groups that are not gone yet."""
        with self._lock:
            return list(self._leaving.values())

    def finish(self, group: GroupSnapshot) -> None:
        """Nothing of a group whose record says that it is leaving is left. Idempotent.

        Raises: NotReady when a member may be in a pool that is not served; RemainsHeld; OSError.
        """
        for snapshot_id in group.snapshot_ids:
            self._discard(snapshot_id)
        self._pools.get(group.pool).store.forget_group(group.group_snapshot_id)
        crash_point("group.forgotten")
        for snapshot_id in group.snapshot_ids:
            self._disposal.clear(snapshot_id)
        crash_point("group.cleared")
        with self._lock:
            self._leaving.pop(group.group_snapshot_id, None)

    def _delete(self, group: GroupSnapshot) -> None:
        for pool in self._pools_of(group):
            pool.require_present()
        leaving = dataclasses.replace(group, is_leaving=True)
        home = self._pools.get(group.pool)
        records.write_group(home.store.groups_fd, leaving)
        crash_point("group.leaving")
        self.add(leaving)
        self._groups.remove(group)
        self.finish(leaving)

    def _pools_of(self, group: GroupSnapshot) -> list[Pool]:
        names = {group.pool}
        for snapshot_id in group.snapshot_ids:
            try:
                names.add(self._snapshots.get(snapshot_id).pool)
            except SnapshotNotFound:
                # Lost, as its group says to whoever asks: no reason to keep the others.
                continue
        return [self._pools.get(name) for name in sorted(names)]

    def _discard(self, snapshot_id: str) -> None:
        try:
            snapshot = self._snapshots.get(snapshot_id)
        except SnapshotNotFound:
            return
        pool = self._pools.get(snapshot.pool)
        if snapshot.parameters.retention_seconds:
            # Brought back without its group, which is gone, it is a snapshot like any other.
            self._retain(pool, snapshot)
        else:
            self._disposal.take(snapshot_id, pool, pool.store.discard_snapshot(snapshot_id))
            self._snapshots.remove(snapshot)
        crash_point("group.member_discarded")

    def _with_claims(
        self, snapshot_ids: list[str], group: GroupSnapshot, deadline: float | None, work: Callable[[], None]
    ) -> None:
        """Do `work` while nobody reads any of the snapshots."""
        if not snapshot_ids:
            work()
            return
        first, others = snapshot_ids[0], snapshot_ids[1:]
        self._claims.run(
            ("snapshot", first),
            ("delete with", group.group_snapshot_id),
            deadline,
            lambda: self._with_claims(others, group, deadline, work),
        )


def is_member_of(snapshot: Snapshot, groups: GroupCatalogue) -> bool:
    """Whether the snapshot is deleted only with its group.

    Raises: RecordDamaged, NotReady when that cannot be told.
    """
    if not snapshot.group_snapshot_id:
        return False
    try:
        groups.get(snapshot.group_snapshot_id)
    except GroupNotFound:
        return False
    return True
