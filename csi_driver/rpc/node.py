"""CSI Node: parse, call the domain, answer."""

from __future__ import annotations

from csi_driver.domain.node import Node
from csi_driver.pb import csi_pb2
from csi_driver.rpc import answers, ephemeral, parsing
from csi_driver.rpc.edge import Call

_Type = csi_pb2.NodeServiceCapability.RPC
_CAPABILITIES = (
    _Type.STAGE_UNSTAGE_VOLUME,
    _Type.GET_VOLUME_STATS,
    _Type.EXPAND_VOLUME,
    _Type.SINGLE_NODE_MULTI_WRITER,
    _Type.GET_VOLUME_HEALTH,
    _Type.GET_STORAGE_HEALTH,
)


class NodeServicer:
    """Spec: Node Service RPC."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def NodeStageVolume(self, request: csi_pb2.NodeStageVolumeRequest, call: Call) -> csi_pb2.NodeStageVolumeResponse:
        volume_id = parsing.persistent_id(request.volume_id, self._node.catalogue.is_ephemeral)
        path = parsing.path("staging_target_path", request.staging_target_path)
        capability = parsing.staging_capability(request)
        answers.check_volume_context(self._node.catalogue.get(volume_id), request.volume_context)
        self._node.staging.stage(volume_id, path, capability, call.deadline)
        return csi_pb2.NodeStageVolumeResponse()

    def NodeUnstageVolume(
        self, request: csi_pb2.NodeUnstageVolumeRequest, call: Call
    ) -> csi_pb2.NodeUnstageVolumeResponse:
        volume_id = parsing.persistent_id(request.volume_id, self._node.catalogue.is_ephemeral)
        path = parsing.path("staging_target_path", request.staging_target_path)
        self._node.staging.unstage(volume_id, path, call.deadline)
        return csi_pb2.NodeUnstageVolumeResponse()

    def NodePublishVolume(
        self, request: csi_pb2.NodePublishVolumeRequest, call: Call
    ) -> csi_pb2.NodePublishVolumeResponse:
        volume_id = parsing.persistent_id(request.volume_id, self._node.catalogue.is_ephemeral)
        publication = parsing.publication(request)
        if ephemeral.is_asked(request.volume_context):
            asked = ephemeral.spec(volume_id, publication, request.volume_context)
            with ephemeral.as_attributes():
                self._node.ephemeral.publish(asked, publication, call.deadline)
            return csi_pb2.NodePublishVolumeResponse()
        answers.check_volume_context(self._node.catalogue.get(volume_id), request.volume_context)
        self._node.publishing.publish(volume_id, request.staging_target_path, publication, call.deadline)
        return csi_pb2.NodePublishVolumeResponse()

    def NodeUnpublishVolume(
        self, request: csi_pb2.NodeUnpublishVolumeRequest, call: Call
    ) -> csi_pb2.NodeUnpublishVolumeResponse:
        volume_id = parsing.persistent_id(request.volume_id, self._node.catalogue.is_ephemeral)
        path = parsing.path("target_path", request.target_path)
        if self._node.ephemeral.is_handle(volume_id):
            self._node.ephemeral.unpublish(volume_id, path, call.deadline)
        else:
            self._node.publishing.unpublish(volume_id, path, call.deadline)
        return csi_pb2.NodeUnpublishVolumeResponse()

    def NodeGetVolumeStats(
        self, request: csi_pb2.NodeGetVolumeStatsRequest, call: Call
    ) -> csi_pb2.NodeGetVolumeStatsResponse:
        volume_id = parsing.volume_id(request.volume_id)
        path = parsing.path("volume_path", request.volume_path)
        usage = self._node.statistics.usage(self._node.ephemeral.id_of(volume_id), path, call.deadline)
        return answers.usage(usage)

    def NodeGetVolumeHealth(
        self, request: csi_pb2.NodeGetVolumeHealthRequest, call: Call
    ) -> csi_pb2.NodeGetVolumeHealthResponse:
        volume_id = parsing.volume_id(request.volume_id)
        parsing.optional_path("volume_publish_path", request.volume_publish_path)
        parsing.optional_path("staging_target_path", request.staging_target_path)
        found = self._node.health.of(self._node.ephemeral.id_of(volume_id))
        return csi_pb2.NodeGetVolumeHealthResponse(volume_health=answers.volume_health(volume_id, found))

    def NodeGetStorageHealth(
        self, request: csi_pb2.NodeGetStorageHealthRequest, call: Call
    ) -> csi_pb2.NodeGetStorageHealthResponse:
        self._node.health.refresh()
        return answers.storage_health(trouble for _, trouble in self._node.health.pool_troubles())

    def NodeExpandVolume(
        self, request: csi_pb2.NodeExpandVolumeRequest, call: Call
    ) -> csi_pb2.NodeExpandVolumeResponse:
        volume_id = parsing.persistent_id(request.volume_id, self._node.catalogue.is_ephemeral)
        path = parsing.path("volume_path", request.volume_path)
        asked = parsing.capacity_range(request.capacity_range)
        capability = parsing.optional_capability(request)
        volume = self._node.growth.expand_on_node(volume_id, path, asked, capability, call.deadline)
        return csi_pb2.NodeExpandVolumeResponse(capacity_bytes=volume.capacity_bytes)

    def NodeGetCapabilities(
        self, request: csi_pb2.NodeGetCapabilitiesRequest, call: Call
    ) -> csi_pb2.NodeGetCapabilitiesResponse:
        response = csi_pb2.NodeGetCapabilitiesResponse()
        for capability in _CAPABILITIES:
            response.capabilities.add().rpc.type = capability
        return response

    def NodeGetInfo(self, request: csi_pb2.NodeGetInfoRequest, call: Call) -> csi_pb2.NodeGetInfoResponse:
        response = csi_pb2.NodeGetInfoResponse(node_id=self._node.node_id)
        response.accessible_topology.segments.update(self._node.topology)
        return response
