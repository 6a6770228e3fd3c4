"""Requests turned into values: behind here no protobuf and no unchecked string exists; decides nothing about volumes.

Every refusal names the field as the request spells it, what was given and what is allowed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final

from csi_driver.errors import CapabilityExceeded, InvalidField, MissingField, VolumeNotFound
from csi_driver.model import (
    AccessMode,
    AccessType,
    CapacityRange,
    ContentSource,
    GroupSpec,
    Publication,
    SnapshotSpec,
    SourceKind,
    VolumeCapability,
    VolumeParameters,
    VolumeSpec,
)
from csi_driver.pb import csi_pb2
from csi_driver.rpc import mutable
from csi_driver.rpc import parameters as class_parameters

_MODES: Final = {csi_pb2.VolumeCapability.AccessMode.Mode.Value(mode.value): mode for mode in AccessMode}
_KNOWN_MODES: Final = frozenset(csi_pb2.VolumeCapability.AccessMode.Mode.values()) - {0}
_ALLOWED_MODES: Final = ", ".join(AccessMode)
_MAX_INT64: Final = (1 << 63) - 1
# Spec: CreateVolumeRequest.name; tab, line feed and carriage return are allowed there. A name never becomes a path.
_BANNED: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
# All of them are frozen within one budget, and all their ids stand in one record.
_MOST_MEMBERS: Final = 64
_VOLUME_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def name(value: str) -> str:
    """The idempotency key of a create: any text without the control characters that the protocol bans."""
    _require("name", value)
    if _BANNED.search(value):
        raise InvalidField("name", value, "text without control characters other than tab and line ends")
    return value


def volume_id(value: str, field: str = "volume_id") -> str:
    """An id as a caller gives it; it is only ever looked up."""
    _require(field, value)
    if not _VOLUME_ID.fullmatch(value):
        raise InvalidField(field, value, "letters, digits, '.', '_' and '-', beginning with a letter or digit")
    return value


def persistent_id(value: str, is_ephemeral: Callable[[str], bool]) -> str:
    """An id for a call that no ephemeral volume has: whoever names the id of one, in a PersistentVolume, finds none.

    Raises: VolumeNotFound.
    """
    checked = volume_id(value)
    if is_ephemeral(checked):
        raise VolumeNotFound(checked)
    return checked


def snapshot_id(value: str) -> str:
    """The id of a snapshot, likewise."""
    return volume_id(value, "snapshot_id")


def content_source(request: csi_pb2.CreateVolumeRequest) -> ContentSource | None:
    """What the volume's content is to be copied from."""
    if not request.HasField("volume_content_source"):
        return None
    source = request.volume_content_source
    if source.WhichOneof("type") == "snapshot":
        field = "volume_content_source.snapshot.snapshot_id"
        return ContentSource(SourceKind.SNAPSHOT, volume_id(source.snapshot.snapshot_id, field))
    if source.WhichOneof("type") == "volume":
        return ContentSource(
            SourceKind.VOLUME, volume_id(source.volume.volume_id, "volume_content_source.volume.volume_id")
        )
    raise MissingField("volume_content_source.type")


def snapshot_spec(request: csi_pb2.CreateSnapshotRequest) -> SnapshotSpec:
    """What a CreateSnapshot asks for.

    Raises: InvalidField, MissingField.
    """
    asked_name = name(request.name)
    source = volume_id(request.source_volume_id, "source_volume_id")
    retention = class_parameters.snapshot_retention(request.parameters)
    return SnapshotSpec(asked_name, source, *(retention or ()))


def given(field: str, value: str) -> str:
    """A text that must not be empty.

    Raises: MissingField.
    """
    return _require(field, value)


def group_spec(request: csi_pb2.CreateVolumeGroupSnapshotRequest) -> GroupSpec:
    """What a CreateVolumeGroupSnapshot asks for.

    Raises: InvalidField, MissingField.
    """
    asked_name = name(request.name)
    if not request.source_volume_ids:
        raise MissingField("source_volume_ids")
    if len(request.source_volume_ids) > _MOST_MEMBERS:
        raise InvalidField("source_volume_ids", len(request.source_volume_ids), f"at most {_MOST_MEMBERS} volumes")
    sources = tuple(volume_id(one, "source_volume_ids") for one in request.source_volume_ids)
    for one in sources:
        if sources.count(one) > 1:
            raise InvalidField("source_volume_ids", one, "each volume once")
    class_parameters.check_group(request.parameters)
    return GroupSpec(asked_name, sources)


def group_members(
    request: csi_pb2.DeleteVolumeGroupSnapshotRequest | csi_pb2.GetVolumeGroupSnapshotRequest,
) -> tuple[str, tuple[str, ...]]:
    """The id of a group snapshot, and those of its members as far as the caller names them."""
    group_id = volume_id(request.group_snapshot_id, "group_snapshot_id")
    return group_id, tuple(volume_id(one, "snapshot_ids") for one in request.snapshot_ids)


def path(field: str, value: str) -> str:
    """A path that must be given; it is judged when it is opened."""
    return _require(field, value)


def optional_path(field: str, value: str) -> str:
    """A path that need not be given, and then is absolute."""
    if value and not value.startswith("/"):
        raise InvalidField(field, value, "an absolute path")
    return value


def capacity_range(request: csi_pb2.CapacityRange) -> CapacityRange:
    """The range that is asked, in bytes."""
    required, limit = request.required_bytes, request.limit_bytes
    for field, value in (("required_bytes", required), ("limit_bytes", limit)):
        if value < 0:
            raise InvalidField(f"capacity_range.{field}", value, f"0 to {_MAX_INT64}")
    if limit and required > limit:
        raise InvalidField("capacity_range.required_bytes", required, f"at most limit_bytes ({limit})")
    return CapacityRange(required, limit)


def larger_range(request: csi_pb2.ControllerExpandVolumeRequest) -> CapacityRange:
    """The range that an expansion must name."""
    asked = capacity_range(request.capacity_range)
    if asked == CapacityRange():
        raise MissingField("capacity_range")
    return asked


def optional_capability(
    request: csi_pb2.ControllerExpandVolumeRequest | csi_pb2.NodeExpandVolumeRequest,
) -> VolumeCapability | None:
    """The capability that an expansion may name."""
    return capability(request.volume_capability) if request.HasField("volume_capability") else None


def capability(request: csi_pb2.VolumeCapability, field: str = "volume_capability") -> VolumeCapability:
    """One capability with an access type and an access mode that a volume of one node can have."""
    kind = request.WhichOneof("access_type")
    if kind is None:
        raise MissingField(f"{field}.access_type")
    mode = _MODES.get(request.access_mode.mode)
    if mode is None:
        if not request.access_mode.mode:
            raise MissingField(f"{field}.access_mode")
        given = _mode_name(request.access_mode.mode)
        raise InvalidField(f"{field}.access_mode", given, f"{_ALLOWED_MODES} (a volume lives on one node)")
    if kind == "block":
        return VolumeCapability(AccessType.BLOCK, mode)
    mount = request.mount
    if mount.volume_mount_group:
        raise InvalidField(
            f"{field}.mount.volume_mount_group",
            mount.volume_mount_group,
            "nothing: VOLUME_MOUNT_GROUP is not offered",
        )
    return VolumeCapability(AccessType.MOUNT, mode, mount.fs_type, tuple(mount.mount_flags))


def capabilities(requests: Sequence[csi_pb2.VolumeCapability]) -> list[VolumeCapability]:
    """All capabilities of a request, at least one, all for one access type and one filesystem."""
    if not requests:
        raise MissingField("volume_capabilities")
    parsed = [capability(request, f"volume_capabilities[{index}]") for index, request in enumerate(requests)]
    for index, other in enumerate(parsed):
        if (other.access_type, other.fs_type) != (parsed[0].access_type, parsed[0].fs_type):
            raise InvalidField(
                f"volume_capabilities[{index}]",
                other.access_type,
                "one access type and fs_type for all of a volume",
            )
    return parsed


def spec(request: csi_pb2.CreateVolumeRequest) -> VolumeSpec:
    """What a CreateVolume asks for.

    Raises: InvalidField, MissingField.
    """
    asked_name = name(request.name)
    source = content_source(request)
    wanted = mutable.merged(request.parameters, request.mutable_parameters)
    asked = capabilities(request.volume_capabilities)
    access_type, fs_type = asked[0].access_type, asked[0].fs_type
    values = class_parameters.parse(wanted, access_type)
    inherits = frozenset[str]() if source is None else class_parameters.left_open(wanted, fs_type)
    fs_type = class_parameters.filesystem_of(values, access_type, fs_type)
    class_parameters.check_mkfs_options(values, fs_type)
    if "fs_type" not in inherits:
        for index, one in enumerate(asked):
            class_parameters.check_mount_flags(fs_type, one, f"volume_capabilities[{index}]")
    size = capacity_range(request.capacity_range)
    return VolumeSpec(asked_name, size, access_type, fs_type, values, source, inherits)


def publication(request: csi_pb2.NodePublishVolumeRequest) -> Publication:
    """What a NodePublishVolume shows, and where."""
    target = path("target_path", request.target_path)
    asked = _required_capability(request)
    return Publication(target, asked, request.readonly or asked.access_mode.is_read_only)


def staging_capability(request: csi_pb2.NodeStageVolumeRequest) -> VolumeCapability:
    """How a NodeStageVolume wants the volume."""
    return _required_capability(request)


def capacity_question(request: csi_pb2.GetCapacityRequest) -> tuple[AccessType, str, VolumeParameters]:
    """For which kind of volume GetCapacity asks: access type, filesystem and parameters.

    Without capabilities: a mounted filesystem, the default one.
    """
    asked = capabilities(request.volume_capabilities) if request.volume_capabilities else []
    access_type = asked[0].access_type if asked else AccessType.MOUNT
    values = class_parameters.parse(request.parameters, access_type)
    return (
        access_type,
        class_parameters.filesystem_of(values, access_type, asked[0].fs_type if asked else ""),
        values,
    )


def max_entries(value: int) -> int:
    """The page size of a list; 0 leaves it to us."""
    if value < 0:
        raise InvalidField("max_entries", value, "0 or more")
    return value


def _required_capability(
    request: csi_pb2.NodeStageVolumeRequest | csi_pb2.NodePublishVolumeRequest,
) -> VolumeCapability:
    if not request.HasField("volume_capability"):
        raise MissingField("volume_capability")
    mode = request.volume_capability.access_mode.mode
    if mode not in _MODES and mode in _KNOWN_MODES:
        # A well-formed capability that no volume here has (spec: "Exceeds capabilities" of both Node calls).
        raise CapabilityExceeded(
            f"volume_capability.access_mode: {_mode_name(mode)} is more than a volume of one node has; "
            f"allowed: {_ALLOWED_MODES}"
        )
    return capability(request.volume_capability)


def _require(field: str, value: str) -> str:
    if not value:
        raise MissingField(field)
    return value


def _mode_name(number: int) -> str:
    known = csi_pb2.VolumeCapability.AccessMode.Mode.DESCRIPTOR.values_by_number.get(number)
    return known.name if known is not None else str(number)
