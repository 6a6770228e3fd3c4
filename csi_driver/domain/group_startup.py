"""Group snapshots found again at a start: what a record says is finished, what none says is cleared; knows no request.

A member waits under `tmp/` until its group decides: the record of the group, in the pool that the member names, is
written once all members are whole. So no snapshot that has its place is ever taken away here, whatever is lost.
"""

from __future__ import annotations

import logging
import threading

from csi_driver.backends import removal
from csi_driver.domain.catalogue import GroupCatalogue, SnapshotCatalogue
from csi_driver.domain.group_departures import GroupDepartures
from csi_driver.domain.pools import Pool
from csi_driver.errors import HostvolError, RecordDamaged
from csi_driver.faults import crash_point
from csi_driver.model import GroupSnapshot, Snapshot
from csi_driver.store import durable, records
from csi_driver.store.pool import MEMBER_SUFFIX

_log = logging.getLogger("hostvol.groups")


class GroupStartup:
    """What is known of the groups while the pools come one after the other, in any order."""

    def __init__(self, snapshots: SnapshotCatalogue, groups: GroupCatalogue, departures: GroupDepartures) -> None:
        self._snapshots = snapshots
        self._groups = groups
        self._departures = departures
        self._lock = threading.Lock()
        self._pools: dict[str, Pool] = {}
        self._undecided: list[tuple[Pool, str]] = []

    def take_over(self, pool: Pool) -> None:
        """Load the pool's groups, and go on with what earlier processes left of them; its snapshots are loaded."""
        with self._lock:
            self._pools[pool.name] = pool
            for name in pool.store.leftover_group_names():
                durable.unlink_if_there(pool.store.groups_fd, name)
            self._load(pool)
            self._undecided += [(pool, name) for name in pool.store.members_at_open]
            self._undecided = [one for one in self._undecided if not self._decided(*one)]

    def settle(self) -> None:
        """Take away the groups that are leaving, now that one pool more is known to hold no other snapshots."""
        with self._lock:
            for group in self._departures.waiting():
                self._finish(group)

    def _load(self, pool: Pool) -> None:
        for name in pool.store.group_names():
            where = pool.store.group_path(name)
            group_snapshot_id = name.removesuffix(records.GROUP_SUFFIX)
            try:
                group = records.read_group(pool.store.groups_fd, name, where)
                if group.pool != pool.name:
                    raise RecordDamaged(where, f"it belongs to pool {group.pool}, served here is {pool.name}")
            except RecordDamaged as damage:
                claimed = records.claimed_group_name(pool.store.groups_fd, name)
                self._groups.quarantine(group_snapshot_id, damage, claimed)
                _log.error("group snapshot %s is quarantined: %s", group_snapshot_id, damage)
            else:
                (self._departures if group.is_leaving else self._groups).add(group)

    def _decided(self, pool: Pool, name: str) -> bool:
        """Give a member its place, or clear it away; False while the pool that has its group's record is not here."""
        snapshot_id = name.removesuffix(MEMBER_SUFFIX)
        member = _read(pool, name)
        if member is not None and member.group_pool not in self._pools:
            _log.warning("snapshot %s waits for pool %s, which has its group's record", snapshot_id, member.group_pool)
            return False
        try:
            if member is not None and self._groups.has(member.group_snapshot_id):
                pool.store.place_member(snapshot_id)
                crash_point("group.member_settled")
                self._snapshots.add(member)
            else:
                removal.clear(pool.store.tmp_fd, name)
        except OSError as cause:
            _log.error("snapshot %s cannot be given its place, or cleared away: %s", snapshot_id, cause)
            return False
        return True

    def _finish(self, group: GroupSnapshot) -> None:
        try:
            self._departures.finish(group)
        except (OSError, HostvolError) as cause:
            _log.warning("group snapshot %s is not gone yet: %s", group.group_snapshot_id, cause)


def _read(pool: Pool, name: str) -> Snapshot | None:
    """What a member's record says; None when it was not written to its end, and so its group's was not either."""
    try:
        return records.read_member(pool.store.tmp_fd, name, f"{pool.store.building_path(name)}/{records.RECORD}")
    except RecordDamaged:
        return None
