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
    PoolName,
    Provisioning,
    QuotaPolicy,
    Volume,
    VolumeId,
    VolumeParameters,
    VolumeType,
)
from csi_driver.store import durable

SCHEMA = 1
RECORD = "record.json"
_LIMIT_BYTES = 16384
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


def read_volume(dir_fd: int, directory: str, where: str) -> Volume:
    """The volume whose record lies in `directory` below `dir_fd`.

    Raises: RecordDamaged for whatever is wrong with it, a missing record included.
    """
    try:
        content = _content(dir_fd, directory)
    except FileNotFoundError as cause:
        raise RecordDamaged(where, "it is missing") from cause
    except (ValueError, OSError) as cause:
        raise RecordDamaged(where, f"it cannot be read: {cause}") from cause
    volume = _volume_from(unseal(content, "volume", where), where)
    if volume.volume_id != directory:
        raise RecordDamaged(where, f"it belongs to {volume.volume_id}")
    return volume


def claimed_name(dir_fd: int, directory: str) -> str:
    """The volume name that a damaged record seems to say; empty when nothing can be made out."""
    try:
        content = _content(dir_fd, directory)
    except (OSError, ValueError):
        return ""
    match = _NAME.search(content)
    try:
        return str(json.loads(match[1])) if match is not None else ""
    except ValueError:
        return ""


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
    parameters = volume.parameters
    # Only where it says something: records of other volumes are as they always were.
    of_pod = {"pod": volume.pod} if volume.is_ephemeral else {}
    return {
        **of_pod,
        "volume_id": volume.volume_id,
        "name": volume.name,
        "capacity_bytes": volume.capacity_bytes,
        "access_type": volume.access_type,
        "fs_type": volume.fs_type,
        "fs_uuid": volume.fs_uuid,
        "project_id": volume.project_id,
        "created_at": volume.created_at,
        "type": parameters.volume_type,
        "pool": parameters.pool,
        "provisioning": parameters.provisioning,
        "mkfs_options": parameters.mkfs_options,
        "quota": parameters.quota,
        "block_size": parameters.block_size,
    }


def _volume_from(body: dict[str, Any], where: str) -> Volume:
    # Interned: ten thousand records repeat a handful of pool names, options and types.
    try:
        parameters = VolumeParameters(
            volume_type=VolumeType(body["type"]),
            pool=PoolName(sys.intern(body["pool"])),
            provisioning=Provisioning(body["provisioning"]),
            mkfs_options=sys.intern(body["mkfs_options"]),
            quota=QuotaPolicy(body["quota"]),
            block_size=int(body["block_size"]),
        )
        return Volume(
            volume_id=VolumeId(body["volume_id"]),
            name=body["name"],
            capacity_bytes=int(body["capacity_bytes"]),
            access_type=AccessType(body["access_type"]),
            fs_type=sys.intern(body["fs_type"]),
            parameters=parameters,
            created_at=float(body["created_at"]),
            fs_uuid=body["fs_uuid"],
            project_id=int(body["project_id"]),
            pod=body.get("pod"),
        )
    except (KeyError, ValueError, TypeError) as cause:
        raise RecordDamaged(where, f"a field is missing or wrong: {cause}") from cause
