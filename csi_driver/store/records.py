"""One small JSON record per object, with a schema version and a checksum; knows no kernel and no protocol."""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from typing import Any

from csi_driver.errors import RecordDamaged
from csi_driver.model import (
    AccessType,
    ContentSource,
    GroupId,
    GroupSnapshot,
    PoolName,
    Provisioning,
    QuotaPolicy,
    RetentionPolicy,
    Snapshot,
    SnapshotId,
    SourceKind,
    Volume,
    VolumeId,
    VolumeParameters,
    VolumeType,
)
from csi_driver.store import durable

SCHEMA = 1
RECORD = "record.json"
GROUP_SUFFIX = ".json"
_LIMIT_BYTES = 16384
_NO_GROUP = {"id": "", "pool": ""}
_NAME = re.compile(rb'"name":("(?:[^"\\]|\\.)*")')


def seal(kind: str, body: dict[str, Any]) -> bytes:
    """The bytes of a record: its body, and a checksum over exactly the body's canonical form."""
    record = {"schema": SCHEMA, "kind": kind, **body}
    text = _canonical(record)
    return b'{"record":' + text + b',"sha256":"' + hashlib.sha256(text).hexdigest().encode() + b'"}\n'


def unseal(content: bytes, kind: str, where: str) -> dict[str, Any]:
    """The body of a record whose checksum, schema and kind are right.

    Raises: RecordDamaged naming `where` and the reason.
    """
    try:
        envelope = json.loads(content)
        record, checksum = envelope["record"], envelope["sha256"]
        schema, found_kind = record["schema"], record["kind"]
    except (ValueError, KeyError, TypeError, RecursionError) as cause:
        raise RecordDamaged(where, "not a record") from cause
    if hashlib.sha256(_canonical(record)).hexdigest() != checksum:
        raise RecordDamaged(where, "its checksum does not match")
    if schema != SCHEMA:
        raise RecordDamaged(where, f"its schema is {schema}, this version reads {SCHEMA}")
    if found_kind != kind:
        raise RecordDamaged(where, f"it is a {found_kind}, not a {kind}")
    body: dict[str, Any] = record
    return body


def write_volume(dir_fd: int, volume: Volume) -> None:
    """Write the first record of a volume that is being built; fsynced, its directory entry is not."""
    durable.write_new(dir_fd, RECORD, seal("volume", _volume_body(volume)))


def write_snapshot(dir_fd: int, snapshot: Snapshot) -> None:
    """Write the first record of a snapshot that is being built; fsynced, its directory entry is not."""
    durable.write_new(dir_fd, RECORD, seal("snapshot", _snapshot_body(snapshot)))


def read_member(dir_fd: int, directory: str, where: str) -> Snapshot:
    """The snapshot whose record lies in `directory`, which is not its place yet.

    Raises: RecordDamaged for whatever is wrong with it, a missing record included.
    """
    return _snapshot_from(_read(dir_fd, directory, "snapshot", where), where)


def write_group(groups_fd: int, group: GroupSnapshot) -> None:
    """Put the record of a group into its place, or in the place of the one that is there, durably."""
    durable.replace(groups_fd, group_name(group.group_snapshot_id), seal("group", _group_body(group)))


def read_group(groups_fd: int, name: str, where: str) -> GroupSnapshot:
    """The group whose record is the file `name`.

    Raises: RecordDamaged for whatever is wrong with it.
    """
    try:
        content = durable.read_small(groups_fd, name, limit_bytes=_LIMIT_BYTES)
    except (ValueError, OSError) as cause:
        raise RecordDamaged(where, f"it cannot be read: {cause}") from cause
    group = _group_from(unseal(content, "group", where), where)
    if group_name(group.group_snapshot_id) != name:
        raise RecordDamaged(where, f"it belongs to {group.group_snapshot_id}")
    return group


def claimed_group_name(groups_fd: int, name: str) -> str:
    """The name that the damaged record of a group seems to say; empty when nothing can be made out."""
    try:
        return _claimed(durable.read_small(groups_fd, name, limit_bytes=_LIMIT_BYTES))
    except (OSError, ValueError):
        return ""


def group_name(group_snapshot_id: str) -> str:
    """The file that has the record of a group."""
    return f"{group_snapshot_id}{GROUP_SUFFIX}"


def replace_snapshot(dir_fd: int, snapshot: Snapshot) -> None:
    """Put a record in the place of the one that a snapshot's directory holds, durably."""
    durable.replace(dir_fd, RECORD, seal("snapshot", _snapshot_body(snapshot)))


def read_snapshot(dir_fd: int, directory: str, where: str) -> Snapshot:
    """The snapshot whose record lies in `directory` below `dir_fd`.

    Raises: RecordDamaged for whatever is wrong with it, a missing record included.
    """
    snapshot = _snapshot_from(_read(dir_fd, directory, "snapshot", where), where)
    if snapshot.snapshot_id != directory:
        raise RecordDamaged(where, f"it belongs to {snapshot.snapshot_id}")
    return snapshot


def replace_volume(dir_fd: int, volume: Volume) -> None:
    """Put a record in the place of the one of a live volume, durably: after a crash there is one of both.

    `dir_fd` is the directory in which the volume's own lies. Raises: OSError; either may be there then.
    """
    object_fd = durable.open_directory(volume.volume_id, dir_fd=dir_fd)
    try:
        durable.replace(object_fd, RECORD, seal("volume", _volume_body(volume)))
    finally:
        os.close(object_fd)


def read_volume(dir_fd: int, directory: str, where: str) -> Volume:
    """The volume whose record lies in `directory` below `dir_fd`.

    Raises: RecordDamaged for whatever is wrong with it, a missing record included.
    """
    volume = _volume_from(_read(dir_fd, directory, "volume", where), where)
    if volume.volume_id != directory:
        raise RecordDamaged(where, f"it belongs to {volume.volume_id}")
    return volume


def read_any(dir_fd: int, directory: str, where: str) -> Volume | Snapshot:
    """Whatever object's record lies in `directory`, which need not bear its id (in the trash it does not).

    Raises: RecordDamaged.
    """
    try:
        return _volume_from(_read(dir_fd, directory, "volume", where), where)
    except RecordDamaged as damage:
        try:
            return _snapshot_from(_read(dir_fd, directory, "snapshot", where), where)
        except RecordDamaged:
            raise damage from None


def replace_record(object_fd: int, volume: Volume) -> None:
    """Put a volume's record in the place of the one that its own directory holds, durably."""
    durable.replace(object_fd, RECORD, seal("volume", _volume_body(volume)))


def claimed_name(dir_fd: int, directory: str) -> str:
    """The name that a damaged record seems to say; empty when nothing can be made out."""
    try:
        content = _content(dir_fd, directory)
    except (OSError, ValueError):
        return ""
    return _claimed(content)


def _claimed(content: bytes) -> str:
    match = _NAME.search(content)
    try:
        return str(json.loads(match[1])) if match is not None else ""
    except ValueError:
        return ""


def _read(dir_fd: int, directory: str, kind: str, where: str) -> dict[str, Any]:
    try:
        content = _content(dir_fd, directory)
    except FileNotFoundError as cause:
        raise RecordDamaged(where, "it is missing") from cause
    except (ValueError, OSError) as cause:
        raise RecordDamaged(where, f"it cannot be read: {cause}") from cause
    return unseal(content, kind, where)


def _content(dir_fd: int, directory: str) -> bytes:
    # In two steps: a link in the place of the object's directory is not followed either.
    object_fd = durable.open_directory(directory, dir_fd=dir_fd)
    try:
        return durable.read_small(object_fd, RECORD, limit_bytes=_LIMIT_BYTES)
    finally:
        os.close(object_fd)


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _volume_body(volume: Volume) -> dict[str, Any]:
    source = {"source": {"kind": volume.source.kind, "id": volume.source.object_id}} if volume.source else {}
    lineage = {"lineage": volume.lineage} if volume.lineage else {}
    growth = {"growing_to_bytes": volume.growing_to_bytes} if volume.growing_to_bytes else {}
    # Only where it says something: records of other volumes are as they always were.
    of_pod = {"pod": volume.pod} if volume.is_ephemeral else {}
    changes = {"becoming": volume.becoming, "created_as": volume.created_as}
    rollback = {"rollback": volume.rollback} if volume.rollback else {}
    content = {"content_id": volume.content_id, "content_mark": volume.content_mark} if volume.content_id else {}
    return {
        **{key: _parameters_body(one) for key, one in changes.items() if one is not None},
        **of_pod,
        **growth,
        **rollback,
        **content,
        "volume_id": volume.volume_id,
        "name": volume.name,
        "capacity_bytes": volume.capacity_bytes,
        "access_type": volume.access_type,
        "fs_type": volume.fs_type,
        "fs_uuid": volume.fs_uuid,
        "project_id": volume.project_id,
        "created_at": volume.created_at,
        **_parameters_body(volume.parameters),
        **source,
        **lineage,
    }


def _snapshot_body(snapshot: Snapshot) -> dict[str, Any]:
    of_group = {"group": {"id": snapshot.group_snapshot_id, "pool": snapshot.group_pool}}
    content = {"content_id": snapshot.content_id}
    return {
        **(of_group if snapshot.group_snapshot_id else {}),
        **(content if snapshot.content_id else {}),
        "snapshot_id": snapshot.snapshot_id,
        "name": snapshot.name,
        "source_volume_id": snapshot.source_volume_id,
        "size_bytes": snapshot.size_bytes,
        "access_type": snapshot.access_type,
        "fs_type": snapshot.fs_type,
        "created_at": snapshot.created_at,
        "is_ready": snapshot.is_ready,
        "lineage": snapshot.lineage,
        **_parameters_body(snapshot.parameters),
    }


def _group_body(group: GroupSnapshot) -> dict[str, Any]:
    return {
        "group_snapshot_id": group.group_snapshot_id,
        "name": group.name,
        "source_volume_ids": list(group.source_volume_ids),
        "snapshot_ids": list(group.snapshot_ids),
        "pool": group.pool,
        "created_at": group.created_at,
        "is_leaving": group.is_leaving,
    }


def _parameters_body(parameters: VolumeParameters) -> dict[str, Any]:
    retention = {
        "retention_seconds": parameters.retention_seconds,
        "retention_policy": parameters.retention_policy,
    }
    return {
        **(retention if parameters.retention_seconds else {}),
        "type": parameters.volume_type,
        "pool": parameters.pool,
        "provisioning": parameters.provisioning,
        "mkfs_options": parameters.mkfs_options,
        "quota": parameters.quota,
        "block_size": parameters.block_size,
    }


def _volume_from(body: dict[str, Any], where: str) -> Volume:
    try:
        return Volume(
            volume_id=VolumeId(body["volume_id"]),
            name=body["name"],
            capacity_bytes=int(body["capacity_bytes"]),
            access_type=AccessType(body["access_type"]),
            fs_type=sys.intern(body["fs_type"]),
            parameters=_parameters_from(body),
            created_at=float(body["created_at"]),
            fs_uuid=body["fs_uuid"],
            project_id=int(body["project_id"]),
            source=_source_from(body.get("source")),
            lineage=str(body.get("lineage", "")),
            growing_to_bytes=int(body.get("growing_to_bytes", 0)),
            pod=body.get("pod"),
            becoming=_optional_parameters_from(body.get("becoming")),
            created_as=_optional_parameters_from(body.get("created_as")),
            rollback=str(body.get("rollback", "")),
            content_id=str(body.get("content_id", "")),
            content_mark=str(body.get("content_mark", "")),
        )
    except (KeyError, ValueError, TypeError) as cause:
        raise RecordDamaged(where, f"a field is missing or wrong: {cause}") from cause


def _snapshot_from(body: dict[str, Any], where: str) -> Snapshot:
    try:
        return Snapshot(
            snapshot_id=SnapshotId(body["snapshot_id"]),
            name=body["name"],
            source_volume_id=VolumeId(body["source_volume_id"]),
            size_bytes=int(body["size_bytes"]),
            access_type=AccessType(body["access_type"]),
            fs_type=sys.intern(body["fs_type"]),
            parameters=_parameters_from(body),
            created_at=float(body["created_at"]),
            is_ready=bool(body["is_ready"]),
            lineage=str(body["lineage"]),
            group_snapshot_id=str(body.get("group", _NO_GROUP)["id"]),
            group_pool=sys.intern(str(body.get("group", _NO_GROUP)["pool"])),
            content_id=str(body.get("content_id", "")),
        )
    except (KeyError, ValueError, TypeError) as cause:
        raise RecordDamaged(where, f"a field is missing or wrong: {cause}") from cause


def _group_from(body: dict[str, Any], where: str) -> GroupSnapshot:
    try:
        return GroupSnapshot(
            group_snapshot_id=GroupId(body["group_snapshot_id"]),
            name=body["name"],
            source_volume_ids=tuple(map(str, body["source_volume_ids"])),
            snapshot_ids=tuple(map(str, body["snapshot_ids"])),
            pool=PoolName(sys.intern(body["pool"])),
            created_at=float(body["created_at"]),
            is_leaving=bool(body["is_leaving"]),
        )
    except (KeyError, ValueError, TypeError) as cause:
        raise RecordDamaged(where, f"a field is missing or wrong: {cause}") from cause


def _parameters_from(body: dict[str, Any]) -> VolumeParameters:
    # Interned: ten thousand records repeat a handful of pool names, options and types.
    return VolumeParameters(
        volume_type=VolumeType(body["type"]),
        pool=PoolName(sys.intern(body["pool"])),
        provisioning=Provisioning(body["provisioning"]),
        mkfs_options=sys.intern(body["mkfs_options"]),
        quota=QuotaPolicy(body["quota"]),
        block_size=int(body["block_size"]),
        retention_seconds=int(body.get("retention_seconds", 0)),
        retention_policy=RetentionPolicy(body.get("retention_policy", RetentionPolicy.KEEP)),
    )


def _optional_parameters_from(body: dict[str, Any] | None) -> VolumeParameters | None:
    return None if body is None else _parameters_from(body)


def _source_from(body: dict[str, Any] | None) -> ContentSource | None:
    return None if body is None else ContentSource(SourceKind(body["kind"]), str(body["id"]))
