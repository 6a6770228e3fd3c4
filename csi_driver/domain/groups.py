"""Snapshots of several volumes as of one instant, whole or not at all; knows no protocol.

Create: claim the name -> compare with what bears it -> read every member's claim -> promise the space -> flush ->
        freeze all that are mounted -> share their blocks -> thaw -> build every snapshot under `tmp/` -> record of the
        group, which decides -> each snapshot into its place.
Delete: claim the id and every member -> record: it is leaving -> every member into the trash -> no record.
A start finishes what a record says, and clears away members that no record names.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import secrets
from contextlib import AbstractContextManager, ExitStack
from typing import Final

from csi_driver.backends import removal
from csi_driver.domain import cuts, unwritten
from csi_driver.domain.catalogue import GroupCatalogue, SnapshotCatalogue
from csi_driver.domain.claims import Claims
from csi_driver.domain.group_departures import GroupDepartures
from csi_driver.domain.members import Member, Members, check_members
from csi_driver.domain.pools import Pool, Pools
from csi_driver.errors import (
    GroupConflict,
    GroupIncomplete,
    InsufficientCapacity,
    SnapshotNotFound,
    UndoFailed,
)
from csi_driver.faults import crash_point
from csi_driver.model import GroupId, GroupSnapshot, GroupSpec, Snapshot, SnapshotId, node_key
from csi_driver.store import records
from csi_driver.store.pool import member_name

_log = logging.getLogger("hostvol.groups")
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})


class Groups:
    """The life of a group snapshot from its creation to its deletion."""

    def __init__(
        self,
        node_id: str,
        pools: Pools,
        *,
        snapshots: SnapshotCatalogue,
        groups: GroupCatalogue,
        claims: Claims,
        members: Members,
        departures: GroupDepartures,
    ) -> None:
        self._node_key = node_key(node_id)
        self._pools = pools
        self._snapshots = snapshots
        self._groups = groups
        self._claims = claims
        self._members = members
        self._departures = departures

    def create(self, spec: GroupSpec, deadline: float | None) -> GroupSnapshot:
        """Snapshots of all the volumes as of one instant, ready and durable when this returns.

        What is in one of them was written before whatever is not in another. Idempotent: the same spec again, in any
        order of its volumes, gives the same group.

        Raises: SourceNotFound; GroupConflict when the name is taken; GroupRefused naming the member and the remedy;
            FreezeExpired, FreezeBroken; VolumeBusy; InsufficientForCut, InsufficientCapacity; OperationPending.
        """
        with self._slots(spec):
            same = (spec.name, tuple(sorted(spec.source_volume_ids)))
            return self._claims.run(("group name", spec.name), same, deadline, lambda: self._create(spec))

    def delete(self, group_snapshot_id: str, snapshot_ids: tuple[str, ...], deadline: float | None) -> None:
        """The group and all its snapshots are gone when this returns. Idempotent: an unknown id is gone already.

        Raises: InvalidField when `snapshot_ids` are given and are not the group's; OperationPending while a volume is
            made from a member; NotReady when a member is in a pool that is not served; RemainsHeld.
        """
        call = ("delete", tuple(sorted(snapshot_ids)))
        self._claims.run(
            ("group", group_snapshot_id),
            call,
            deadline,
            lambda: self._departures.delete(group_snapshot_id, snapshot_ids, deadline),
        )

    def get(self, group_snapshot_id: str, snapshot_ids: tuple[str, ...] = ()) -> tuple[GroupSnapshot, list[Snapshot]]:
        """The group and its members, in the order in which their volumes were named.

        Raises: GroupNotFound; InvalidField when `snapshot_ids` are given and are not the group's; GroupIncomplete;
            NotReady.
        """
        group = self._groups.get(group_snapshot_id)
        check_members(group, snapshot_ids)
        return group, self.members_of(group)

    def members_of(self, group: GroupSnapshot) -> list[Snapshot]:
        """The snapshots of a group.

        Raises: GroupIncomplete when one is lost; NotReady; RecordDamaged.
        """
        found = []
        for snapshot_id in group.snapshot_ids:
            try:
                found.append(self._snapshots.get(snapshot_id))
            except SnapshotNotFound as cause:
                raise GroupIncomplete(group.group_snapshot_id, snapshot_id) from cause
        return found

    def _slots(self, spec: GroupSpec) -> AbstractContextManager[object]:
        held = ExitStack()
        if self._groups.named(spec.name) is None:
            pools = {pool.name: pool for pool in (self._members.pool_of(one) for one in spec.source_volume_ids)}
            try:
                for pool in pools.values():
                    held.enter_context(pool.slot())
            except BaseException:
                held.close()
                raise
        return held

    def _create(self, spec: GroupSpec) -> GroupSnapshot:
        existing = self._groups.named(spec.name)
        if existing is not None:
            return _same(existing, spec)
        with ExitStack() as held:
            members = [self._members.enter(volume_id, held) for volume_id in spec.source_volume_ids]
            for member in members:
                cuts.admit(member.pool, member.volume)
            cut_at = self._members.cut(members, held)
            group = self._planned(spec, members, cut_at)
            pairs = zip(members, group.snapshot_ids, strict=True)
            self._make(group, [_snapshot_of(group, *pair) for pair in pairs], members)
        return group

    def _make(self, group: GroupSnapshot, snapshots: list[Snapshot], members: list[Member]) -> None:
        home = self._pools.get(group.pool)
        with ExitStack() as undo:
            for at, (member, planned) in enumerate(zip(members, list(snapshots), strict=True)):
                undo.callback(_clear, member.pool, planned)
                snapshots[at] = _built(member, planned)
                crash_point("group.member_built")
            for pool in {member.pool.name: member.pool for member in members}.values():
                # Their names too, before the record says that they are there.
                os.fsync(pool.store.tmp_fd)
            placed: list[tuple[Pool, Snapshot]] = []
            undo.callback(_take_back, home, group, placed)
            records.write_group(home.store.groups_fd, group)
            crash_point("group.committed")
            for member, snapshot in zip(members, snapshots, strict=True):
                member.pool.store.place_member(snapshot.snapshot_id)
                placed.append((member.pool, snapshot))
                crash_point("group.member_placed")
            undo.pop_all()
        for snapshot in snapshots:
            self._snapshots.add(snapshot)
        self._groups.add(group)

    def _planned(self, spec: GroupSpec, members: list[Member], cut_at: float) -> GroupSnapshot:
        return GroupSnapshot(
            group_snapshot_id=GroupId(f"grp-{self._node_key}-{secrets.token_hex(8)}"),
            name=spec.name,
            source_volume_ids=spec.source_volume_ids,
            snapshot_ids=tuple(f"snap-{self._node_key}-{secrets.token_hex(8)}" for _ in members),
            pool=members[0].pool.name,
            created_at=cut_at,
        )


def _same(existing: GroupSnapshot, spec: GroupSpec) -> GroupSnapshot:
    held, asked = sorted(existing.source_volume_ids), sorted(spec.source_volume_ids)
    if held != asked:
        raise GroupConflict(existing.name, existing.group_snapshot_id, " ".join(held), " ".join(asked))
    return existing


def _snapshot_of(group: GroupSnapshot, member: Member, snapshot_id: str) -> Snapshot:
    volume = member.volume
    return Snapshot(
        snapshot_id=SnapshotId(snapshot_id),
        # Nobody can have asked for it before: the group's id is random.
        name=f"{group.group_snapshot_id}/{volume.volume_id}",
        source_volume_id=volume.volume_id,
        size_bytes=volume.capacity_bytes,
        access_type=volume.access_type,
        fs_type=volume.fs_type,
        parameters=volume.parameters,
        created_at=group.created_at,
        is_ready=True,
        lineage=volume.family,
        content_id=volume.content_id,
        group_snapshot_id=group.group_snapshot_id,
        group_pool=group.pool,
    )


def _built(member: Member, snapshot: Snapshot) -> Snapshot:
    pool = member.pool
    object_fd = pool.store.begin(member_name(snapshot.snapshot_id))
    try:
        try:
            pool.contents(member.volume.volume_type).share(member.content_fd, snapshot.size_bytes, object_fd)
        except OSError as cause:
            if cause.errno not in _NO_SPACE:
                raise
            grantable = pool.ledger.grantable_bytes(pool.overcommit)
            raise InsufficientCapacity(pool.name, snapshot.size_bytes, grantable) from cause
        content_id = unwritten.known(pool, member.volume, member.content_fd).content_id
        snapshot = dataclasses.replace(snapshot, content_id=content_id)
        records.write_snapshot(object_fd, snapshot)
        os.fsync(object_fd)
    finally:
        os.close(object_fd)
    return snapshot


def _clear(pool: Pool, snapshot: Snapshot) -> None:
    name = member_name(snapshot.snapshot_id)
    try:
        removal.clear(pool.store.tmp_fd, name)
    except OSError as cause:
        _log.error("%s was not made, and its remains cannot be cleared yet: %s", name, cause)
        pool.clear_later(pool.store.tmp_fd, name)


def _take_back(home: Pool, group: GroupSnapshot, placed: list[tuple[Pool, Snapshot]]) -> None:
    """The group was not made: its record first, then the members that have their places already.

    Raises: UndoFailed: the next start finishes the group instead.
    """
    try:
        home.store.forget_group(group.group_snapshot_id)
        for pool, snapshot in placed:
            trash_name = pool.store.discard_snapshot(snapshot.snapshot_id)
            pool.clear_later(pool.store.trash_fd, trash_name)
    except OSError as cause:
        raise UndoFailed(
            f"group snapshot {group.group_snapshot_id}: neither finished nor taken back: {cause}; restart the driver"
        ) from cause
