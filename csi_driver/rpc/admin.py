"""The operator's view of a node, beside CSI on the same socket, and what CSI has no call for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from operator import attrgetter
from typing import TypeVar

from csi_driver.domain import inspection, pages
from csi_driver.domain.exports import ImportOptions
from csi_driver.domain.inspection import SnapshotView, VolumeView
from csi_driver.domain.ledger import Ledger
from csi_driver.domain.node import Node
from csi_driver.domain.pools import Pool
from csi_driver.domain.trash import Entry
from csi_driver.errors import InvalidField, MissingField, SnapshotNotFound, VolumeNotFound
from csi_driver.model import Provisioning, QuotaPolicy, Snapshot, Volume, VolumeType
from csi_driver.pb import admin_pb2
from csi_driver.rpc import parsing
from csi_driver.rpc.edge import Call
from csi_driver.rpc.overview import OverviewServicer

_PAGE = 500
Answer = TypeVar("Answer")


class AdminServicer(OverviewServicer):
    """proto/admin.proto."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def ListPools(self, request: admin_pb2.ListPoolsRequest, call: Call) -> admin_pb2.ListPoolsResponse:
        return self._once("all pools", call, self._pools)

    def _pools(self) -> admin_pb2.ListPoolsResponse:
        pools = [self._pool(pool) for pool in self._node.pools.opened.values()]
        refused = [
            admin_pb2.Pool(name=name, state="unavailable", message=why)
            for name, why in self._node.pools.refused.items()
        ]
        return admin_pb2.ListPoolsResponse(pools=sorted([*pools, *refused], key=attrgetter("name")))

    def GrowPool(self, request: admin_pb2.GrowPoolRequest, call: Call) -> admin_pb2.Pool:
        return self._pool(self._node.pool_growth.grow(request.name, request.size_bytes, call.deadline))

    def ListVolumes(self, request: admin_pb2.ListVolumesRequest, call: Call) -> admin_pb2.ListVolumesResponse:
        limit = min(parsing.max_entries(request.max_entries) or _PAGE, _PAGE)
        token = request.starting_token
        volumes, complete = pages.page(self._node.catalogue, limit, token)
        with inspection.asking(self._node, volumes):
            return self._once(f"volumes {limit} {token}", call, lambda: self._volumes(volumes, complete=complete))

    def GetVolume(self, request: admin_pb2.GetVolumeRequest, call: Call) -> admin_pb2.VolumeDetail:
        volume_id = self._id_of(request.name) if request.name else parsing.volume_id(request.volume_id)
        with inspection.asking(self._node, self._node.catalogue.served([volume_id])):
            return self._once(volume_id, call, lambda: _detail(inspection.view(self._node, volume_id)))

    def _id_of(self, name: str) -> str:
        volume = self._node.catalogue.named(name)
        if volume is None:
            raise VolumeNotFound(name)
        return volume.volume_id

    def _once(self, subject: str, call: Call, look: Callable[[], Answer]) -> Answer:
        """Look in one thread, whoever else asks the same: a pool whose disk hangs must not collect the askers."""
        return self._node.claims.run(("a look at", subject), subject, call.deadline, look)

    def _volumes(self, volumes: list[Volume], *, complete: bool) -> admin_pb2.ListVolumesResponse:
        response = admin_pb2.ListVolumesResponse()
        response.volumes.extend(_detail(view) for view in inspection.views(self._node, volumes))
        if not complete:
            response.next_token = pages.token_after(volumes[-1].volume_id)
        else:
            response.volumes.extend(_detail(view) for view in inspection.quarantined_views(self._node))
        return response

    def ListSnapshots(self, request: admin_pb2.ListSnapshotsRequest, call: Call) -> admin_pb2.ListSnapshotsResponse:
        limit = min(parsing.max_entries(request.max_entries) or _PAGE, _PAGE)
        snapshots, complete = self._node.snapshots.page(limit, request.starting_token)
        views = [inspection.snapshot_view(self._node, one.snapshot_id) for one in snapshots]
        response = admin_pb2.ListSnapshotsResponse()
        if not complete:
            response.next_token = pages.token_after(snapshots[-1].snapshot_id)
        else:
            views += inspection.quarantined_snapshots(self._node)
        response.snapshots.extend(_snapshot_detail(view) for view in views)
        return response

    def GetSnapshot(self, request: admin_pb2.GetSnapshotRequest, call: Call) -> admin_pb2.SnapshotDetail:
        if not request.name:
            snapshot_id = parsing.snapshot_id(request.snapshot_id)
            return _snapshot_detail(inspection.snapshot_view(self._node, snapshot_id))
        snapshot = self._node.snapshot_catalogue.named(request.name)
        if snapshot is None:
            raise SnapshotNotFound(request.name)
        return _snapshot_detail(inspection.snapshot_view(self._node, snapshot.snapshot_id))

    def ListTrash(self, request: admin_pb2.ListTrashRequest, call: Call) -> admin_pb2.ListTrashResponse:
        limit = min(parsing.max_entries(request.max_entries) or _PAGE, _PAGE)
        token = request.starting_token
        return self._once(f"trash {limit} {token}", call, lambda: self._trash(limit, token))

    def _trash(self, limit: int, starting_token: str) -> admin_pb2.ListTrashResponse:
        entries, complete = self._node.trash.page(starting_token, limit)
        response = admin_pb2.ListTrashResponse(entries=map(_trash_entry, entries))
        if entries and not complete:
            response.next_token = entries[-1].name
        return response

    def RestoreTrash(self, request: admin_pb2.RestoreTrashRequest, call: Call) -> admin_pb2.RestoreTrashResponse:
        entry = parsing.given("entry", request.entry)
        restored = self._node.undelete.restore(entry, call.deadline)
        kind = "snapshot" if isinstance(restored, Snapshot) else "volume"
        return admin_pb2.RestoreTrashResponse(object_id=restored.object_id, kind=kind, name=restored.name)

    def PurgeTrash(self, request: admin_pb2.PurgeTrashRequest, call: Call) -> admin_pb2.PurgeTrashResponse:
        self._node.trash.purge(parsing.given("entry", request.entry), call.deadline)
        return admin_pb2.PurgeTrashResponse()

    def Export(self, request: admin_pb2.ExportRequest, call: Call) -> Iterator[admin_pb2.StreamChunk]:
        object_id = parsing.volume_id(request.id, "id")
        exports = self._node.exports
        if request.base_id:
            stream = exports.changes(object_id, parsing.snapshot_id(request.base_id), call.deadline)
        else:
            stream = exports.stream(object_id, call.deadline)
        with closing(stream) as pieces:
            for piece in pieces:
                yield admin_pb2.StreamChunk(data=piece)

    def Import(
        self, first: admin_pb2.ImportRequest, others: Iterator[admin_pb2.ImportRequest], call: Call
    ) -> admin_pb2.ImportResponse:
        if not first.HasField("options"):
            raise MissingField("options")
        volume = self._node.exports.take_in((one.data for one in others), _import_options(first.options))
        return admin_pb2.ImportResponse(
            volume_id=volume.volume_id, name=volume.name, pool=volume.pool, capacity_bytes=volume.capacity_bytes
        )

    def RollbackVolume(self, request: admin_pb2.RollbackVolumeRequest, call: Call) -> admin_pb2.RollbackVolumeResponse:
        volume_id, snapshot_id = parsing.volume_id(request.volume_id), parsing.snapshot_id(request.snapshot_id)
        _, entry = self._node.rollback.rollback(volume_id, snapshot_id, call.deadline)
        return admin_pb2.RollbackVolumeResponse(entry=entry)

    def _pool(self, pool: Pool) -> admin_pb2.Pool:
        space = pool.ledger.space()
        trash_count, trash_bytes = self._node.trash.figures(pool)
        return admin_pb2.Pool(
            name=pool.name,
            directory=pool.store.directory,
            uuid=pool.store.identity.pool_uuid,
            filesystem=pool.filesystem_name,
            reflink=pool.images.can_reflink,
            overcommit=pool.overcommit,
            size_bytes=space.total_bytes,
            available_bytes=space.available_bytes,
            reserve_bytes=Ledger.reserve_bytes(space),
            promised_bytes=pool.ledger.promised_bytes,
            grantable_bytes=pool.grantable_bytes(),
            volume_count=inspection.volume_counts(self._node).get(pool.name, 0),
            trash_count=trash_count,
            trash_bytes=trash_bytes,
            snapshot_count=inspection.snapshot_counts(self._node).get(pool.name, 0),
            backing_file=pool.backing.path if pool.backing else "",
            backing_bytes=pool.backing.size_bytes if pool.backing else 0,
            quarantined_count=inspection.quarantined_count(self._node, pool),
            state="ready",
            quota=pool.quota,
            quota_remedy=pool.quota_remedy,
        )


def _import_options(asked: admin_pb2.ImportOptions) -> ImportOptions:
    for field, kind in (("provisioning", Provisioning), ("quota", QuotaPolicy)):
        value = getattr(asked, field)
        if value and value not in list(kind):
            raise InvalidField(field, value, " or ".join(kind))
    if asked.size_bytes < 0:
        raise InvalidField("size_bytes", asked.size_bytes, "0 or more")
    onto_id = parsing.volume_id(asked.onto_id, "onto_id") if asked.onto_id else ""
    return ImportOptions(asked.name, asked.pool, asked.provisioning, asked.quota, asked.size_bytes, onto_id)


def _detail(view: VolumeView) -> admin_pb2.VolumeDetail:
    volume = view.volume
    if volume is None:
        return admin_pb2.VolumeDetail(
            volume_id=view.volume_id, state="quarantined", message=view.message, health=view.health
        )
    detail = admin_pb2.VolumeDetail(
        volume_id=volume.volume_id,
        name=volume.name,
        pool=volume.pool,
        type=volume.volume_type,
        access=volume.access_type,
        filesystem=volume.fs_type,
        provisioning=volume.parameters.provisioning,
        capacity_bytes=volume.capacity_bytes,
        content_id=volume.content_id,
        allocated_bytes=view.allocated_bytes,
        staging_paths=view.staging_paths,
        target_paths=view.target_paths,
        state="ready",
        message=view.message,
        quota=volume.parameters.quota if volume.volume_type is VolumeType.DIRECTORY else "",
        source=f"{volume.source.kind} {volume.source.object_id}" if volume.source else "",
        pod=(volume.pod or "unknown") if volume.is_ephemeral else "",
        health=view.health,
    )
    detail.created.FromMilliseconds(int(volume.created_at * 1000))
    return detail


def _trash_entry(entry: Entry) -> admin_pb2.TrashEntry:
    held = entry.held
    told = admin_pb2.TrashEntry(
        entry=entry.name,
        object_id=entry.object_id,
        pool=entry.pool.name,
        own_bytes=entry.own_bytes or 0,
        state=entry.state,
        message=entry.damage,
    )
    told.deleted.FromSeconds(entry.deleted_at)
    if entry.expires_at is not None:
        told.expires.FromSeconds(entry.expires_at)
    if held is not None:
        told.kind = "snapshot" if isinstance(held, Snapshot) else "volume"
        told.name = held.name
        told.size_bytes = held.size_bytes if isinstance(held, Snapshot) else held.capacity_bytes
    return told


def _snapshot_detail(view: SnapshotView) -> admin_pb2.SnapshotDetail:
    snapshot = view.snapshot
    if snapshot is None:
        return admin_pb2.SnapshotDetail(snapshot_id=view.snapshot_id, state=view.state, message=view.message)
    is_directory = snapshot.volume_type is VolumeType.DIRECTORY
    detail = admin_pb2.SnapshotDetail(
        snapshot_id=snapshot.snapshot_id,
        name=snapshot.name,
        source_volume_id=snapshot.source_volume_id,
        pool=snapshot.pool,
        type=snapshot.volume_type,
        access=snapshot.access_type,
        filesystem=snapshot.fs_type,
        provisioning="" if is_directory else snapshot.parameters.provisioning,
        quota=snapshot.parameters.quota if is_directory else "",
        size_bytes=snapshot.size_bytes,
        content_id=snapshot.content_id,
        state=view.state,
        copied_bytes=view.copied_bytes,
        copy_bytes=view.copy_bytes,
        group_snapshot_id=snapshot.group_snapshot_id,
        message=view.message,
    )
    detail.created.FromMilliseconds(int(snapshot.created_at * 1000))
    return detail
