"""CSI Controller for the volumes of one node: parse, call the domain, answer."""

from __future__ import annotations

from collections.abc import Iterable

from csi_driver.domain import capacity, pages
from csi_driver.domain.node import Node
from csi_driver.errors import InvalidField
from csi_driver.model import Snapshot, Volume
from csi_driver.pb import csi_pb2
from csi_driver.rpc import answers, mutable, parsing
from csi_driver.rpc.edge import Call

_Type = csi_pb2.ControllerServiceCapability.RPC
_CAPABILITIES = (
    _Type.CREATE_DELETE_VOLUME,
    _Type.LIST_VOLUMES,
    _Type.GET_CAPACITY,
    _Type.EXPAND_VOLUME,
    _Type.GET_VOLUME,
    _Type.CREATE_DELETE_SNAPSHOT,
    _Type.LIST_SNAPSHOTS,
    _Type.GET_SNAPSHOT,
    _Type.CLONE_VOLUME,
    _Type.SINGLE_NODE_MULTI_WRITER,
    _Type.GET_VOLUME_HEALTH,
    _Type.LIST_VOLUME_HEALTH,
    _Type.MODIFY_VOLUME,
)


class ControllerCapabilities:
    """What a controller can do, be it of one node or of a cluster."""

    def ControllerGetCapabilities(
        self, request: csi_pb2.ControllerGetCapabilitiesRequest, call: Call
    ) -> csi_pb2.ControllerGetCapabilitiesResponse:
        response = csi_pb2.ControllerGetCapabilitiesResponse()
        for capability in _CAPABILITIES:
            response.capabilities.add().rpc.type = capability
        return response


class ControllerServicer(ControllerCapabilities):
    """Spec: Controller Service RPC."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def CreateVolume(self, request: csi_pb2.CreateVolumeRequest, call: Call) -> csi_pb2.CreateVolumeResponse:
        spec = parsing.spec(request)
        here = self._includes_this_node(request.accessibility_requirements)
        volume = self._node.volumes.create(spec, call.deadline, is_accessible=here)
        return csi_pb2.CreateVolumeResponse(volume=self._volume(volume))

    def DeleteVolume(self, request: csi_pb2.DeleteVolumeRequest, call: Call) -> csi_pb2.DeleteVolumeResponse:
        self._node.volumes.delete(parsing.volume_id(request.volume_id), call.deadline)
        return csi_pb2.DeleteVolumeResponse()

    def ValidateVolumeCapabilities(
        self, request: csi_pb2.ValidateVolumeCapabilitiesRequest, call: Call
    ) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
        volume_id = parsing.persistent_id(request.volume_id, self._node.catalogue.is_ephemeral)
        if not request.volume_capabilities:
            parsing.capabilities(request.volume_capabilities)
        volume = self._node.catalogue.get(volume_id)
        refusal = answers.refusal_of(volume, request)
        if refusal:
            return csi_pb2.ValidateVolumeCapabilitiesResponse(message=refusal)
        return csi_pb2.ValidateVolumeCapabilitiesResponse(
            confirmed=csi_pb2.ValidateVolumeCapabilitiesResponse.Confirmed(
                volume_context=request.volume_context,
                volume_capabilities=request.volume_capabilities,
                parameters=request.parameters,
                mutable_parameters=request.mutable_parameters,
            )
        )

    def ListVolumes(self, request: csi_pb2.ListVolumesRequest, call: Call) -> csi_pb2.ListVolumesResponse:
        volumes, complete = pages.page_of(
            self._node.catalogue,
            parsing.max_entries(request.max_entries),
            request.starting_token,
            lambda volume: not volume.is_ephemeral,
        )
        return answers.volume_page((self._volume(volume) for volume in volumes), complete=complete)

    def ControllerGetVolume(
        self, request: csi_pb2.ControllerGetVolumeRequest, call: Call
    ) -> csi_pb2.ControllerGetVolumeResponse:
        volume_id = parsing.persistent_id(request.volume_id, self._node.catalogue.is_ephemeral)
        volume = self._node.catalogue.get(volume_id)
        return csi_pb2.ControllerGetVolumeResponse(
            volume=self._volume(volume), status=csi_pb2.ControllerGetVolumeResponse.VolumeStatus()
        )

    def ControllerGetVolumeHealth(
        self, request: csi_pb2.ControllerGetVolumeHealthRequest, call: Call
    ) -> csi_pb2.ControllerGetVolumeHealthResponse:
        volume_id = parsing.persistent_id(request.volume_id, self._node.catalogue.is_ephemeral)
        found = self._node.health.of(volume_id)
        return csi_pb2.ControllerGetVolumeHealthResponse(volume_health=answers.volume_health(volume_id, found))

    def ControllerListVolumeHealth(
        self, request: csi_pb2.ControllerListVolumeHealthRequest, call: Call
    ) -> csi_pb2.ControllerListVolumeHealthResponse:
        limit, after = parsing.max_entries(request.max_entries), pages.last_of(request.starting_token)
        if not after:
            self._node.health.refresh()
        found = self._node.health.unhealthy()
        return answers.health_page({one: found[one] for one in found if one > after}, limit)

    def ControllerExpandVolume(
        self, request: csi_pb2.ControllerExpandVolumeRequest, call: Call
    ) -> csi_pb2.ControllerExpandVolumeResponse:
        volume_id = parsing.persistent_id(request.volume_id, self._node.catalogue.is_ephemeral)
        asked = parsing.larger_range(request)
        capability = parsing.optional_capability(request)
        volume = self._node.growth.expand(volume_id, asked, capability, call.deadline)
        return csi_pb2.ControllerExpandVolumeResponse(
            capacity_bytes=volume.capacity_bytes, node_expansion_required=volume.has_filesystem
        )

    def ControllerModifyVolume(
        self, request: csi_pb2.ControllerModifyVolumeRequest, call: Call
    ) -> csi_pb2.ControllerModifyVolumeResponse:
        volume_id = parsing.persistent_id(request.volume_id, self._node.catalogue.is_ephemeral)
        # Which volume it is comes first: what is wrong with a class is told for volumes that are there.
        self._node.catalogue.get(volume_id)
        self._node.modification.modify(volume_id, mutable.parse(request.mutable_parameters), call.deadline)
        return csi_pb2.ControllerModifyVolumeResponse()

    def GetCapacity(self, request: csi_pb2.GetCapacityRequest, call: Call) -> csi_pb2.GetCapacityResponse:
        access_type, fs_type, values = parsing.capacity_question(request)
        if request.HasField("accessible_topology") and not self._is_this_node([request.accessible_topology]):
            return csi_pb2.GetCapacityResponse(available_capacity=0)
        question = (access_type, fs_type, values)
        # One thread per question: a pool whose disk hangs must not collect those that ask again each minute.
        found = self._node.claims.run(
            ("capacity", *question), question, call.deadline, lambda: capacity.ask(self._node.pools, *question)
        )
        response = csi_pb2.GetCapacityResponse(available_capacity=found.available_bytes)
        response.maximum_volume_size.value = found.maximum_bytes
        response.minimum_volume_size.value = found.minimum_bytes
        return response

    def CreateSnapshot(self, request: csi_pb2.CreateSnapshotRequest, call: Call) -> csi_pb2.CreateSnapshotResponse:
        spec = parsing.snapshot_spec(request)
        here = self._includes_this_node(request.accessibility_requirements)
        snapshot = self._snapshot(self._node.snapshots.create(spec, call.deadline, is_accessible=here))
        if self._is_only_this_node(request.accessibility_requirements):
            # The caller has said it already, and csi-sanity 5.6 fails whoever repeats it: it compares the topologies
            # with protobuf's cached sizes. GetSnapshot and ListSnapshots always tell.
            snapshot.ClearField("accessible_topology")
        return csi_pb2.CreateSnapshotResponse(snapshot=snapshot)

    def DeleteSnapshot(self, request: csi_pb2.DeleteSnapshotRequest, call: Call) -> csi_pb2.DeleteSnapshotResponse:
        self._node.snapshots.delete(parsing.snapshot_id(request.snapshot_id), call.deadline)
        return csi_pb2.DeleteSnapshotResponse()

    def ListSnapshots(self, request: csi_pb2.ListSnapshotsRequest, call: Call) -> csi_pb2.ListSnapshotsResponse:
        snapshots, complete = self._node.snapshots.page(
            parsing.max_entries(request.max_entries),
            request.starting_token,
            source_volume_id=request.source_volume_id,
            snapshot_id=request.snapshot_id,
        )
        return answers.snapshot_page((self._snapshot(one) for one in snapshots), complete=complete)

    def GetSnapshot(self, request: csi_pb2.GetSnapshotRequest, call: Call) -> csi_pb2.GetSnapshotResponse:
        snapshot = self._node.snapshot_catalogue.get(parsing.snapshot_id(request.snapshot_id))
        return csi_pb2.GetSnapshotResponse(snapshot=self._snapshot(snapshot))

    def _snapshot(self, snapshot: Snapshot) -> csi_pb2.Snapshot:
        return answers.snapshot(snapshot, self._node.topology)

    def _volume(self, volume: Volume) -> csi_pb2.Volume:
        return answers.volume(volume, self._node.topology)

    def _includes_this_node(self, requirement: csi_pb2.TopologyRequirement) -> bool:
        """Whether a volume here satisfies the requirement: without requisite topologies any place does."""
        if requirement.requisite:
            return self._is_this_node(requirement.requisite)
        return True

    def _is_only_this_node(self, requirement: csi_pb2.TopologyRequirement) -> bool:
        own = self._node.topology
        return bool(requirement.requisite) and all(dict(one.segments) == own for one in requirement.requisite)

    def _is_this_node(self, topologies: Iterable[csi_pb2.Topology]) -> bool:
        own = self._node.topology
        for topology in topologies:
            if not topology.segments:
                raise InvalidField("topology.segments", "nothing", f"the segment {next(iter(own))}")
            if all(own.get(key) == value for key, value in topology.segments.items()):
                return True
        return False
