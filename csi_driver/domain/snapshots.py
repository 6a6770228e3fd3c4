"""Snapshots made, found and taken away; knows no protocol, and leaves the bytes to the backends.

Create: claim the name -> compare with what bears it -> read the volume's claim -> flush -> promise the space -> share
        its blocks under `tmp/` -> record -> rename into place. Where blocks cannot be shared: see `copies`.
Delete: claim the id -> end its copy -> rename into the trash -> clear away, unless it is retained. The source knows
        nothing of its snapshots.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import secrets
import time
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Final

from csi_driver.backends import removal
from csi_driver.domain import cuts, pages, unwritten
from csi_driver.domain.catalogue import Catalogue, GroupCatalogue, SnapshotCatalogue
from csi_driver.domain.claims import Claims
from csi_driver.domain.copies import Copies
from csi_driver.domain.disposal import Disposal
from csi_driver.domain.group_departures import is_member_of
from csi_driver.domain.pools import Pool, Pools
from csi_driver.domain.stills import Stills
from csi_driver.domain.trash import Trash
from csi_driver.durations import human_seconds
from csi_driver.errors import (
    InsufficientCapacity,
    MemberOfGroup,
    OperationPending,
    SnapshotConflict,
    SnapshotNotFound,
    SourceNotFound,
    TopologyUnsatisfiable,
    VolumeNotFound,
)
from csi_driver.faults import crash_point
from csi_driver.model import (
    Snapshot,
    SnapshotId,
    SnapshotSpec,
    Volume,
    VolumeParameters,
    VolumeType,
    node_key,
)
from csi_driver.store import records

_log = logging.getLogger("hostvol.snapshots")
_NO_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
# A copy that takes no longer is told as ready by the first answer; nobody is frozen meanwhile, its volume is idle.
_SHORT_COPY_SECONDS: Final = 1.0


class Snapshots:
    """The life of a snapshot from CreateSnapshot to DeleteSnapshot."""

    def __init__(
        self,
        node_id: str,
        pools: Pools,
        *,
        volumes: Catalogue,
        snapshots: SnapshotCatalogue,
        claims: Claims,
        copies: Copies,
        trash: Trash,
        stills: Stills,
        groups: GroupCatalogue,
    ) -> None:
        self._node_id = node_id
        self._node_key = node_key(node_id)
        self._pools = pools
        self._volumes = volumes
        self._snapshots = snapshots
        self._claims = claims
        self._copies = copies
        self._trash = trash
        self._stills = stills
        self._groups = groups
        self._disposal = Disposal()

    def create(self, spec: SnapshotSpec, deadline: float | None, *, is_accessible: bool = True) -> Snapshot:
        """A snapshot of all that was written to the volume before; durable when this returns, and perhaps not ready.

        Idempotent: the same spec again gives the same snapshot as it is then.

        Raises: SourceNotFound; SnapshotConflict when the name is taken; SourceBusy; InsufficientForCut,
            InsufficientCapacity; TopologyUnsatisfiable; OperationPending; CopyFailed.
        """
        with self._slot_of_source(spec):
            return self._claims.run(
                ("snapshot name", spec.name),
                (spec, is_accessible),
                deadline,
                lambda: self._create(spec, deadline, is_accessible),
            )

    def delete(self, snapshot_id: str, deadline: float | None) -> None:
        """The snapshot is gone when this returns, and its data, unless it is retained. Idempotent.

        Raises: OperationPending while a volume is made from it; MemberOfGroup; RemainsHeld; RecordDamaged.
        """
        with self._slot_of(snapshot_id):
            self._claims.run(("snapshot", snapshot_id), "delete", deadline, lambda: self._delete(snapshot_id, deadline))

    def page(
        self, max_entries: int, starting_token: str, *, source_volume_id: str = "", snapshot_id: str = ""
    ) -> tuple[list[Snapshot], bool]:
        """The snapshots behind the token that are of this volume and have this id, and whether none follow them.

        Raises: InvalidToken; NotReady when the one that is asked for may be in a pool that is not served.
        """
        if snapshot_id:
            pages.check_token(starting_token)
            try:
                found = self._snapshots.get(snapshot_id)
            except SnapshotNotFound:
                return [], True
            return ([found] if source_volume_id in ("", found.source_volume_id) else []), True
        if source_volume_id:
            return pages.page_of(
                self._snapshots, max_entries, starting_token, lambda one: one.source_volume_id == source_volume_id
            )
        return pages.page(self._snapshots, max_entries, starting_token)

    def resume(self, pool: Pool, unfinished: list[Snapshot], volumes: list[Volume]) -> None:
        """Go on with what an earlier process was copying; called before the volumes are served."""
        sources = {volume.volume_id: volume for volume in volumes}
        for snapshot in unfinished:
            volume = sources.get(snapshot.source_volume_id)
            if volume is None:
                _log.error(
                    "snapshot %s cannot be finished: volume %s is not served; delete the snapshot, or restore the "
                    "volume's record and restart the driver",
                    snapshot.snapshot_id,
                    snapshot.source_volume_id,
                )
            else:
                self._copies.resume(pool, volume, snapshot)

    def _create(self, spec: SnapshotSpec, deadline: float | None, is_accessible: bool) -> Snapshot:
        existing = self._snapshots.named(spec.name)
        if existing is not None:
            return self._same(existing, spec, is_accessible)
        self._copies.raise_failure(spec.name)
        volume = self._source(spec)
        if not is_accessible:
            raise TopologyUnsatisfiable(self._node_id)
        pool = self._pools.of(volume)
        pool.require_writable()
        if spec.retention_seconds is not None:
            pool.require_retention(self._parameters(spec, volume))
        if pool.contents(volume.volume_type).can_share:
            return self._cut(pool, spec)
        if self._stills.is_wanted(pool, volume):
            return self._copy_still(pool, spec)
        snapshot = self._planned(spec, volume, is_ready=False)
        self._copies.begin(pool, volume, snapshot)
        self._copies.wait(snapshot.snapshot_id, _soonest(deadline))
        self._copies.raise_failure(spec.name)
        return self._snapshots.get(snapshot.snapshot_id)

    def _same(self, existing: Snapshot, spec: SnapshotSpec, is_accessible: bool) -> Snapshot:
        if self._claims.holds(("snapshot", existing.snapshot_id)):
            raise OperationPending(f"snapshot {existing.snapshot_id}")
        differences = [
            ("source_volume_id", existing.source_volume_id, spec.source_volume_id),
            ("accessibility_requirements", "this node", "this node" if is_accessible else "others"),
        ]
        if spec.retention_seconds is not None:
            held_seconds = existing.parameters.retention_seconds
            differences += [
                ("parameters.retention", human_seconds(held_seconds), human_seconds(spec.retention_seconds)),
                ("parameters.retentionPolicy", existing.parameters.retention_policy, str(spec.retention_policy)),
            ]
        for field, held, asked in differences:
            if held != asked:
                raise SnapshotConflict(existing.name, existing.snapshot_id, field, held, asked)
        if not existing.is_ready:
            # A copy that met that could not even be taken away: the next start finishes it.
            self._pools.get(existing.pool).require_writable()
            self._copies.require_under_way(existing)
        return existing

    def _cut(self, pool: Pool, spec: SnapshotSpec) -> Snapshot:
        with ExitStack() as held:
            held.enter_context(self._claims.reading(("volume", spec.source_volume_id)))
            # Again: it may have been deleted or grown before the claim was read.
            volume = self._source(spec)
            content_fd = pool.contents(volume.volume_type).open(pool.store.volumes_fd, volume.volume_id)
            held.callback(os.close, content_fd)
            volume = unwritten.known(pool, volume, content_fd)
            cuts.flush(pool, volume)
            crash_point("snapshot.flushed")
            cuts.admit(pool, volume)
            snapshot = self._built(pool, volume, content_fd, self._planned(spec, volume, is_ready=True))
            self._snapshots.add(snapshot)
        return snapshot

    def _copy_still(self, pool: Pool, spec: SnapshotSpec) -> Snapshot:
        """The same where blocks cannot be shared: the volume is frozen while it is copied, if that is short."""
        with ExitStack() as held:
            held.enter_context(self._claims.reading(("volume", spec.source_volume_id)))
            volume = self._source(spec)
            contents = pool.contents(volume.volume_type)
            content_fd = contents.open(pool.store.volumes_fd, volume.volume_id)
            held.callback(os.close, content_fd)
            volume = unwritten.known(pool, volume, content_fd)
            planned = self._planned(spec, volume, is_ready=True, shares=False)
            # Twice: once while it is frozen, and once into its place.
            pool.ledger.admit_copy(planned.snapshot_id, pool.name, 2 * contents.size_bytes(content_fd), pool.overcommit)
            held.callback(pool.ledger.copied, planned.snapshot_id, 0)
            still_fd = self._stills.copy(pool, volume, content_fd)
            held.callback(os.close, still_fd)
            snapshot = self._built(pool, volume, still_fd, planned)
            self._snapshots.add(snapshot)
        return snapshot

    def _built(self, pool: Pool, volume: Volume, content_fd: int, planned: Snapshot) -> Snapshot:
        with ExitStack() as undo, ExitStack() as opened:
            undo.callback(_clear, pool, planned.snapshot_id)
            object_fd = pool.store.begin(planned.snapshot_id)
            opened.callback(os.close, object_fd)
            crash_point("snapshot.begun")
            try:
                cut_at = _filled(pool, volume, content_fd, object_fd)
            except OSError as cause:
                if cause.errno not in _NO_SPACE:
                    raise
                grantable = pool.ledger.grantable_bytes(pool.overcommit)
                raise InsufficientCapacity(pool.name, volume.capacity_bytes, grantable) from cause
            crash_point("snapshot.cut")
            content_id = unwritten.known(pool, volume, content_fd).content_id
            snapshot = dataclasses.replace(planned, created_at=cut_at, content_id=content_id)
            records.write_snapshot(object_fd, snapshot)
            crash_point("snapshot.recorded")
            pool.store.commit_snapshot(snapshot.snapshot_id, object_fd)
            crash_point("snapshot.committed")
            undo.pop_all()
        return snapshot

    def _planned(self, spec: SnapshotSpec, volume: Volume, *, is_ready: bool, shares: bool = True) -> Snapshot:
        snapshot_id = SnapshotId(f"snap-{self._node_key}-{secrets.token_hex(8)}")
        return Snapshot(
            snapshot_id=snapshot_id,
            name=spec.name,
            source_volume_id=volume.volume_id,
            size_bytes=volume.capacity_bytes,
            access_type=volume.access_type,
            fs_type=volume.fs_type,
            parameters=self._parameters(spec, volume),
            created_at=time.time(),
            is_ready=is_ready,
            # What is copied shares no block with its source.
            lineage=volume.family if is_ready and shares else snapshot_id,
            content_id=volume.content_id,
        )

    @staticmethod
    def _parameters(spec: SnapshotSpec, volume: Volume) -> VolumeParameters:
        if spec.retention_seconds is None or spec.retention_policy is None:
            return volume.parameters
        return dataclasses.replace(
            volume.parameters, retention_seconds=spec.retention_seconds, retention_policy=spec.retention_policy
        )

    def _source(self, spec: SnapshotSpec) -> Volume:
        try:
            return self._volumes.persistent(spec.source_volume_id)
        except VolumeNotFound as cause:
            raise SourceNotFound("source_volume_id", spec.source_volume_id) from cause

    def _slot_of_source(self, spec: SnapshotSpec) -> AbstractContextManager[None]:
        existing = self._snapshots.named(spec.name)
        if existing is not None:
            return nullcontext()
        return self._pools.of(self._source(spec)).slot()

    def _slot_of(self, snapshot_id: str) -> AbstractContextManager[None]:
        try:
            return self._pools.get(self._snapshots.get(snapshot_id).pool).slot()
        except SnapshotNotFound:
            return nullcontext()

    def _delete(self, snapshot_id: str, deadline: float | None) -> None:
        self._copies.cancel(snapshot_id, deadline)
        try:
            snapshot = self._snapshots.get(snapshot_id)
        except SnapshotNotFound:
            self._disposal.clear(snapshot_id)
            return
        if is_member_of(snapshot, self._groups):
            raise MemberOfGroup(snapshot_id, snapshot.group_snapshot_id)
        pool = self._pools.get(snapshot.pool)
        pool.require_present()
        # One without content is of no use to anybody.
        if snapshot.is_ready and snapshot.parameters.retention_seconds:
            self.retain(pool, snapshot)
            return
        self._disposal.take(snapshot_id, pool, pool.store.discard_snapshot(snapshot_id))
        self._snapshots.remove(snapshot)
        crash_point("snapshot.discarded")
        self._disposal.clear(snapshot_id)
        crash_point("snapshot.cleared")

    def retain(self, pool: Pool, snapshot: Snapshot) -> None:
        """Move a snapshot into the trash for its retention; the caller holds its claim."""
        trash_name = pool.store.discard_snapshot(snapshot.snapshot_id, "")
        entry = self._trash.add(pool, trash_name, snapshot, None)
        self._snapshots.remove(snapshot)
        crash_point("snapshot.kept")
        if snapshot.volume_type is VolumeType.IMAGE or pool.trash_ceiling_bytes() is not None:
            # That of a directory may be a look at thousands of files, which the pool's keeper has time for.
            self._trash.measured(entry)
            self._trash.trim(pool)


def _filled(pool: Pool, volume: Volume, content_fd: int, object_fd: int) -> float:
    """The content beside the record of a snapshot; returns the time of the cut."""
    contents = pool.contents(volume.volume_type)
    if contents.can_share:
        return cuts.share(pool, volume, content_fd, object_fd)
    contents.copy(content_fd, volume.capacity_bytes, object_fd, lambda _: None)
    # Of a file that nobody writes to any more: when it was made.
    return os.fstat(content_fd).st_mtime


def _clear(pool: Pool, snapshot_id: str) -> None:
    try:
        removal.clear(pool.store.tmp_fd, snapshot_id)
    except OSError as cause:
        _log.error("snapshot %s was not made, and its remains cannot be cleared yet: %s", snapshot_id, cause)
        pool.clear_later(pool.store.tmp_fd, snapshot_id)


def _soonest(deadline: float | None) -> float:
    soon = time.monotonic() + _SHORT_COPY_SECONDS
    return soon if deadline is None else min(deadline, soon)
