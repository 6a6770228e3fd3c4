"""The part of the operator's view that lists what CSI has no list of: troubles, operations in flight, groups."""

from __future__ import annotations

from collections.abc import Iterator

from csi_driver.domain import diagnosis, pages
from csi_driver.domain.node import Node
from csi_driver.domain.operations import Operation
from csi_driver.errors import GroupNotFound
from csi_driver.model import GroupSnapshot
from csi_driver.pb import admin_pb2
from csi_driver.rpc import parsing
from csi_driver.rpc.edge import Call

_PAGE = 500


class OverviewServicer:
    """Those methods of proto/admin.proto; all answer from memory."""

    _node: Node

    def ListTroubles(self, request: admin_pb2.ListTroublesRequest, call: Call) -> Iterator[admin_pb2.Trouble]:
        self._node.health.refresh()
        for one in diagnosis.complaints(self._node):
            yield admin_pb2.Trouble(
                kind=one.kind,
                object_id=one.object_id,
                name=one.name,
                status=one.trouble.severity,
                reason=one.trouble.reason,
                message=one.trouble.message,
            )

    def ListOperations(self, request: admin_pb2.ListOperationsRequest, call: Call) -> admin_pb2.ListOperationsResponse:
        return admin_pb2.ListOperationsResponse(operations=map(_operation, self._node.operations.all()))

    def ListGroupSnapshots(
        self, request: admin_pb2.ListGroupSnapshotsRequest, call: Call
    ) -> admin_pb2.ListGroupSnapshotsResponse:
        limit = min(parsing.max_entries(request.max_entries) or _PAGE, _PAGE)
        groups, complete = pages.page(self._node.group_catalogue, limit, request.starting_token)
        response = admin_pb2.ListGroupSnapshotsResponse(groups=map(self._group, groups))
        if not complete:
            response.next_token = pages.token_after(groups[-1].group_snapshot_id)
            return response
        for group_id, damage in sorted(self._node.group_catalogue.quarantined().items()):
            response.groups.add(group_snapshot_id=group_id, state="quarantined", message=str(damage))
        return response

    def GetGroupSnapshot(self, request: admin_pb2.GetGroupSnapshotRequest, call: Call) -> admin_pb2.GroupSnapshotDetail:
        if not request.name:
            group_id = parsing.volume_id(request.group_snapshot_id, "group_snapshot_id")
            return self._group(self._node.group_catalogue.get(group_id))
        group = self._node.group_catalogue.named(request.name)
        if group is None:
            raise GroupNotFound(request.name)
        return self._group(group)

    def _group(self, group: GroupSnapshot) -> admin_pb2.GroupSnapshotDetail:
        snapshots = {one.snapshot_id: one for one in self._node.snapshot_catalogue.served(group.snapshot_ids)}
        missing = [one for one in group.snapshot_ids if one not in snapshots]
        state = "deleting" if group.is_leaving else "incomplete" if missing else "ready"
        detail = admin_pb2.GroupSnapshotDetail(
            group_snapshot_id=group.group_snapshot_id,
            name=group.name,
            pool=group.pool,
            state=state,
            message=f"not served: {', '.join(missing)}" if missing else "",
            source_volume_ids=group.source_volume_ids,
            snapshot_ids=group.snapshot_ids,
            size_bytes=sum(one.size_bytes for one in snapshots.values()),
        )
        detail.created.FromMilliseconds(int(group.created_at * 1000))
        return detail


def _operation(operation: Operation) -> admin_pb2.Operation:
    told = admin_pb2.Operation(
        kind=operation.kind,
        object_id=operation.object_id,
        name=operation.name,
        source_id=operation.source_id,
        done_bytes=operation.progress.copied_bytes,
        total_bytes=operation.progress.total_bytes,
    )
    told.started.FromMilliseconds(int(operation.started_at * 1000))
    return told
