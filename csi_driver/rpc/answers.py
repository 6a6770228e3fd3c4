"""Answers built from values; decides nothing, except how much of a list fits into one message."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from csi_driver.domain import pages, sizes
from csi_driver.domain.capabilities import check_capability
from csi_driver.domain.troubles import Severity, Trouble
from csi_driver.errors import HostvolError, InvalidField, MissingField
from csi_driver.model import GroupSnapshot, Snapshot, SourceKind, Usage, Volume
from csi_driver.pb import csi_pb2
from csi_driver.rpc import mutable, parameters, parsing

# Clients accept 4 MiB; a larger answer reaches them as RESOURCE_EXHAUSTED, which a provisioner takes for a full disk.
_PAGE_BYTES = 3 << 20


def volume(held: Volume, topology: Mapping[str, str]) -> csi_pb2.Volume:
    """The volume as the protocol tells it."""
    message = csi_pb2.Volume(
        capacity_bytes=held.capacity_bytes, volume_id=held.volume_id, volume_context=volume_context(held)
    )
    message.accessible_topology.add().segments.update(topology)
    if held.source is not None and held.source.kind is SourceKind.SNAPSHOT:
        message.content_source.snapshot.snapshot_id = held.source.object_id
    elif held.source is not None:
        message.content_source.volume.volume_id = held.source.object_id
    return message


def snapshot(held: Snapshot, topology: Mapping[str, str]) -> csi_pb2.Snapshot:
    """The snapshot as the protocol tells it."""
    message = csi_pb2.Snapshot(
        snapshot_id=held.snapshot_id,
        source_volume_id=held.source_volume_id,
        size_bytes=sizes.told_bytes(held),
        ready_to_use=held.is_ready,
        group_snapshot_id=held.group_snapshot_id,
    )
    message.creation_time.FromNanoseconds(int(held.created_at * 1e9))
    message.accessible_topology.add().segments.update(topology)
    return message


def group_snapshot(
    held: GroupSnapshot, members: Iterable[Snapshot], topology: Mapping[str, str]
) -> csi_pb2.VolumeGroupSnapshot:
    """The group with all its members; a group is ready from its beginning."""
    message = csi_pb2.VolumeGroupSnapshot(group_snapshot_id=held.group_snapshot_id, ready_to_use=True)
    message.creation_time.FromNanoseconds(int(held.created_at * 1e9))
    message.snapshots.extend(snapshot(one, topology) for one in members)
    return message


def volume_context(held: Volume) -> dict[str, str]:
    """What a PV says about its volume, for people; Node calls compare it with the record."""
    return {"type": held.volume_type.value, "pool": held.pool}


def check_volume_context(held: Volume, given: Mapping[str, str]) -> None:
    """Refuse a context that contradicts the record; keys of others (sidecars, kubelet) are ignored.

    Raises: InvalidField naming the key.
    """
    for key, value in volume_context(held).items():
        if given.get(key, value) != value:
            raise InvalidField(f"volume_context.{key}", given[key], f"{value!r}, as the volume was created")


def volume_page(volumes: Iterable[csi_pb2.Volume], *, complete: bool) -> csi_pb2.ListVolumesResponse:
    """One page of at most 3 MiB; `complete` says that nothing follows the last of `volumes`."""
    response = csi_pb2.ListVolumesResponse()
    size = 0
    for message in volumes:
        size += message.ByteSize() + 8
        if size > _PAGE_BYTES:
            complete = False
            break
        response.entries.add().volume.CopyFrom(message)
    if response.entries and not complete:
        response.next_token = pages.token_after(response.entries[-1].volume.volume_id)
    return response


def snapshot_page(snapshots: Iterable[csi_pb2.Snapshot], *, complete: bool) -> csi_pb2.ListSnapshotsResponse:
    """The same for snapshots."""
    response = csi_pb2.ListSnapshotsResponse()
    size = 0
    for message in snapshots:
        size += message.ByteSize() + 8
        if size > _PAGE_BYTES:
            complete = False
            break
        response.entries.add().snapshot.CopyFrom(message)
    if response.entries and not complete:
        response.next_token = pages.token_after(response.entries[-1].snapshot.snapshot_id)
    return response


def volume_health(volume_id: str, found: Iterable[Trouble]) -> csi_pb2.VolumeHealth:
    """The troubles of one volume, none for a healthy one."""
    message = csi_pb2.VolumeHealth(volume_id=volume_id)
    for one in found:
        status = csi_pb2.VolumeHealthErrorType.Value(one.severity.value)
        message.health_statuses.add(status=status, reason=one.reason, message=one.message)
    return message


def health_page(found: Mapping[str, Iterable[Trouble]], limit: int) -> csi_pb2.ControllerListVolumeHealthResponse:
    """One page of at most `limit` volumes (0: no limit) and 3 MiB, in the order that they are given in."""
    response = csi_pb2.ControllerListVolumeHealthResponse()
    size = 0
    for volume_id, its in found.items():
        message = volume_health(volume_id, its)
        size += message.ByteSize() + 8
        if response.entries and (len(response.entries) == limit or size > _PAGE_BYTES):
            response.next_token = pages.token_after(response.entries[-1].volume_id)
            break
        response.entries.append(message)
    return response


def storage_health(found: Iterable[Trouble]) -> csi_pb2.NodeGetStorageHealthResponse:
    """The troubles of pools; those of one kind are one entry, as the spec wants it."""
    response = csi_pb2.NodeGetStorageHealthResponse()
    by_reason: dict[tuple[csi_pb2.StorageHealthErrorType, str], list[str]] = {}
    for one in found:
        is_down = one.severity is Severity.INACCESSIBLE
        status = csi_pb2.STORAGE_UNREACHABLE if is_down else csi_pb2.STORAGE_DEGRADED
        by_reason.setdefault((status, one.reason), []).append(one.message)
    for (status, reason), messages in by_reason.items():
        response.backend_health.add(status=status, reason=reason, message="; ".join(messages))
    return response


def usage(found: Usage) -> csi_pb2.NodeGetVolumeStatsResponse:
    """Statistics in bytes, and in inodes where the volume has them."""
    response = csi_pb2.NodeGetVolumeStatsResponse()
    entry = response.usage.add(unit=csi_pb2.VolumeUsage.BYTES, total=found.total_bytes)
    entry.used, entry.available = found.used_bytes, found.available_bytes
    if found.total_inodes:
        entry = response.usage.add(unit=csi_pb2.VolumeUsage.INODES, total=found.total_inodes)
        entry.used, entry.available = found.used_inodes, found.available_inodes
    return response


def refusal_of(held: Volume, request: csi_pb2.ValidateVolumeCapabilitiesRequest) -> str:
    """Why the volume does not have what is asked, in words; empty when it has.

    Raises: MissingField: an incomplete question is no question about the volume.
    """
    try:
        check_volume_context(held, request.volume_context)
        for capability in parsing.capabilities(request.volume_capabilities):
            check_capability(held, capability)
        changes = mutable.parse(request.mutable_parameters)
        if changes.applied_to(held.parameters) != held.parameters:
            return "mutable_parameters: the volume has others"
        if request.parameters and not _has_parameters(held, {**request.parameters, **request.mutable_parameters}):
            return "parameters: the volume was created with others"
    except MissingField:
        raise
    except HostvolError as cause:
        return str(cause)
    return ""


def _has_parameters(held: Volume, given: Mapping[str, str]) -> bool:
    asked = parameters.parse(given, held.access_type)
    if held.source is not None and "block_size" in parameters.left_open(given, ""):
        asked = dataclasses.replace(asked, block_size=held.parameters.block_size)
    return asked in (held.parameters, held.first_parameters)
