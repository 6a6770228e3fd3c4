"""CSI GroupController for the volumes of one node: parse, call the domain, answer."""

from __future__ import annotations

from csi_driver.domain.node import Node
from csi_driver.pb import csi_pb2
from csi_driver.rpc import answers, parsing
from csi_driver.rpc.edge import Call


class GroupControllerCapabilities:
    """What a group controller can do, be it of one node or of a cluster."""

    def GroupControllerGetCapabilities(
        self, request: csi_pb2.GroupControllerGetCapabilitiesRequest, call: Call
    ) -> csi_pb2.GroupControllerGetCapabilitiesResponse:
        response = csi_pb2.GroupControllerGetCapabilitiesResponse()
        offered = csi_pb2.GroupControllerServiceCapability.RPC.CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT
        response.capabilities.add().rpc.type = offered
        return response


class GroupControllerServicer(GroupControllerCapabilities):
    """Spec: Group Controller Service RPCs."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def CreateVolumeGroupSnapshot(
        self, request: csi_pb2.CreateVolumeGroupSnapshotRequest, call: Call
    ) -> csi_pb2.CreateVolumeGroupSnapshotResponse:
        group = self._node.groups.create(parsing.group_spec(request), call.deadline)
        members = self._node.groups.members_of(group)
        return csi_pb2.CreateVolumeGroupSnapshotResponse(
            group_snapshot=answers.group_snapshot(group, members, self._node.topology)
        )

    def DeleteVolumeGroupSnapshot(
        self, request: csi_pb2.DeleteVolumeGroupSnapshotRequest, call: Call
    ) -> csi_pb2.DeleteVolumeGroupSnapshotResponse:
        group_snapshot_id, snapshot_ids = parsing.group_members(request)
        self._node.groups.delete(group_snapshot_id, snapshot_ids, call.deadline)
        return csi_pb2.DeleteVolumeGroupSnapshotResponse()

    def GetVolumeGroupSnapshot(
        self, request: csi_pb2.GetVolumeGroupSnapshotRequest, call: Call
    ) -> csi_pb2.GetVolumeGroupSnapshotResponse:
        group, members = self._node.groups.get(*parsing.group_members(request))
        return csi_pb2.GetVolumeGroupSnapshotResponse(
            group_snapshot=answers.group_snapshot(group, members, self._node.topology)
        )
