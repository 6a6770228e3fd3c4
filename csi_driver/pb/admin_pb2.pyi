import datetime

from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ListPoolsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListPoolsResponse(_message.Message):
    __slots__ = ("pools",)
    POOLS_FIELD_NUMBER: _ClassVar[int]
    pools: _containers.RepeatedCompositeFieldContainer[Pool]
    def __init__(self, pools: _Optional[_Iterable[_Union[Pool, _Mapping]]] = ...) -> None: ...

class Pool(_message.Message):
    __slots__ = ("name", "directory", "uuid", "filesystem", "reflink", "overcommit", "size_bytes", "available_bytes", "reserve_bytes", "promised_bytes", "grantable_bytes", "volume_count", "quarantined_count", "state", "message", "quota", "quota_remedy", "snapshot_count", "backing_file", "backing_bytes", "trash_count", "trash_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    UUID_FIELD_NUMBER: _ClassVar[int]
    FILESYSTEM_FIELD_NUMBER: _ClassVar[int]
    REFLINK_FIELD_NUMBER: _ClassVar[int]
    OVERCOMMIT_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    RESERVE_BYTES_FIELD_NUMBER: _ClassVar[int]
    PROMISED_BYTES_FIELD_NUMBER: _ClassVar[int]
    GRANTABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    VOLUME_COUNT_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_COUNT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    QUOTA_REMEDY_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_COUNT_FIELD_NUMBER: _ClassVar[int]
    BACKING_FILE_FIELD_NUMBER: _ClassVar[int]
    BACKING_BYTES_FIELD_NUMBER: _ClassVar[int]
    TRASH_COUNT_FIELD_NUMBER: _ClassVar[int]
    TRASH_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    directory: str
    uuid: str
    filesystem: str
    reflink: bool
    overcommit: float
    size_bytes: int
    available_bytes: int
    reserve_bytes: int
    promised_bytes: int
    grantable_bytes: int
    volume_count: int
    quarantined_count: int
    state: str
    message: str
    quota: str
    quota_remedy: str
    snapshot_count: int
    backing_file: str
    backing_bytes: int
    trash_count: int
    trash_bytes: int
    def __init__(self, name: _Optional[str] = ..., directory: _Optional[str] = ..., uuid: _Optional[str] = ..., filesystem: _Optional[str] = ..., reflink: _Optional[bool] = ..., overcommit: _Optional[float] = ..., size_bytes: _Optional[int] = ..., available_bytes: _Optional[int] = ..., reserve_bytes: _Optional[int] = ..., promised_bytes: _Optional[int] = ..., grantable_bytes: _Optional[int] = ..., volume_count: _Optional[int] = ..., quarantined_count: _Optional[int] = ..., state: _Optional[str] = ..., message: _Optional[str] = ..., quota: _Optional[str] = ..., quota_remedy: _Optional[str] = ..., snapshot_count: _Optional[int] = ..., backing_file: _Optional[str] = ..., backing_bytes: _Optional[int] = ..., trash_count: _Optional[int] = ..., trash_bytes: _Optional[int] = ...) -> None: ...

class GrowPoolRequest(_message.Message):
    __slots__ = ("name", "size_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    size_bytes: int
    def __init__(self, name: _Optional[str] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class ListVolumesRequest(_message.Message):
    __slots__ = ("max_entries", "starting_token")
    MAX_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    STARTING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    max_entries: int
    starting_token: str
    def __init__(self, max_entries: _Optional[int] = ..., starting_token: _Optional[str] = ...) -> None: ...

class ListVolumesResponse(_message.Message):
    __slots__ = ("volumes", "next_token")
    VOLUMES_FIELD_NUMBER: _ClassVar[int]
    NEXT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    volumes: _containers.RepeatedCompositeFieldContainer[VolumeDetail]
    next_token: str
    def __init__(self, volumes: _Optional[_Iterable[_Union[VolumeDetail, _Mapping]]] = ..., next_token: _Optional[str] = ...) -> None: ...

class GetVolumeRequest(_message.Message):
    __slots__ = ("volume_id", "name")
    VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    volume_id: str
    name: str
    def __init__(self, volume_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class VolumeDetail(_message.Message):
    __slots__ = ("volume_id", "name", "pool", "type", "access", "filesystem", "provisioning", "capacity_bytes", "allocated_bytes", "created", "staging_paths", "target_paths", "state", "message", "source", "quota", "pod", "content_id", "health")
    VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ACCESS_FIELD_NUMBER: _ClassVar[int]
    FILESYSTEM_FIELD_NUMBER: _ClassVar[int]
    PROVISIONING_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    ALLOCATED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    STAGING_PATHS_FIELD_NUMBER: _ClassVar[int]
    TARGET_PATHS_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    POD_FIELD_NUMBER: _ClassVar[int]
    CONTENT_ID_FIELD_NUMBER: _ClassVar[int]
    HEALTH_FIELD_NUMBER: _ClassVar[int]
    volume_id: str
    name: str
    pool: str
    type: str
    access: str
    filesystem: str
    provisioning: str
    capacity_bytes: int
    allocated_bytes: int
    created: _timestamp_pb2.Timestamp
    staging_paths: _containers.RepeatedScalarFieldContainer[str]
    target_paths: _containers.RepeatedScalarFieldContainer[str]
    state: str
    message: str
    source: str
    quota: str
    pod: str
    content_id: str
    health: str
    def __init__(self, volume_id: _Optional[str] = ..., name: _Optional[str] = ..., pool: _Optional[str] = ..., type: _Optional[str] = ..., access: _Optional[str] = ..., filesystem: _Optional[str] = ..., provisioning: _Optional[str] = ..., capacity_bytes: _Optional[int] = ..., allocated_bytes: _Optional[int] = ..., created: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., staging_paths: _Optional[_Iterable[str]] = ..., target_paths: _Optional[_Iterable[str]] = ..., state: _Optional[str] = ..., message: _Optional[str] = ..., source: _Optional[str] = ..., quota: _Optional[str] = ..., pod: _Optional[str] = ..., content_id: _Optional[str] = ..., health: _Optional[str] = ...) -> None: ...

class ListSnapshotsRequest(_message.Message):
    __slots__ = ("max_entries", "starting_token")
    MAX_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    STARTING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    max_entries: int
    starting_token: str
    def __init__(self, max_entries: _Optional[int] = ..., starting_token: _Optional[str] = ...) -> None: ...

class ListSnapshotsResponse(_message.Message):
    __slots__ = ("snapshots", "next_token")
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    snapshots: _containers.RepeatedCompositeFieldContainer[SnapshotDetail]
    next_token: str
    def __init__(self, snapshots: _Optional[_Iterable[_Union[SnapshotDetail, _Mapping]]] = ..., next_token: _Optional[str] = ...) -> None: ...

class GetSnapshotRequest(_message.Message):
    __slots__ = ("snapshot_id", "name")
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: str
    name: str
    def __init__(self, snapshot_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class SnapshotDetail(_message.Message):
    __slots__ = ("snapshot_id", "name", "source_volume_id", "pool", "type", "access", "filesystem", "size_bytes", "created", "state", "copied_bytes", "copy_bytes", "message", "provisioning", "quota", "content_id", "group_snapshot_id")
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ACCESS_FIELD_NUMBER: _ClassVar[int]
    FILESYSTEM_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    COPIED_BYTES_FIELD_NUMBER: _ClassVar[int]
    COPY_BYTES_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    PROVISIONING_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    CONTENT_ID_FIELD_NUMBER: _ClassVar[int]
    GROUP_SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    snapshot_id: str
    name: str
    source_volume_id: str
    pool: str
    type: str
    access: str
    filesystem: str
    size_bytes: int
    created: _timestamp_pb2.Timestamp
    state: str
    copied_bytes: int
    copy_bytes: int
    message: str
    provisioning: str
    quota: str
    content_id: str
    group_snapshot_id: str
    def __init__(self, snapshot_id: _Optional[str] = ..., name: _Optional[str] = ..., source_volume_id: _Optional[str] = ..., pool: _Optional[str] = ..., type: _Optional[str] = ..., access: _Optional[str] = ..., filesystem: _Optional[str] = ..., size_bytes: _Optional[int] = ..., created: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., state: _Optional[str] = ..., copied_bytes: _Optional[int] = ..., copy_bytes: _Optional[int] = ..., message: _Optional[str] = ..., provisioning: _Optional[str] = ..., quota: _Optional[str] = ..., content_id: _Optional[str] = ..., group_snapshot_id: _Optional[str] = ...) -> None: ...

class ListTroublesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Trouble(_message.Message):
    __slots__ = ("kind", "object_id", "name", "status", "reason", "message")
    KIND_FIELD_NUMBER: _ClassVar[int]
    OBJECT_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    object_id: str
    name: str
    status: str
    reason: str
    message: str
    def __init__(self, kind: _Optional[str] = ..., object_id: _Optional[str] = ..., name: _Optional[str] = ..., status: _Optional[str] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class ListOperationsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListOperationsResponse(_message.Message):
    __slots__ = ("operations",)
    OPERATIONS_FIELD_NUMBER: _ClassVar[int]
    operations: _containers.RepeatedCompositeFieldContainer[Operation]
    def __init__(self, operations: _Optional[_Iterable[_Union[Operation, _Mapping]]] = ...) -> None: ...

class Operation(_message.Message):
    __slots__ = ("kind", "object_id", "name", "source_id", "done_bytes", "total_bytes", "started")
    KIND_FIELD_NUMBER: _ClassVar[int]
    OBJECT_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SOURCE_ID_FIELD_NUMBER: _ClassVar[int]
    DONE_BYTES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    kind: str
    object_id: str
    name: str
    source_id: str
    done_bytes: int
    total_bytes: int
    started: _timestamp_pb2.Timestamp
    def __init__(self, kind: _Optional[str] = ..., object_id: _Optional[str] = ..., name: _Optional[str] = ..., source_id: _Optional[str] = ..., done_bytes: _Optional[int] = ..., total_bytes: _Optional[int] = ..., started: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ListGroupSnapshotsRequest(_message.Message):
    __slots__ = ("max_entries", "starting_token")
    MAX_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    STARTING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    max_entries: int
    starting_token: str
    def __init__(self, max_entries: _Optional[int] = ..., starting_token: _Optional[str] = ...) -> None: ...

class ListGroupSnapshotsResponse(_message.Message):
    __slots__ = ("groups", "next_token")
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    NEXT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[GroupSnapshotDetail]
    next_token: str
    def __init__(self, groups: _Optional[_Iterable[_Union[GroupSnapshotDetail, _Mapping]]] = ..., next_token: _Optional[str] = ...) -> None: ...

class GetGroupSnapshotRequest(_message.Message):
    __slots__ = ("group_snapshot_id", "name")
    GROUP_SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    group_snapshot_id: str
    name: str
    def __init__(self, group_snapshot_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class GroupSnapshotDetail(_message.Message):
    __slots__ = ("group_snapshot_id", "name", "pool", "created", "state", "message", "source_volume_ids", "snapshot_ids", "size_bytes")
    GROUP_SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    CREATED_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_VOLUME_IDS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_IDS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    group_snapshot_id: str
    name: str
    pool: str
    created: _timestamp_pb2.Timestamp
    state: str
    message: str
    source_volume_ids: _containers.RepeatedScalarFieldContainer[str]
    snapshot_ids: _containers.RepeatedScalarFieldContainer[str]
    size_bytes: int
    def __init__(self, group_snapshot_id: _Optional[str] = ..., name: _Optional[str] = ..., pool: _Optional[str] = ..., created: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., state: _Optional[str] = ..., message: _Optional[str] = ..., source_volume_ids: _Optional[_Iterable[str]] = ..., snapshot_ids: _Optional[_Iterable[str]] = ..., size_bytes: _Optional[int] = ...) -> None: ...

class ListTrashRequest(_message.Message):
    __slots__ = ("max_entries", "starting_token")
    MAX_ENTRIES_FIELD_NUMBER: _ClassVar[int]
    STARTING_TOKEN_FIELD_NUMBER: _ClassVar[int]
    max_entries: int
    starting_token: str
    def __init__(self, max_entries: _Optional[int] = ..., starting_token: _Optional[str] = ...) -> None: ...

class ListTrashResponse(_message.Message):
    __slots__ = ("entries", "next_token")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_TOKEN_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[TrashEntry]
    next_token: str
    def __init__(self, entries: _Optional[_Iterable[_Union[TrashEntry, _Mapping]]] = ..., next_token: _Optional[str] = ...) -> None: ...

class TrashEntry(_message.Message):
    __slots__ = ("entry", "object_id", "kind", "name", "pool", "size_bytes", "own_bytes", "deleted", "expires", "state", "message")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    OBJECT_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    OWN_BYTES_FIELD_NUMBER: _ClassVar[int]
    DELETED_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    entry: str
    object_id: str
    kind: str
    name: str
    pool: str
    size_bytes: int
    own_bytes: int
    deleted: _timestamp_pb2.Timestamp
    expires: _timestamp_pb2.Timestamp
    state: str
    message: str
    def __init__(self, entry: _Optional[str] = ..., object_id: _Optional[str] = ..., kind: _Optional[str] = ..., name: _Optional[str] = ..., pool: _Optional[str] = ..., size_bytes: _Optional[int] = ..., own_bytes: _Optional[int] = ..., deleted: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expires: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., state: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class RestoreTrashRequest(_message.Message):
    __slots__ = ("entry",)
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    entry: str
    def __init__(self, entry: _Optional[str] = ...) -> None: ...

class RestoreTrashResponse(_message.Message):
    __slots__ = ("object_id", "kind", "name")
    OBJECT_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    object_id: str
    kind: str
    name: str
    def __init__(self, object_id: _Optional[str] = ..., kind: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class PurgeTrashRequest(_message.Message):
    __slots__ = ("entry",)
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    entry: str
    def __init__(self, entry: _Optional[str] = ...) -> None: ...

class PurgeTrashResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RollbackVolumeRequest(_message.Message):
    __slots__ = ("volume_id", "snapshot_id")
    VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_ID_FIELD_NUMBER: _ClassVar[int]
    volume_id: str
    snapshot_id: str
    def __init__(self, volume_id: _Optional[str] = ..., snapshot_id: _Optional[str] = ...) -> None: ...

class RollbackVolumeResponse(_message.Message):
    __slots__ = ("entry",)
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    entry: str
    def __init__(self, entry: _Optional[str] = ...) -> None: ...

class ExportRequest(_message.Message):
    __slots__ = ("id", "base_id")
    ID_FIELD_NUMBER: _ClassVar[int]
    BASE_ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    base_id: str
    def __init__(self, id: _Optional[str] = ..., base_id: _Optional[str] = ...) -> None: ...

class StreamChunk(_message.Message):
    __slots__ = ("data",)
    DATA_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    def __init__(self, data: _Optional[bytes] = ...) -> None: ...

class ImportRequest(_message.Message):
    __slots__ = ("options", "data")
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    options: ImportOptions
    data: bytes
    def __init__(self, options: _Optional[_Union[ImportOptions, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...

class ImportOptions(_message.Message):
    __slots__ = ("name", "pool", "provisioning", "quota", "size_bytes", "onto_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    PROVISIONING_FIELD_NUMBER: _ClassVar[int]
    QUOTA_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ONTO_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    pool: str
    provisioning: str
    quota: str
    size_bytes: int
    onto_id: str
    def __init__(self, name: _Optional[str] = ..., pool: _Optional[str] = ..., provisioning: _Optional[str] = ..., quota: _Optional[str] = ..., size_bytes: _Optional[int] = ..., onto_id: _Optional[str] = ...) -> None: ...

class ImportResponse(_message.Message):
    __slots__ = ("volume_id", "name", "pool", "capacity_bytes")
    VOLUME_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    CAPACITY_BYTES_FIELD_NUMBER: _ClassVar[int]
    volume_id: str
    name: str
    pool: str
    capacity_bytes: int
    def __init__(self, volume_id: _Optional[str] = ..., name: _Optional[str] = ..., pool: _Optional[str] = ..., capacity_bytes: _Optional[int] = ...) -> None: ...
