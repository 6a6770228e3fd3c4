"""The driver's RPCs for our own command line, over its UNIX socket; answers come as plain dictionaries."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import grpc
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from csi_driver.errors import CallFailed
from csi_driver.model import AccessMode
from csi_driver.pb import admin_pb2, csi_pb2
from csi_driver.rpc import endpoint
from csi_driver.rpc.edge import message_class

_SECONDS = 600.0
# For what the driver answers from memory, whatever hangs.
_MEMORY_SECONDS = 60.0


class Client:
    """One connection; every method raises CallFailed with the driver's own words."""

    def __init__(self, endpoint_url: str) -> None:
        self._path = endpoint.socket_path(endpoint_url)
        # The name in front of a UNIX socket means nothing, but an unset authority is the percent-encoded path.
        self._channel = grpc.insecure_channel(f"unix:{self._path}", options=[("grpc.default_authority", "localhost")])

    def close(self) -> None:
        self._channel.close()

    def pools(self) -> list[dict[str, Any]]:
        """Every pool with its numbers."""
        return [plain(pool) for pool in self._admin("ListPools", admin_pb2.ListPoolsRequest()).pools]

    def grow_pool(self, name: str, size_bytes: int) -> dict[str, Any]:
        """Let a pool's backing file grow; the pool with its numbers."""
        return plain(self._admin("GrowPool", admin_pb2.GrowPoolRequest(name=name, size_bytes=size_bytes)))

    def volumes(self) -> Iterator[dict[str, Any]]:
        """Every volume, page by page."""
        token = ""
        while True:
            page = self._admin("ListVolumes", admin_pb2.ListVolumesRequest(starting_token=token))
            yield from (plain(volume) for volume in page.volumes)
            token = page.next_token
            if not token:
                return

    def listed_volumes(self) -> Iterator[dict[str, Any]]:
        """Every volume as ListVolumes tells it, page by page; a controller has no other view."""
        token = ""
        while True:
            page = self._csi("Controller", "ListVolumes", csi_pb2.ListVolumesRequest(starting_token=token))
            yield from (plain(entry.volume) for entry in page.entries)
            token = page.next_token
            if not token:
                return

    def volume(self, volume_id: str) -> dict[str, Any]:
        """One volume by its id."""
        return plain(self._admin("GetVolume", admin_pb2.GetVolumeRequest(volume_id=volume_id)))

    def volume_named(self, name: str) -> dict[str, Any]:
        """One volume by the name that it was created under."""
        return plain(self._admin("GetVolume", admin_pb2.GetVolumeRequest(name=name)))

    def create_volume(
        self,
        name: str,
        *,
        required_bytes: int,
        limit_bytes: int,
        block: bool,
        fs_type: str,
        mount_flags: Sequence[str],
        parameters: Mapping[str, str],
        from_snapshot: str = "",
        from_volume: str = "",
    ) -> dict[str, Any]:
        """CreateVolume; the answer is the volume as the protocol tells it."""
        request = csi_pb2.CreateVolumeRequest(name=name, parameters=parameters)
        if from_snapshot:
            request.volume_content_source.snapshot.snapshot_id = from_snapshot
        elif from_volume:
            request.volume_content_source.volume.volume_id = from_volume
        if required_bytes or limit_bytes:
            request.capacity_range.required_bytes = required_bytes
            request.capacity_range.limit_bytes = limit_bytes
        request.volume_capabilities.append(_capability(block, fs_type, mount_flags))
        # A copy takes as long as it takes.
        seconds = None if request.HasField("volume_content_source") else _SECONDS
        return plain(self._csi("Controller", "CreateVolume", request, seconds).volume)

    def operations(self) -> list[dict[str, Any]]:
        """What takes long and is under way."""
        return [plain(one) for one in self._admin("ListOperations", admin_pb2.ListOperationsRequest()).operations]

    def troubles(self) -> Iterator[dict[str, Any]]:
        """What is wrong with the node, and what nobody has looked at yet."""
        method = admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods_by_name["ListTroubles"]
        yield from map(plain, self._stream(method, admin_pb2.ListTroublesRequest(), _MEMORY_SECONDS))

    def delete_volume(self, volume_id: str) -> None:
        """DeleteVolume."""
        self._csi("Controller", "DeleteVolume", csi_pb2.DeleteVolumeRequest(volume_id=volume_id))

    def snapshots(self) -> Iterator[dict[str, Any]]:
        """Every snapshot, page by page."""
        token = ""
        while True:
            page = self._admin("ListSnapshots", admin_pb2.ListSnapshotsRequest(starting_token=token))
            yield from (plain(snapshot) for snapshot in page.snapshots)
            token = page.next_token
            if not token:
                return

    def snapshot(self, snapshot_id: str) -> dict[str, Any]:
        """One snapshot by its id."""
        return plain(self._admin("GetSnapshot", admin_pb2.GetSnapshotRequest(snapshot_id=snapshot_id)))

    def snapshot_named(self, name: str) -> dict[str, Any]:
        """One snapshot by the name that it was created under."""
        return plain(self._admin("GetSnapshot", admin_pb2.GetSnapshotRequest(name=name)))

    def create_snapshot(self, name: str, source_volume_id: str) -> dict[str, Any]:
        """CreateSnapshot; the answer is the snapshot as the protocol tells it."""
        request = csi_pb2.CreateSnapshotRequest(name=name, source_volume_id=source_volume_id)
        return plain(self._csi("Controller", "CreateSnapshot", request).snapshot)

    def delete_snapshot(self, snapshot_id: str) -> None:
        """DeleteSnapshot."""
        self._csi("Controller", "DeleteSnapshot", csi_pb2.DeleteSnapshotRequest(snapshot_id=snapshot_id))

    def groups(self) -> Iterator[dict[str, Any]]:
        """Every group snapshot, page by page."""
        token = ""
        while True:
            page = self._admin("ListGroupSnapshots", admin_pb2.ListGroupSnapshotsRequest(starting_token=token))
            yield from (plain(group) for group in page.groups)
            token = page.next_token
            if not token:
                return

    def group(self, group_id: str) -> dict[str, Any]:
        """One group snapshot by its id."""
        return plain(self._admin("GetGroupSnapshot", admin_pb2.GetGroupSnapshotRequest(group_snapshot_id=group_id)))

    def group_named(self, name: str) -> dict[str, Any]:
        """One group snapshot by the name that it was created under."""
        return plain(self._admin("GetGroupSnapshot", admin_pb2.GetGroupSnapshotRequest(name=name)))

    def create_group(self, name: str, source_volume_ids: Sequence[str]) -> str:
        """CreateVolumeGroupSnapshot; its id."""
        request = csi_pb2.CreateVolumeGroupSnapshotRequest(name=name, source_volume_ids=source_volume_ids)
        answer = self._csi("GroupController", "CreateVolumeGroupSnapshot", request)
        return str(answer.group_snapshot.group_snapshot_id)

    def delete_group(self, group_id: str, snapshot_ids: Sequence[str]) -> None:
        """DeleteVolumeGroupSnapshot."""
        request = csi_pb2.DeleteVolumeGroupSnapshotRequest(group_snapshot_id=group_id, snapshot_ids=snapshot_ids)
        self._csi("GroupController", "DeleteVolumeGroupSnapshot", request)

    def trash(self) -> Iterator[dict[str, Any]]:
        """Everything in the trash, page by page."""
        token = ""
        while True:
            page = self._admin("ListTrash", admin_pb2.ListTrashRequest(starting_token=token))
            for entry in page.entries:
                row = plain(entry)
                yield row if entry.HasField("expires") else {**row, "expires": ""}
            token = page.next_token
            if not token:
                return

    def restore_trash(self, entry: str) -> dict[str, Any]:
        """What came back from the trash."""
        return plain(self._admin("RestoreTrash", admin_pb2.RestoreTrashRequest(entry=entry)))

    def purge_trash(self, entry: str) -> None:
        """An entry of the trash is gone for good."""
        self._admin("PurgeTrash", admin_pb2.PurgeTrashRequest(entry=entry))

    def rollback_volume(self, volume_id: str, snapshot_id: str) -> str:
        """The trash entry of what the volume held before."""
        request = admin_pb2.RollbackVolumeRequest(volume_id=volume_id, snapshot_id=snapshot_id)
        return str(self._admin("RollbackVolume", request, None).entry)

    def expand_volume(self, volume_id: str, *, required_bytes: int, limit_bytes: int) -> dict[str, Any]:
        """ControllerExpandVolume; the size that the volume has now, and whether `expand_on_node` is to follow."""
        request = csi_pb2.ControllerExpandVolumeRequest(volume_id=volume_id)
        request.capacity_range.required_bytes = required_bytes
        request.capacity_range.limit_bytes = limit_bytes
        return plain(self._csi("Controller", "ControllerExpandVolume", request))

    def modify_volume(self, volume_id: str, mutable_parameters: Mapping[str, str]) -> None:
        """ControllerModifyVolume."""
        request = csi_pb2.ControllerModifyVolumeRequest(volume_id=volume_id, mutable_parameters=mutable_parameters)
        self._csi("Controller", "ControllerModifyVolume", request)

    def expand_on_node(self, volume_id: str, path: str) -> None:
        """NodeExpandVolume for the volume that is staged or published at `path`."""
        request = csi_pb2.NodeExpandVolumeRequest(volume_id=volume_id, volume_path=path)
        self._csi("Node", "NodeExpandVolume", request)

    def stage(self, volume_id: str, path: str, *, block: bool, mount_flags: Sequence[str]) -> None:
        """NodeStageVolume."""
        request = csi_pb2.NodeStageVolumeRequest(volume_id=volume_id, staging_target_path=path)
        request.volume_capability.CopyFrom(_capability(block, "", mount_flags))
        self._csi("Node", "NodeStageVolume", request)

    def publish(
        self,
        volume_id: str,
        staging: str,
        target: str,
        *,
        block: bool,
        mount_flags: Sequence[str],
        read_only: bool,
    ) -> None:
        """NodePublishVolume."""
        request = csi_pb2.NodePublishVolumeRequest(
            volume_id=volume_id, staging_target_path=staging, target_path=target, readonly=read_only
        )
        request.volume_capability.CopyFrom(_capability(block, "", mount_flags))
        self._csi("Node", "NodePublishVolume", request)

    def unpublish(self, volume_id: str, target: str) -> None:
        """NodeUnpublishVolume."""
        request = csi_pb2.NodeUnpublishVolumeRequest(volume_id=volume_id, target_path=target)
        self._csi("Node", "NodeUnpublishVolume", request)

    def unstage(self, volume_id: str, path: str) -> None:
        """NodeUnstageVolume."""
        request = csi_pb2.NodeUnstageVolumeRequest(volume_id=volume_id, staging_target_path=path)
        self._csi("Node", "NodeUnstageVolume", request)

    def snapshot_blocks(self, snapshot_id: str, base_id: str, starting_offset: int) -> Iterator[tuple[int, int]]:
        """Offset and size of what holds data in a snapshot or, with a base, of what differs from that one."""
        methods = csi_pb2.DESCRIPTOR.services_by_name["SnapshotMetadata"].methods_by_name
        if base_id:
            delta = csi_pb2.GetMetadataDeltaRequest(
                base_snapshot_id=base_id, target_snapshot_id=snapshot_id, starting_offset=starting_offset
            )
            messages = self._stream(methods["GetMetadataDelta"], delta)
        else:
            whole = csi_pb2.GetMetadataAllocatedRequest(snapshot_id=snapshot_id, starting_offset=starting_offset)
            messages = self._stream(methods["GetMetadataAllocated"], whole)
        for message in messages:
            yield from ((one.byte_offset, one.size_bytes) for one in message.block_metadata)

    def export(self, object_id: str, base_id: str = "") -> Iterator[bytes]:
        """The content of a volume or snapshot as a stream; with a base, what differs from that snapshot."""
        method = admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods_by_name["Export"]
        yield from (
            message.data for message in self._stream(method, admin_pb2.ExportRequest(id=object_id, base_id=base_id))
        )

    def import_volume(self, chunks: Iterator[bytes], options: Mapping[str, Any]) -> dict[str, Any]:
        """A new volume from such a stream."""
        invoke = self._channel.stream_unary(
            "/hostvol.admin.v1.Admin/Import",
            request_serializer=admin_pb2.ImportRequest.SerializeToString,
            response_deserializer=admin_pb2.ImportResponse.FromString,
        )
        first = admin_pb2.ImportRequest(options=admin_pb2.ImportOptions(**options))
        try:
            return plain(invoke(itertools.chain([first], (admin_pb2.ImportRequest(data=chunk) for chunk in chunks))))
        except grpc.RpcError as error:
            raise self._explained(error) from error

    def _stream(self, method: MethodDescriptor, request: Message, seconds: float | None = None) -> Iterator[Any]:
        """The messages; without `seconds` however long they take: what is compared is read."""
        invoke = self._channel.unary_stream(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=message_class(method.output_type).FromString,
        )
        try:
            yield from invoke(request, timeout=seconds)
        except grpc.RpcError as error:
            raise self._explained(error) from error

    def _csi(self, service: str, method: str, request: Message, seconds: float | None = _SECONDS) -> Any:
        return self._call(csi_pb2.DESCRIPTOR.services_by_name[service].methods_by_name[method], request, seconds)

    def _admin(self, method: str, request: Message, seconds: float | None = _SECONDS) -> Any:
        return self._call(admin_pb2.DESCRIPTOR.services_by_name["Admin"].methods_by_name[method], request, seconds)

    def _call(self, method: MethodDescriptor, request: Message, seconds: float | None) -> Any:
        invoke = self._channel.unary_unary(
            f"/{method.containing_service.full_name}/{method.name}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=message_class(method.output_type).FromString,
        )
        try:
            return invoke(request, timeout=seconds)
        except grpc.RpcError as error:
            raise self._explained(error) from error

    def _explained(self, error: grpc.RpcError) -> CallFailed:
        code, details = error.code(), error.details() or "no reason given"
        if code is grpc.StatusCode.UNAVAILABLE and "connect" in details.lower():
            return CallFailed(
                code.name,
                f"no driver answers on {self._path}: start it with `hostvol node`, or give --endpoint",
            )
        return CallFailed(code.name, details)


def plain(message: Message) -> dict[str, Any]:
    """A message as names and values, unset fields included; times in ISO 8601."""
    return {field.name: _value(field, getattr(message, field.name)) for field in message.DESCRIPTOR.fields}


def _value(field: Any, value: Any) -> Any:
    if field.type != FieldDescriptor.TYPE_MESSAGE:
        return list(value) if field.is_repeated else value
    if field.message_type.GetOptions().map_entry:
        return dict(value)
    if field.is_repeated:
        return [plain(item) for item in value]
    if isinstance(value, Timestamp):
        return value.ToJsonString()
    return plain(value)


def _mode() -> csi_pb2.VolumeCapability.AccessMode:
    return csi_pb2.VolumeCapability.AccessMode(mode=AccessMode.SINGLE_NODE_MULTI_WRITER.value)


def _capability(block: bool, fs_type: str, mount_flags: Sequence[str]) -> csi_pb2.VolumeCapability:
    capability = csi_pb2.VolumeCapability(access_mode=_mode())
    if block:
        capability.block.SetInParent()
    else:
        capability.mount.fs_type = fs_type
        capability.mount.mount_flags.extend(mount_flags)
    return capability
